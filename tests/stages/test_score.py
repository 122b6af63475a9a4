"""The `score` stage: every reward on every answer, in passes, joined and combined."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align import launch, records, rewards, shelf
from align.artifacts import Samples, Scored
from align.errors import StageFailed
from align.out import Out
from align.parallel.workers import Workers
from align.scoring import scorer
from align.scoring.combining import Combine
from align.settings import Reward
from align.stages.score import Score

Row = dict[str, Any]

COUNTS = '''
from align.settings import Reward

class Counts(Reward):
    """How often a letter is in the answer; says "model" when it loads and when it is freed."""
    letter: str
    log: str

    def __call__(self, *, prompts, completions, **columns):
        with open(self.log, "a") as file:
            file.write(f"{self.letter} {len(prompts)}\\n")
        return [float(one[0]["content"].count(self.letter)) for one in completions]

    def free(self):
        with open(self.log, "a") as file:
            file.write(f"free {self.letter}\\n")
'''


def samples(tmp_path: Path, n: int, answers: int, **columns: list[Any]) -> Samples:
    """Answers whose texts, and so whose scores, all differ."""
    rows = []
    for i in range(n):
        completions = [
            {"index": k, "text": "a" * (i + 3 * k) + "b" * (i * k % 5), "finish": "stop"}
            | {"token_ids": [1] * (i + k + 1), "logprob": -1.0}
            for k in range(answers)
        ]
        own = {name: values[i] for name, values in columns.items()}
        prompt = [{"role": "user", "content": f"ask {i}"}]
        rows.append({"id": f"p{i}", "prompt": prompt, "columns": own, "completions": completions})
    folder = tmp_path / "samples-1" / "data"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Samples(folder.parent)


@pytest.fixture
def reward(tmp_path: Path) -> Callable[..., Reward]:
    """A reward from a file with this content."""

    def load(content: str, name: str = "mine", **settings: Any) -> Reward:
        path = tmp_path / f"{name}.py"
        path.write_text(content)
        found = shelf.load(path, Reward)(**settings)
        assert isinstance(found, Reward)
        return found

    return load


@pytest.fixture
def counts(tmp_path: Path, reward: Any) -> list[Reward]:
    """Two rewards that load something: how often "a" and "b" are in an answer."""
    log = str(tmp_path / "log")
    return [reward(COUNTS, "counts", letter=letter, log=log) for letter in "ab"]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[list[Row], Out, Any]]:
    """Run a stage in a directory: rows, Out, metrics."""

    def start(stage: Score, name: str = "score-1") -> tuple[list[Row], Out, Any]:
        out = Out(tmp_path / name, tmp_path / "cache")
        out.path.mkdir(exist_ok=True)
        made = stage.run(out)
        metrics = json.loads((out.path / "metrics.json").read_text())
        return list(made.rows()), out, metrics

    return start


def texts(rows: list[Row]) -> list[str]:
    return [answer["text"] for row in rows for answer in row["completions"]]


def column(rows: list[Row], name: str) -> list[Any]:
    return [answer["scores"][name] for row in rows for answer in row["completions"]]


def final(rows: list[Row]) -> list[Any]:
    return [answer["score"] for row in rows for answer in row["completions"]]


# -- passes and rules ----------------------------------------------------------------------------


def test_a_model_is_loaded_once_for_all_shards_and_freed_before_the_next(
    tmp_path: Path, counts: Any, run: Any
) -> None:
    stage = Score(samples=samples(tmp_path, 7, 2), rewards=counts, combine={"counts": 1}, shard=3)
    rows, out, _ = run(stage)
    said = (tmp_path / "log").read_text().splitlines()
    assert said == ["a 6", "a 6", "a 2", "free a", "b 6", "b 6", "b 2"]
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(7)]
    assert column(rows, "counts") == final(rows) == [text.count("a") for text in texts(rows)]
    assert column(rows, "counts_2") == [text.count("b") for text in texts(rows)]
    assert out.counts["answers"]["n"] == 14 and "pass" not in rows[0]


def test_what_loads_nothing_shares_the_first_models_pass(counts: Any) -> None:
    path = shelf.find("reward/length.py")
    assert path is not None
    length: Any = shelf.load(path, Reward)()
    assert rewards.passes([length, counts[0], length, counts[1]]) == [[0, 1, 2], [3]]
    assert rewards.passes([length, length]) == [[0, 1]]


def test_a_shard_whose_prompts_lack_a_column_is_scored_like_the_others(
    tmp_path: Path, run: Any
) -> None:
    path = shelf.find("reward/answer.py")
    assert path is not None
    given = samples(tmp_path, 2, 1, answer=["1", "2"])
    file = given.files()[0]
    first, second = map(json.loads, file.read_text().splitlines())
    second["columns"] = {}
    file.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    rows, _, _ = run(Score(samples=given, rewards=[shelf.load(path, Reward)()], shard=1))
    assert final(rows) == [0.0, None]


@pytest.mark.parametrize("shard", [1, 3, 100])
def test_standard_scores_are_over_all_answers_whatever_the_shards(
    shard: int, tmp_path: Path, counts: Any, run: Any
) -> None:
    rule = Combine(rule="lower", k=0.5)
    given = samples(tmp_path, 7, 3)
    rows, out, metrics = run(Score(samples=given, rewards=counts, combine=rule, shard=shard))
    numbers = np.array([[text.count("a"), text.count("b")] for text in texts(rows)], float)
    z = (numbers - numbers.mean(0)) / numbers.std(0)
    assert final(rows) == pytest.approx(z.mean(1) - 0.5 * z.std(1), abs=1e-12)
    assert column(rows, "disagreement") == pytest.approx(z.std(1), abs=1e-12)
    assert metrics["mean"] == pytest.approx(np.mean(final(rows)))
    assert metrics["sd"] == pytest.approx(np.std(final(rows)))
    assert metrics["best"] == max(final(rows))
    lengths = [len(answer["token_ids"]) for row in rows for answer in row["completions"]]
    expected = np.corrcoef(final(rows), lengths)[0, 1]
    assert metrics["correlation_with_length"] == pytest.approx(expected)
    assert out.counts["prompts"]["n"] == 7


def test_safety_first_takes_the_column_of_the_prompts_and_is_standardised(
    tmp_path: Path, counts: Any, run: Any
) -> None:
    risky = [True, False, False, True]
    rule = Combine(rule="safety_first", safety="counts_2", helpfulness="counts", is_safety="risky")
    given = samples(tmp_path, 4, 3, risky=risky)
    rows, _, _ = run(Score(samples=given, rewards=counts, combine=rule))
    taken = np.array(
        [
            answer["text"].count("b" if row["columns"]["risky"] else "a")
            for row in rows
            for answer in row["completions"]
        ]
    )  # a count is never below the logit of 0.15
    assert final(rows) == pytest.approx((taken - taken.mean()) / taken.std(), abs=1e-12)


# -- kills ---------------------------------------------------------------------------------------


def test_a_kill_in_any_shard_or_while_joining_ends_with_the_same_bytes(
    tmp_path: Path, counts: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = samples(tmp_path, 5, 2)
    stage = Score(samples=given, rewards=counts, combine=Combine(rule="lower"), shard=2)
    _, whole, _ = run(stage, "whole")
    calls: list[int] = []

    def dies(function: Any, at: int) -> Any:
        def wrapped(*args: Any, **given: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*args, **given)

        return wrapped

    kills = [(rewards, "call", 2), (rewards, "call", 4), (scorer.combining, "inputs", 12)]
    kills += [(scorer, "_with", 7), (scorer, "summary", 1)]
    for place, name, at in kills:
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(place, name, dies(getattr(place, name), at))
            run(stage, "killed")
    (tmp_path / "log").unlink()
    _, killed, _ = run(stage, "killed")
    assert not (tmp_path / "log").exists(), "what was scored is scored again"
    files = [Scored(out.path).files() for out in (whole, killed)]
    assert len(files[0]) == len(files[1]) == 3
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


# -- rewards that fail ---------------------------------------------------------------------------

FAILS = """
from align.settings import Reward

