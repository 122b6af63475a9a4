"""The best rows by a reward, by a judge, by either; rows that are hard enough."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from serving import Fake, serve

from align import rewards, shelf
from align.artifacts import Conversations, Preferences, Prompts, RewardModel, Text
from align.curation import scoring
from align.curation.quality import Difficulty, Quality
from align.errors import StageFailed
from align.out import Out
from align.settings import Dialog, Reward


class Digits(Reward):
    """The digits of the answer, as a number; None where it has none."""

    asked: list[str] = []

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        texts = [rewards.text(one) for one in completions]
        self.asked.extend(texts)
        found = [re.search(r"\d+", text) for text in texts]
        return [float(one[0]) if one else None for one in found]


def conversation(answer: str, name: str, question: str = "Well?") -> dict[str, Any]:
    asked = {"role": "user", "content": question}
    return {"id": name, "messages": [asked, {"role": "assistant", "content": answer}]}


def sifted(rule: Quality | Difficulty, rows: list[dict[str, Any]], path: Path) -> list[Any]:
    return list(rule.sift(lambda: iter(rows), Out(path, path)))


def kept(found: list[Any]) -> set[str]:
    return {row["id"] for row, why in found if why is None}


# -- which rows are the best ones ----------------------------------------------------------------


@pytest.mark.parametrize(("n", "share", "count"), [(8, 0.25, 2), (10, 0.25, 2), (3, 0.1, 1)])
def test_so_many_of_the_rows_are_the_best(tmp_path: Path, n: int, share: float, count: int) -> None:
    rows = [conversation(f"It is {i}.", str(i)) for i in range(n)]
    found = sifted(Quality(reward=Digits(), top=share), rows, tmp_path)
    assert kept(found) == {str(i) for i in range(n - count, n)}
    assert [row["quality"] for row, _ in found] == pytest.approx(
        [(i + 1) / n for i in range(n)], abs=1e-6
    )


def test_of_equal_rows_the_order_does_not_say_which_stay(tmp_path: Path) -> None:
    rows = [conversation(f"It is 7, {chr(97 + i)}.", str(i)) for i in range(12)]
    first = kept(sifted(Quality(reward=Digits()), rows, tmp_path / "1"))
    random.Random(0).shuffle(rows)
    assert kept(sifted(Quality(reward=Digits()), rows, tmp_path / "2")) == first
    assert len(first) == 3


def test_names_of_files_do_not_say_which_of_equal_rows_stay(tmp_path: Path) -> None:
    rows = [conversation(f"It is 7, {chr(97 + i)}.", str(i)) for i in range(12)]
    one = [{**row, "source": "one.jsonl"} for row in rows]
    two = [{**row, "source": f"{i % 2}.jsonl"} for i, row in enumerate(rows)]
    first = kept(sifted(Quality(reward=Digits()), one, tmp_path / "1"))
    assert kept(sifted(Quality(reward=Digits()), two, tmp_path / "2")) == first


def test_a_row_without_a_number_is_not_good_and_counts_for_no_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [conversation("None.", f"n{i}") for i in range(6)]
    rows += [conversation(str(i), str(i)) for i in range(4)]
    found = sifted(Quality(reward=Digits(), top=0.5), rows, tmp_path)
    assert kept(found) == {"2", "3"}
    assert found[0][1].facts == {"reward": None} and found[0][0]["quality"] == 0
    assert "» quality.reward: 6 of 10 rows have no number, as those" in capsys.readouterr().err


def test_ranks_and_the_best_are_those_of_a_plain_sort() -> None:
    draw = np.random.default_rng(0)
    numbers = draw.integers(0, 9, 200).astype(float)
    numbers[draw.integers(0, 200, 30)] = np.nan
    ties = draw.integers(0, 2**63, 200).astype(np.uint64)
    there = [i for i in range(200) if not np.isnan(numbers[i])]
    order = sorted(there, key=lambda i: (-numbers[i], ties[i]))
    assert set(np.flatnonzero(scoring.best(numbers, ties, 0.3))) == set(
        order[: round(0.3 * len(there))]
    )
    ranks = scoring.ranks(numbers)
    for i in there:
        assert ranks[i] == sum(numbers[j] <= numbers[i] for j in there) / len(there)


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    both = Quality(reward=Digits(), judge=Digits(), at_least=1)
    assert sifted(both, [], tmp_path) == []
    assert sifted(Difficulty(judge=Digits(), at_least=1), [], tmp_path) == []


# -- which answer is scored, and the two of them together ----------------------------------------


def test_the_last_answer_of_a_conversation_and_the_chosen_one_are_scored() -> None:
    said = [{"role": r, "content": t} for r, t in [("user", "q"), ("assistant", "a")] * 2]
    assert scoring.asked({"messages": [*said, {"role": "user", "content": "!"}]}) == (
        said[:3],
        [said[3]],
    )
    pair = {"prompt": said[:1], "chosen": said[1:2], "rejected": said[3:]}
    assert scoring.asked(pair) == (said[:1], said[1:2])
    assert scoring.asked({"prompt": said[:1], "ranked": [said[1:2], []]}) == (said[:1], said[1:2])
    assert scoring.asked({"prompt": said[:1]}) == (said[:1], [])


class Length(Reward):
    """Characters of the answer."""

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        return [float(len(rewards.text(one))) for one in completions]


def test_either_keeps_what_one_of_two_finds_good_and_both_what_both_do(tmp_path: Path) -> None:
    answers = {"good": "9 is much longer", "first": "9", "second": "1 is much longer", "bad": "1"}
    rows = [conversation(answer, name) for name, answer in answers.items()]
    either = Quality(reward=Digits(), top=0.5, judge=Length(), at_least=10)
    out = Out(tmp_path, tmp_path)
    found = list(either.sift(lambda: iter(rows), out))
    assert kept(found) == {"good", "first", "second"}
    assert found[3][1].facts == {"reward": 1, "judge": 1}
    assert (out.counts["quality.both"]["n"], out.counts["quality.disagree"]["n"]) == (1, 2)
    assert [row["quality"] for row, _ in found] == [1, 1, 1, 0.5]
    both = Quality(reward=Digits(), top=0.5, judge=Length(), at_least=10, keep="both")
    found = sifted(both, rows, tmp_path / "again")
    assert kept(found) == {"good"}
    assert [row["quality"] for row, _ in found] == [1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Name what scores"),
        ({"judge": Length()}, "go together"),
        ({"reward": Length(), "at_least": 3}, "go together"),
        ({"reward": Length(), "keep": "both"}, 'needs "reward" and "judge"'),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        Quality(**settings)


def test_rows_without_answers_are_refused_before_anything_runs(tmp_path: Path) -> None:
    rule, hard = Quality(reward=Length()), Difficulty(judge=Length(), at_least=2)
    assert rule.misfit(Conversations) is rule.misfit(Preferences) is hard.misfit(Prompts) is None
    assert "no answers" in str(rule.misfit(Prompts)) and "no answers" in str(rule.misfit(Text))
    assert "nothing that could be hard" in str(hard.misfit(Text))


# -- what was scored is kept ---------------------------------------------------------------------


def test_after_a_kill_only_the_rest_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PART", 10)
    rows = [conversation(f"It is {i}.", str(i)) for i in range(35)]
    whole = sifted(Quality(reward=Digits()), rows, tmp_path / "whole")

    class Killed(Digits):
        def __call__(self, **given: Any) -> list[float | None]:
            if len(self.asked) == 20:
                raise KeyboardInterrupt
            return super().__call__(**given)

    with pytest.raises(KeyboardInterrupt):
        sifted(Quality(reward=Killed(asked=[])), rows, tmp_path)
    file = tmp_path / "checkpoints" / "scores" / "quality.reward.jsonl"
    with file.open("a") as lines:
        lines.write("[123")  # cut in the middle of a line
    again = Digits(asked=[])
    assert sifted(Quality(reward=again), rows, tmp_path) == whole
    assert again.asked == [f"It is {i}." for i in range(20, 35)]


def test_scores_of_other_rows_are_not_taken(tmp_path: Path) -> None:
    rows = [conversation(f"It is {i}.", str(i)) for i in range(4)]
    sifted(Quality(reward=Digits()), rows, tmp_path)
    other = [conversation(f"It is {9 - i}.", str(i)) for i in range(4)]
    assert kept(sifted(Quality(reward=Digits()), other, tmp_path)) == {"0"}


def test_a_reward_that_scores_nothing_stops_the_stage(tmp_path: Path) -> None:
    rows = [conversation("None.", str(i)) for i in range(4)]
    with pytest.raises(StageFailed, match=r"quality\.reward has no number for any of 4 rows"):
        sifted(Quality(reward=Digits()), rows, tmp_path)


def test_a_reward_model_ranks_rows_as_it_scores_them(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    network = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    network.save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "judge")
    spec = {"base": {"path": str(tmp_path / "judge")}, "quantization": None}
    file = shelf.find("reward/model.py")
    assert file is not None
    reward = shelf.load(file, Reward)(model=RewardModel(tmp_path / "judge", spec=spec))
    assert isinstance(reward, Reward)
    rows = [conversation("a" * i, str(i)) for i in range(1, 9)]
    found = sifted(Quality(reward=reward), rows, tmp_path)
    pairs = [scoring.asked(row) for row in rows]
    scores = rewards.call(reward, [p for p, _ in pairs], [a for _, a in pairs])
    order = sorted(rows, key=lambda row: -float(scores[int(row["id"]) - 1]["score"] or 0))
    assert kept(found) == {row["id"] for row in order[:2]}


# -- difficulty ----------------------------------------------------------------------------------


def tagger(body: dict[str, Any], _: int) -> str:
    """One tag for every "and" of what was asked, and one more; boasts do not count."""
    text = body["messages"][1]["content"]
    tags = [f"tag {i}" for i in range(1 + text.count(" and "))]
    points = {"points": min(3, len(tags))}
    return json.dumps({"reason": "so", **({"tags": tags} if "tags" in _wanted(body) else points)})


def _wanted(body: dict[str, Any]) -> set[str]:
    return set(body["response_format"]["json_schema"]["schema"]["properties"])


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serve(Fake(say=tagger)) as fake:
        yield fake


def difficulty(fake: Fake, path: Path, **given: Any) -> Reward:
    file = shelf.find("reward/difficulty.py")
    assert file is not None
    made = shelf.load(file, Reward)(url=fake.url, model="j", cache=str(path / "cache"), **given)
    assert isinstance(made, Reward)
    return made


def test_rows_with_too_few_intentions_go_and_the_others_get_a_column(
    fake: Fake, tmp_path: Path
) -> None:
    asked = ["Sum up", "Sum up and rhyme", "Sum up and rhyme and translate", "Sum up"]
    rows = [conversation("Now and then and so.", str(i), text) for i, text in enumerate(asked)]
    rule = Difficulty(judge=difficulty(fake, tmp_path), at_least=2)
    found = sifted(rule, rows, tmp_path)
    assert [row["difficulty"] for row, _ in found] == [1, 2, 3, 1]
    assert kept(found) == {"1", "2"}
    assert found[0][1].facts == {"difficulty": 1}
    told = [body["messages"][1]["content"] for body in fake.asked]
    assert sum("Sum up" in text for text in told) == 3  # the same question is asked once
    assert not any("Now and then" in text for text in told)


def test_points_are_of_the_whole_conversation(fake: Fake, tmp_path: Path) -> None:
    row = conversation("This and that and so on and on.", "a", "Sum up and rhyme")
    rule = Difficulty(judge=difficulty(fake, tmp_path, kind="points"), at_least=3)
    [(row, why)] = sifted(rule, [row], tmp_path)
    assert row["difficulty"] == 3 and why is None


def test_tags_that_are_the_same_count_once(fake: Fake, tmp_path: Path) -> None:
    reward = difficulty(fake, tmp_path)
    prompt = [{"role": "user", "content": "Well?"}]
    fake.say = lambda body, k: (
        json.dumps({"reason": "", "tags": ["Rhyme", " rhyme ", "translate"]})
        if "Well?" in body["messages"][1]["content"]
        else tagger(body, k)
    )
    assert reward(prompts=[prompt], completions=[[]]) == [2]


@pytest.mark.parametrize("kind", ["tags", "points"])
def test_a_judge_that_finds_everything_as_hard_is_refused_by_name(
    fake: Fake, tmp_path: Path, kind: str
) -> None:
    fake.say = lambda body, k: json.dumps({"reason": "", "tags": ["a", "b"], "points": 2})
    rule = Difficulty(judge=difficulty(fake, tmp_path, kind=kind), at_least=2)
    with pytest.raises(StageFailed, match=r'j finds "What is the capital.*as hard \(2\)'):
        sifted(rule, [conversation("So.", "a")], tmp_path)
    fake.say = lambda body, k: "I cannot say."
    with pytest.raises(StageFailed, match="j gives no verdict on a plain question"):
        sifted(rule, [conversation("So.", "a")], tmp_path)


@pytest.mark.parametrize("name", ["general", "code"])
def test_shipped_rubrics_name_every_mark_of_their_scale(name: str) -> None:
    file = shelf.find(f"reward/rubrics/{name}.txt")
    assert file is not None
    marks = [int(line[0]) for line in file.read_text(encoding="utf-8").splitlines()]
    assert marks == list(range(len(marks), 0, -1))
