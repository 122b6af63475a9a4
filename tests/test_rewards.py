"""What rewards return, in one form; and the rewards on the shelf."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import rewards, shelf
from align.errors import RecipeError, StageFailed
from align.settings import Reward


def shelved(name: str, **settings: Any) -> Reward:
    path = shelf.find(f"reward/{name}.py")
    assert path is not None
    reward = shelf.load(path, Reward)(**settings)
    assert isinstance(reward, Reward)
    return reward


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Reward]:
    """A reward from a file, as a user would write it: `returns` is the body's expression."""

    def write(returns: str, name: str = "mine") -> Reward:
        path = tmp_path / f"{name}.py"
        path.write_text(
            "from align.settings import Reward\n\n\nclass Mine(Reward):\n"
            "    def __call__(self, *, prompts, completions, **columns):\n"
            f"        return {returns}\n"
        )
        reward = shelf.load(path, Reward)()
        assert isinstance(reward, Reward)
        return reward

    return write


def score(reward: Reward, *answers: str, **columns: list[Any]) -> list[float | None]:
    prompts = [[{"role": "user", "content": "?"}] for _ in answers]
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    return [one["score"] for one in rewards.call(reward, prompts, completions, columns)]


def test_numbers_none_and_mappings_come_out_in_one_form(make: Callable[..., Reward]) -> None:
    reward = make("[1, None, {'score': True, 'tone': 0.5}, {'score': None}][: len(prompts)]")
    prompts: list[Any] = [[]] * 4
    assert rewards.call(reward, prompts, prompts) == [
        {"score": 1.0},
        {"score": None},
        {"score": 1.0, "tone": 0.5},
        {"score": None},
    ]


def test_tensors_and_arrays_of_one_number_are_numbers(make: Callable[..., Reward]) -> None:
    for library, function in (("torch", "tensor"), ("numpy", "array")):
        made = f"__import__('{library}').{function}([0.5, 2.0])"
        assert score(make(made, library), "a", "b") == [0.5, 2.0]


@pytest.mark.parametrize(
    ("returns", "sentence"),
    [
        ("[1.0]", "returned 1 results for 2 answers"),
        ("['good'] * 2", "returned 'good' as score"),
        ("[float('nan')] * 2", "returned nan as score"),
        ("[{'tone': 1.0}] * 2", 'has no "score"'),
        ("__import__('torch').ones(2, 3)", "returned tensor([1., 1., 1.]) as score"),
    ],
)
def test_a_wrong_result_is_a_sentence_that_names_the_file(
    make: Callable[..., Reward], returns: str, sentence: str
) -> None:
    with pytest.raises(StageFailed, match="mine.py") as failure:
        score(make(returns), "a", "b")
    assert sentence in str(failure.value)


def test_answers_come_in_chunks_with_their_columns(
    make: Callable[..., Reward], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "CHUNK", 2)
    reward = make("[c + 10 * len(prompts) for c in columns['c']]")
    assert score(reward, "a", "b", "c", c=[1, 2, 3]) == [21, 22, 13]


def test_two_rewards_of_one_file_have_two_names(make: Callable[..., Reward]) -> None:
    mine = make("[0.0] * len(prompts)")
    named = rewards.names([mine, shelved("length"), mine, shelved("length", target=3)])
    assert named == ["mine", "length", "mine_2", "length_2"]


def test_length_is_words_characters_or_the_distance_to_a_target() -> None:
    assert score(shelved("length"), "one two  three", "") == [3, 0]
    assert score(shelved("length", unit="characters"), "ab c") == [4]
    assert score(shelved("length", target=2), "one", "one two", "a b c d") == [-1, 0, -2]


def test_format_finds_a_pattern_anywhere_or_in_the_whole() -> None:
    assert score(shelved("format", pattern=r"\d+"), "it is 12", "none") == [1, 0]
    assert score(shelved("format", pattern=r"\d+", whole=True), " 12\n", "it is 12") == [1, 0]


def test_a_broken_pattern_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValueError, match="pattern is no regular expression: "):
        shelved("format", pattern="(")


@pytest.mark.parametrize(
    ("kind", "said", "right", "score_"),
    [
        ("number", "so 3 + 4 = 7.", "#### 7", 1),
        ("number", "The total is $1,000.00", "1000", 1),
        ("number", "it is -5", "5", 0),
        ("number", "2 or 3? 2", "3", 0),
        ("number", "no idea", "3", 0),
        ("number", ".5", "0.5", 1),
        ("letter", "The answer is (B).", "B", 1),
        ("letter", "A or C? C", "A", 0),
        ("letter", "I'd say: D", "D", 1),
        ("letter", "Because", "B", 0),
        ("words", "It is New York.", "new york", 1),
        ("words", "New York, I think", "new york", 0),
    ],
)
def test_answer_takes_the_last_number_letter_or_words(
    kind: str, said: str, right: str, score_: float
) -> None:
    assert score(shelved("answer", kind=kind), said, answer=[right]) == [score_]


def test_answer_does_not_apply_without_a_right_one_and_needs_the_column() -> None:
    assert score(shelved("answer"), "1", answer=[None]) == [None]
    with pytest.raises(StageFailed, match='no column "answer", only gold'):
        score(shelved("answer"), "1", gold=["1"])


def test_a_task_grades_by_a_reward_and_leaves_out_where_it_does_not_apply() -> None:
    items: list[dict[str, Any]] = [
        {"id": "a", "prompt": [], "answer": "3"},
        {"id": "b", "prompt": [], "answer": None},
    ]
    assert rewards.grade(shelved("answer"), items, ["3", "3"]) == [{"score": 1.0}, {"score": None}]


def test_a_file_that_cannot_be_imported_is_a_problem_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(RecipeError, match="cannot be imported"):
        shelf.load(tmp_path / "bad.py", Reward)
