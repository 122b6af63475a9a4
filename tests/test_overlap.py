"""Items that a model has learnt from: found by their words, in whatever the chain was taught."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import overlap, records, shelf, store
from align.artifacts import Conversations, Model, Preferences, Prompts, RewardModel, Samples, Scored
from align.data import Source
from align.out import Out
from align.reporting.wording import learners
from align.settings import Reward, Stage, Task
from align.stages.dpo import Dpo
from align.stages.pair import Pair
from align.stages.reward_model import TrainRewardModel
from align.stages.sample import Sample
from align.stages.score import Score
from align.stages.sft import Sft

Write = Callable[[str, list[dict[str, Any]]], Path]

LONG = (
    "A farmer has seven fields, and on each of them stand twelve trees that bear four apples a "
    "day. How many apples does she pick in a week?"
)
SHORT = "What is the capital of Peru?"


class Quiz(Task):
    """Two questions."""

    ask = "answer"


def item(name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "prompt": [{"role": "user", "content": text}], **more}


ITEMS = [item("long", LONG), item("short", SHORT), item("other", "Who wrote the Iliad, and when?")]


@pytest.fixture
def out(tmp_path: Path) -> Out:
    made = Out(tmp_path / "runs" / "evaluate", tmp_path / "runs" / ".cache")
    made.path.mkdir(parents=True)
    return made


def base(tmp_path: Path) -> Model:
    return Model(tmp_path / "base", spec={"base": {"path": "base"}, "quantization": None})


def trained(tmp_path: Path, data: Any, name: str = "sft") -> Model:
    model = Model(tmp_path / "runs" / f"{name}-1", stage=Sft(model=base(tmp_path), data=[data]))
    model.name = name
    return model


def found(models: Any, out: Out, items: Any = ITEMS) -> dict[str, Any]:
    [entry] = overlap.find(models, [("quiz", Quiz(), items)], out)
    return entry


def test_a_question_is_found_as_it_is_whatever_case_and_marks(
    tmp_path: Path, write_rows: Write, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "Hello.", "completion": "Hi."},
        {"prompt": "what is the capital of  PERU", "completion": "Lima."},
    ]
    model = trained(tmp_path, Source(path=str(write_rows("data.jsonl", rows))))
    entry = found([model, base(tmp_path)], out)
    assert (entry["items"], entry["exact"], entry["partial"]) == (3, 1, 0)
    assert entry["models"] == ["sft"]
    [example] = entry["examples"]
    assert (example["id"], example["overlap"], example["question"]) == ("short", "exact", SHORT)
    assert "1 of 3 items of quiz stand in the training data of sft, 1 of them as they are" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        (f"Question: {LONG}\nAnswer:", 1),
        (" ".join(LONG.split()[:16]), 1),  # 16 of 28 words
        (" ".join(LONG.split()[:14]), 0),  # 14 of 28 are not more than half
        (" ".join(LONG.split()[:7] + ["so"] + LONG.split()[7:14] + ["so"]), 0),  # no run of 8
        (f"Someone said: {SHORT}", 0),  # short ones are looked for as they are
    ],
)
def test_a_long_question_is_found_in_part_by_runs_of_eight_words(
    tmp_path: Path, write_rows: Write, out: Out, text: str, hits: int
) -> None:
    assert len(LONG.split()) == 28
    model = trained(tmp_path, Source(path=str(write_rows("data.jsonl", [{"text": text}]))))
    entry = found([model], out)
    assert (entry["exact"], entry["partial"]) == (0, hits)


def test_runs_of_several_rows_are_no_overlap_together(
    tmp_path: Path, write_rows: Write, out: Out
) -> None:
    words = LONG.split()
    rows = [{"text": " ".join(words[:10])}, {"text": " ".join(words[14:24])}]
    apart = trained(tmp_path, Source(path=str(write_rows("apart.jsonl", rows))))
    assert found([apart], out)["partial"] == 0
    together = [{"prompt": rows[0]["text"], "completion": rows[1]["text"]}]
    one = trained(tmp_path, Source(path=str(write_rows("one.jsonl", together))), "one")
    assert found([one], out)["partial"] == 1


def test_the_examples_before_a_question_do_not_count(
    tmp_path: Path, write_rows: Write, out: Out
) -> None:
    model = trained(tmp_path, Source(path=str(write_rows("data.jsonl", [{"text": LONG}]))))
    shots = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "2,352"}]
    asked = [*shots, {"role": "user", "content": SHORT}]
    dialog = {"id": "dialog", "prompt": asked, "question": SHORT}
    plain = {"id": "plain", "prompt": f"Q: {LONG}\nA: 2,352\nQ: {SHORT}\nA:", "question": SHORT}
    assert found([model], out, [dialog, plain])["partial"] == 0
    whole = {"id": "document", "prompt": "", "completion": LONG}
    assert found([model], out, [whole])["exact"] == 1


def test_a_last_turn_that_many_people_say_is_no_question(
    tmp_path: Path, write_rows: Write, out: Out
) -> None:
    said = [("user", "Can you name a river in Peru?"), ("assistant", "Shall I?"), ("user", "Sure")]
    item = {"id": "a", "prompt": [{"role": role, "content": text} for role, text in said]}
    for text, hits in (("Sure", 0), ("Can you name a river in Peru? Shall I? Sure", 1)):
        folder = tmp_path / text[:4]
        model = trained(folder, Source(path=str(write_rows("data.jsonl", [{"text": text}]))))
        assert found([model], out, [item])["exact"] == hits, text


def test_what_many_items_share_is_the_form_of_the_task_and_no_items_own(
    tmp_path: Path, write_rows: Write, out: Out
) -> None:
    """Examples before every question stand in the data; the question of one item does, too."""
    shot = "Question: " + " ".join(f"example{i}" for i in range(60)) + "\nAnswer: so\n"
    asked = [" ".join(f"w{k}of{i}" for k in range(20)) for i in range(40)]
    items = [{"id": str(i), "prompt": shot + text} for i, text in enumerate(asked)]
    rows = [{"text": shot}, {"text": f"It is known that {asked[7]}."}]
    model = trained(tmp_path, Source(path=str(write_rows("data.jsonl", rows))))
    entry = found([model], out, items)
    assert [example["id"] for example in entry["examples"]] == ["7"]
    assert (entry["exact"], entry["partial"]) == (0, 1)


def artifact(cls: Any, path: Path, rows: list[dict[str, Any]], stage: Stage) -> Any:
    """What a stage made, as it lies in the store."""
    path.mkdir(parents=True)
    Out(path, path.parent / ".cache").write_rows(rows)
    (path / "artifact.json").write_text(json.dumps({"made": path.name}))
    record = {"use": shelf.source(type(stage)).stem, "settings": records.dump(stage)}
    store.write_json(path / "stage.json", record)
    return cls(path, stage=stage)


def test_a_chain_is_followed_to_all_it_learnt_from(
    tmp_path: Path, write_rows: Write, out: Out
) -> None:
    """The reward model's pairs and the prompts that were answered teach the policy, too."""

    def data(name: str, text: str) -> Source:
        rows = [{"prompt": text, "completion": "a", "chosen": "a", "rejected": "b"}]
        return Source(path=str(write_rows(f"{name}.jsonl", rows)))

    runs = tmp_path / "runs"
    held_out = data("held_out", "Who wrote the Iliad, and when?")
    stage = Sft(model=base(tmp_path), data=[data("sft", LONG)], eval_data=[held_out])
    sft = Model(runs / "sft-1", stage=stage)
    judged = TrainRewardModel(model=base(tmp_path), data=[data("pairs", SHORT)])
    judge = RewardModel(runs / "reward_model-1", stage=judged)
    asked = Sample(model=sft, prompts=[data("prompts", "Why?")])
    samples = artifact(Samples, runs / "sample-1", [], asked)
    path = shelf.find("reward/model.py")
    assert path is not None
    reward = shelf.load(path, Reward)(model=judge)
    scored = artifact(Scored, runs / "score-1", [], Score(samples=samples, rewards=[reward]))
    pair = {"prompt": [{"role": "user", "content": "How?"}], "chosen": [], "rejected": []}
    pairs = artifact(Preferences, runs / "pair-1", [pair], Pair(scores=scored))
    dpo = Model(runs / "dpo-1", stage=Dpo(model=sft, data=[pairs]))
    sft.name, dpo.name, judge.name = "sft", "dpo", "judge"
    every = [*ITEMS, item("why", "Why?"), item("how", "How?")]
    entry = found([dpo], out, every)
    names = {example["id"] for example in entry["examples"]}
    assert names == {"long", "short", "why", "how"} and entry["exact"] == 4
    entry = found([sft, judge, dpo], out, every)
    assert entry["models"] == ["sft", "dpo"] and entry["exact"] == 4
    assert {example["id"] for example in found([sft], out, every)["examples"]} == {"long"}

    dpo_path = artifact(Model, runs / "dpo-2", [], dpo.stage).path  # as `align eval` names one
    shutil.rmtree(runs / "pair-1")
    entry = found([Model(dpo_path)], out, every)
    assert entry["exact"] == 0 and "not in the store any more" in entry["not_read"]["pair-1"]


