"""The knowledge probe: every row of its decision table, by answers and verdicts that are known."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Fake, serve

from align import models, recipe
from align.artifacts import Conversations, Model
from align.data import Source
from align.errors import StageFailed
from align.estimate import totals
from align.generation.endpoint import Endpoint
from align.out import Out
from align.scoring import knowledge
from align.scoring.judging import JudgeServer
from align.stages.probe import Probe

Write = Callable[[str, list[dict[str, Any]]], Path]
Run = Callable[..., tuple[dict[str, dict[str, Any]], Out]]

TOWNS = {
    "Aster": ["in 1200"] * 4,
    "Birk": ["in 1200", "in 1200", "in 1200", "in 1300"],
    "Calm": ["in 1300"] * 4,
    "Dorn": ["in 1300", "in 1300", "in 1300", "I cannot say"],
    "Elm": ["in 1200", "in 1200", "in 1300", "in 1300"],
    "Fern": ["I cannot say"] * 3 + ["in 1200"],
    "Gale": ["it is a mystery"] * 4,
}
"""What the model says of the year when each of them was founded, which is 1200."""


def town(text: str) -> str:
    return next((name for name in TOWNS if name in text), "")


class Script:
    """A model and a judge: both say what they are told to, by what they are asked."""

    def __init__(self) -> None:
        self.questions = {
            name: f"Question: When was {name} founded?\nAnswer: 1200" for name in TOWNS
        }
        self.judges = True
        self.asked: dict[str, int] = {}

    def __call__(self, body: dict[str, Any], k: int) -> str:
        text = body["messages"][-1]["content"]
        if "weather" in text:  # what a server is asked first
            return f"probe {body['seed'] if body['temperature'] else 0}"
        if text.startswith(knowledge.QUESTION):
            return self.questions[town(text)]
        for key, asked in (("correct", knowledge.CORRECT), ("informative", knowledge.INFORMATIVE)):
            if text.startswith(asked):
                return self.verdict(key, text)
        place = self.asked[town(text)] = self.asked.get(town(text), -1) + 1
        return TOWNS[town(text)][place]

    def verdict(self, key: str, text: str) -> str:
        answer = re.findall(r"Answer:\n=== \w+ ===\n(.*)\n", text)[-1]
        assert ("Text:\n" in text) == (key == "correct")  # what is informative is so without it
        if "mystery" in answer:
            return "Who knows?"
        right = "1200" in answer or "31" in answer
        informative = not re.search("cannot say|do not know", answer)
        says = right if key == "correct" else informative
        return json.dumps({"reason": "so", key: says if self.judges else True})


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny model, which is said to read 4,096 tokens; here they are bytes."""
    path = tmp_path_factory.mktemp("probe") / "model"
    shutil.copytree(tiny_model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return Model(path, spec={"base": {"path": str(path)}, "quantization": None, "adapter": False})


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def fake(model: Model, script: Script) -> Iterator[Fake]:
    tokenizer = models.tokenizer(model)
    with serve(Fake(tokenizer, names=[str(model.path)], most=1, say=script)) as fake:
        yield fake


@pytest.fixture
def probe(model: Model, fake: Fake, write_rows: Write, tmp_path: Path) -> Run:
    def run(name: str = "probe", towns: Any = TOWNS, **settings: Any) -> Any:
        rows = [{"id": town, "text": f"The town of {town} was founded in 1200."} for town in towns]
        data = Source(path=str(write_rows("documents.jsonl", rows)))
        out = Out(tmp_path / name, tmp_path / "cache")
        out.path.mkdir(exist_ok=True)
        engine = Endpoint(url=fake.url, send="messages", concurrency=1)
        given = {"n": 4, "engine": engine, **settings}
        made = Probe(model=model, data=[data], **given).run(out)
        assert isinstance(made, Conversations)
        return {row["snippet"].partition(".")[0]: row for row in made.rows()}, out

    return run


def removed(out: Out) -> dict[str, str]:
    """Why the question on each town was removed."""
    lines = (out.path / "removed.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["facts"]["snippet"].partition(".")[0]: row["reason"] for row in rows}


def test_what_is_known_is_answered_what_is_wrong_throughout_declined_and_the_rest_dropped(
    probe: Run, fake: Fake
) -> None:
    rows, out = probe()
    assert {name: row["why"] for name, row in rows.items()} == {
        "Aster": "known",
        "Birk": "known",
        "Calm": "unknown",
    }
    question = {"role": "user", "content": "When was Birk founded?"}
    assert rows["Birk"]["messages"] == [question, {"role": "assistant", "content": "in 1200"}]
    assert rows["Calm"]["messages"][1]["content"] in knowledge.REFUSALS
    right, wrong = ({"correct": value, "informative": True} for value in (True, False))
    assert rows["Birk"]["verdicts"] == [right, right, right, wrong]
    assert rows["Birk"]["id"] == "Birk.0/0" and rows["Birk"]["reference"] == "1200"
    assert removed(out) == {
        "Dorn": "mixed",
        "Elm": "mixed",
        "Fern": "uninformative",
        "Gale": "unjudged",
    }
    counts = {name: count["n"] for name, count in out.counts.items()}
    assert counts["snippets"] == counts["questions"] == 7
    assert counts["kept.known"] == 2 and counts["kept.unknown"] == 1
    assert counts["dropped.mixed"] == 2 and counts["dropped.unjudged"] == 1
    answered = [body for body in fake.asked if body["messages"] == [question]]
    assert len(answered) == 4  # by the question alone: the snippet is not shown


def test_the_thresholds_are_the_users(probe: Run) -> None:
    rows, _ = probe(towns=["Birk", "Dorn"], known=1.0, unknown=0.75, refusals=["Pass."])
    assert rows.keys() == {"Dorn"}
    assert rows["Dorn"]["messages"][1]["content"] == "Pass."


def test_questions_that_leak_their_answer_come_twice_or_are_none_are_dropped_unanswered(
    probe: Run, script: Script, fake: Fake
) -> None:
    script.questions["Birk"] = script.questions["Aster"]
    script.questions["Calm"] = "Question: Was Calm founded in 1200?\nAnswer: 1200."
    script.questions["Dorn"] = "That is a fine text about Dorn."
    rows, out = probe(towns=["Aster", "Calm", "Dorn"], questions=2)
    assert rows.keys() == {"Aster"}
    counts = {name: count["n"] for name, count in out.counts.items() if "dropped" in name}
    assert counts == {"dropped.duplicate": 1, "dropped.leaks": 2, "dropped.no_question": 2}
    asked = [body["messages"][-1]["content"] for body in fake.asked]
    assert asked.count("When was Aster founded?") == 4
    assert not any(one.startswith("Was Calm") for one in asked)
    TOWNS["Aster"] *= 2
    try:
        script.asked.clear()
        assert probe("twice", towns=["Aster", "Birk"])[0].keys() == {"Aster"}
    finally:
        del TOWNS["Aster"][4:]


def test_a_served_judge_is_asked_for_verdicts_and_each_once(probe: Run, fake: Fake) -> None:
    server = JudgeServer(url=fake.url, model="judge")
    rows, _ = probe(towns=["Aster", "Calm"], judge_server=server)
    assert {name: row["why"] for name, row in rows.items()} == {
        "Aster": "known",
        "Calm": "unknown",
    }
    judged = [body for body in fake.asked if body["model"] == "judge"]
    assert {body["temperature"] for body in judged} == {0}
    # of three answers that it must tell apart, and of one for each town: four times the same
    assert len(judged) == 2 * (3 + 2)


def test_a_judge_that_cannot_tell_right_from_wrong_is_refused_before_anything_is_asked(
    probe: Run, script: Script, fake: Fake
) -> None:
    script.judges = False
    with pytest.raises(StageFailed, match=r'"It is 58 metres tall\.".*correct.*says yes.*judge:'):
        probe()
    assert not any(
        body["messages"][0]["content"].startswith(knowledge.QUESTION) for body in fake.asked
    )


def test_where_nothing_is_certain_the_stage_says_what_there_was(probe: Run) -> None:
    with pytest.raises(StageFailed, match=r"\(mixed: 1, unjudged: 1\)"):
        probe(towns=["Elm", "Gale"])


def test_a_document_is_cut_into_parts_of_equal_length_of_which_some_are_drawn() -> None:
    text = "  ".join(f"w{i}" for i in range(25)) + "\n"
    documents = [{"id": f"d{i}", "text": text} for i in range(40)]
    cut = list(knowledge.snippets(documents[:1], 10, None, 0))
    assert [row["id"] for row in cut] == ["d0.0", "d0.1"]
    assert [len(row["text"].split()) for row in cut] == [12, 13]
    assert "  ".join(row["text"] for row in cut) == text.strip()
    drawn = [row["id"] for row in knowledge.snippets(documents, 10, 1, 0)]
    assert len(drawn) == 40 and {name[-1] for name in drawn} == {"0", "1"}
    assert drawn[5:6] == [row["id"] for row in knowledge.snippets(documents[5:6], 10, 1, 0)]


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("Question: Who?\nAnswer: Ida", ("Who?", "Ida")),
        ("Sure!\n\n**Question:** Who?\n\n**Answer:** Ida.", ("Who?", "Ida.")),
        ("question : Who?\nanswer : Ida", ("Who?", "Ida")),
        ("Question: Who?", None),
        ("Question:\nAnswer: Ida", None),
        ("Question: Who?\nAnswer: ?", None),
        ("The question: is it so?\nAnswer: no", None),
    ],
)
def test_a_question_and_its_answer_are_read_or_they_are_not(said: str, read: Any) -> None:
    assert knowledge.read(said) == read