class Fails(Reward):
    def __call__(self, *, prompts, completions, **columns):
        texts = [one[0]["content"] for one in completions]
        {}
"""


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return [1 / (len(t) - 7) for t in texts]", "ZeroDivisionError: "),
        ("return [float('nan') if len(t) == 7 else 1.0 for t in texts]", "returned nan as score"),
        ("return [1.0 for t in texts if len(t) != 7]", "returned 0 results for 1 answers"),
    ],
    ids=["raises", "not a number", "one too few"],
)
def test_an_answer_a_reward_fails_on_is_named_and_the_others_are_kept(
    body: str, error: str, tmp_path: Path, reward: Any, run: Any, capsys: Any
) -> None:
    given = samples(tmp_path, 4, 3)
    rows, out, _ = run(Score(samples=given, rewards=[reward(FAILS.format(body), "fails")]))
    said = "» 1 of 12 answers have no score: fails fails on 1, as on answer 1 of p2: "
    assert said in capsys.readouterr().err
    assert [score is None for score in final(rows)] == [len(t) == 7 for t in texts(rows)]
    [example] = out.counts["failed.fails"]["examples"]
    assert (example["id"], example["index"]) == ("p2", 1) and error in example["error"]
    assert out.counts["failed.fails"]["n"] == out.counts["no_score"]["n"] == 1


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise KeyError('gold')", "fails on 12 of 12 answers, as on answer 0 of p0: KeyError"),
        ("return [1.0, 2.0, 3.0]", "returned 3 results for 12 answers"),
        ("return [None for t in texts]", "No answer got a score"),
    ],
)
def test_a_reward_that_fails_on_most_answers_stops_the_stage_with_a_sentence(
    body: str, sentence: str, tmp_path: Path, reward: Any, run: Any
) -> None:
    given = samples(tmp_path, 4, 3)
    with pytest.raises(StageFailed) as failure:
        run(Score(samples=given, rewards=[reward(FAILS.format(body), "fails")]))
    assert sentence in str(failure.value)


def test_a_reward_that_fails_is_not_tried_on_everything(
    tmp_path: Path, reward: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "SURE", 6)
    given = samples(tmp_path, 9, 2)
    bad = reward(FAILS.format("return [1 / (len(t) > 5) for t in texts]"), "fails")
    with pytest.raises(StageFailed, match="fails on 5 of 6 answers, as on answer 0 of p2"):
        run(Score(samples=given, rewards=[bad], shard=1))


# -- what is known before ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ({"count": 1.0}, "count"),
        (Combine(rule="min", of=["counts", "counts_3"]), "counts_3"),
        (Combine(rule="safety_first", safety="safe", helpfulness="counts"), "safe"),
    ],
)
def test_a_rule_for_what_is_no_reward_is_a_problem_of_the_recipe(
    rule: Any, name: str, tmp_path: Path, counts: Any
) -> None:
    stage = Score(samples=samples(tmp_path, 1, 1), rewards=counts, combine=rule)
    assert list(stage.check()) == [
        ("combine", f'"{name}" is none of the rewards: counts, counts_2.')
    ]


@pytest.mark.parametrize(
    ("rule", "fact"),
    [
        ({}, "The block is empty: name weights, of counts, counts_2, or a rule."),
        (Combine(rule="lower", of=["counts"]), '"lower" goes by what rewards disagree on'),
    ],
)
def test_a_rule_that_combines_nothing_is_a_problem_of_the_recipe(
    rule: Any, fact: str, tmp_path: Path, counts: Any
) -> None:
    stage = Score(samples=samples(tmp_path, 1, 1), rewards=counts, combine=rule)
    [(key, message)] = stage.check()
    assert key == "combine" and message.startswith(fact)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_is_a_finite_number(weight: float, tmp_path: Path, counts: Any) -> None:
    with pytest.raises(ValueError, match="finite number"):
        Score(samples=samples(tmp_path, 1, 1), rewards=counts, combine={"counts": weight})


def test_a_detail_of_a_reward_is_found_when_it_is_there(
    tmp_path: Path, counts: Any, run: Any
) -> None:
    stage = Score(samples=samples(tmp_path, 1, 1), rewards=counts, combine={"counts.strict": 1.0})
    assert not list(stage.check())
    with pytest.raises(StageFailed, match=r'no "counts.strict", only counts, counts_2\. With'):
        run(stage)


# -- workers -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="orphans die on Linux only")
def test_workers_make_the_same_bytes(
    tmp_path: Path, counts: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a worker is told where the rewards' files are
    monkeypatch.setattr(launch, "devices", lambda: 0)  # else no more of them than GPUs
    given: dict[str, Any] = {
        "samples": samples(tmp_path, 7, 2),
        "rewards": counts,
        "combine": Combine(rule="lower"),
        "shard": 2,
    }
    _, alone, expected = run(Score(**given), "alone")
    stage = Score(**given, workers=Workers(count=2))
    (tmp_path / "several").mkdir()
    record = {"use": "score", "settings": records.dump(stage)}
    (tmp_path / "several" / "stage.json").write_text(json.dumps(record))
    _, several, metrics = run(stage, "several")
    assert metrics == expected
    files = [Scored(out.path).files() for out in (alone, several)]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