def test_a_record_of_another_version_is_said(tmp_path: Path, write_rows: Write, out: Out) -> None:
    data = Source(path=str(write_rows("data.jsonl", [{"text": SHORT}])))
    stage = Sft(model=base(tmp_path), data=[data])
    path = artifact(Model, tmp_path / "runs" / "sft-1", [], stage).path
    assert found([Model(path)], out)["exact"] == 1
    record = json.loads((path / "stage.json").read_text())
    record["settings"]["of_tomorrow"] = 1
    store.write_json(path / "stage.json", record)
    assert "of another version" in found([Model(path)], out)["not_read"]["sft-1"]


def test_what_is_gone_is_said_and_the_rest_is_looked_at(
    tmp_path: Path, write_rows: Write, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows("data.jsonl", [{"text": SHORT}])
    there, gone = Source(path=str(file)), Source(path=str(tmp_path / "gone.jsonl"))
    models = [trained(tmp_path, there), trained(tmp_path, gone, "other")]
    entry = found(models, out)
    assert entry["exact"] == 1 and "gone.jsonl cannot be read" in str(entry["not_read"])
    assert "gone.jsonl" in capsys.readouterr().err


def test_every_model_is_counted_by_itself(
    tmp_path: Path, write_rows: Write, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"one": [LONG], "all": [LONG, SHORT]}
    files = {n: write_rows(f"{n}.jsonl", [{"text": t} for t in said]) for n, said in texts.items()}
    models = [trained(tmp_path, Source(path=str(file)), name) for name, file in files.items()]
    gone = trained(tmp_path, Source(path=str(tmp_path / "gone.jsonl")), "gone")
    entry = found([base(tmp_path), *models, gone], out)
    assert entry["exact"] == 2 and entry["by"] == {
        "one": {"exact": 1, "partial": 0, "not_read": []},
        "all": {"exact": 2, "partial": 0, "not_read": []},
        "gone": {"exact": 0, "partial": 0, "not_read": [*entry["not_read"]]},
    }
    assert "in the training data of one (1), all (2), 2 of them" in capsys.readouterr().err
    entry["by"]["one"]["exact"] = 2
    assert learners(entry) == learners({**entry, "by": {}}) == "one, all"


def test_items_without_a_text_are_not_said_to_be_unknown_to_the_chain(
    tmp_path: Path, write_rows: Write, out: Out
) -> None:
    model = trained(tmp_path, Source(path=str(write_rows("data.jsonl", [{"text": SHORT}]))))
    entry = found([model], out, [{"id": "a"}, {"id": "b", "question": SHORT}])
    assert (entry["exact"], entry["not_read"]) == (
        1,
        {"quiz": "1 items have no text of their own."},
    )


def test_what_was_found_is_kept_by_content(
    tmp_path: Path, write_rows: Write, out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_rows("data.jsonl", [{"text": LONG}])
    model = trained(tmp_path, Source(path=str(file)))
    looked: list[int] = []
    original = overlap.Questions.find

    def find(self: Any, read: Any, rows: list[int]) -> Any:
        looked.extend(sorted(set(rows)))
        return original(self, read, rows)

    monkeypatch.setattr(overlap.Questions, "find", find)
    first = found([model], out)
    assert (found([model], out), len(looked)) == (first, 1)
    more = [("quiz", Quiz(), ITEMS), ("more", Quiz(), [item("new", LONG)])]
    assert [one["exact"] for one in overlap.find([model], more, out)] == [1, 1]
    assert len(looked) == 2
    write_rows("data.jsonl", [{"text": "Nothing of the kind."}, {"text": SHORT}])
    assert [one["exact"] for one in overlap.find([model], more, out)] == [1, 0]
    assert len(looked) == 4


def test_the_quickstart_holds_out_what_it_asks(tmp_path: Path, out: Out) -> None:
    def made(cls: Any, name: str, **settings: Any) -> Any:
        file = shelf.find(f"recipes/quickstart/{name}.py")
        assert file is not None
        stage = shelf.load(file, Stage)(**settings)
        path = tmp_path / "runs" / f"{name}-{len(settings)}"
        path.mkdir(parents=True)
        assert isinstance(stage, Stage)
        stage.run(Out(path, out.cache))
        return cls(path, stage=stage)

    asked = made(Prompts, "prompts", rows=40, held_out=True)
    sft = Sft(model=base(tmp_path), data=[made(Conversations, "demonstrations", rows=1000)])
    task = shelf.load(shelf.SHELF / "eval" / "world.py", Task)(data=asked)
    assert isinstance(task, Task)
    model = Model(tmp_path / "runs" / "sft-1", stage=sft)
    [entry] = overlap.find([model], [("world", task, list(task.items()))], out)
    assert (entry["exact"], entry["partial"], entry["not_read"]) == (0, 0, {})


@pytest.mark.skipif("ALIGN_DATA" not in os.environ, reason="ALIGN_DATA names no folder with data")
def test_the_two_twins_of_gsm8k_are_found(tmp_path: Path, out: Out) -> None:
    """Test questions 602 (a plane) and 632 (stamps) are training questions with other numbers."""
    folder = Path(os.environ["ALIGN_DATA"], "gsm8k")
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    items = [item(str(i), json.loads(line)["question"]) for i, line in enumerate(lines)]
    model = trained(tmp_path, Source(path=str(folder / "train.jsonl")))
    entry = found([model], out, items)
    assert (entry["exact"], entry["partial"]) == (0, 2)
    assert {example["id"] for example in entry["examples"]} == {"602", "632"}