def test_what_contradicts_itself_is_refused_before_anything_runs(model: Model) -> None:
    server = JudgeServer(url="http://localhost:1/v1", model="judge")
    both = {"judge": model, "judge_server": server, "known": 0.5, "unknown": 0.5}
    greedy = {"generation": {"do_sample": False}}
    problems = dict(Probe(model=model, data=[], **both, **greedy).check())
    assert problems.keys() == {"judge", "known", "n"}


def test_a_recipe_chains_both_data_stages_and_says_what_memory_they_take(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "A town."}\n')
    (tmp_path / "dialogs.jsonl").write_text('{"prompt": "Hi", "response": "Hello."}\n')
    (tmp_path / "recipe.yaml").write_text(
        f"""base: {tiny_model}
stages:
  probe: {{model: base, data: texts.jsonl}}
  judged: {{use: probe, model: base, data: texts.jsonl, judge: {tiny_model}}}
  asked: {{use: probe, model: base, data: texts.jsonl, engine: "http://127.0.0.1:9/v1",
          judge_server: {{url: "http://127.0.0.1:9/v1", model: large}}}}
  ghost: {{model: base, data: dialogs.jsonl, instructions: [Answer in French.]}}
  sft: {{model: base, data: [probe, ghost]}}
"""
    )
    plan = recipe.read("recipe.yaml", ())
    found = {name: totals.stage(stage).memory for name, stage in plan.stages.items()}
    assert found["asked"] == {} and found["ghost"] and found["probe"]
    assert found["judged"].keys() - found["probe"].keys() == {"judge"}
