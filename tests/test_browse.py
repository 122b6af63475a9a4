"""The page of `align view`: what it lists and finds, and the index that it reads."""

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browsing import (
    Ask,
    Row,
    ask,
    compared,
    ids,
    items,
    make,
    plan,
    rated,
    reply,
    user,
    whole,
    write,
)

from align import recipe, store
from align.artifacts import Model
from align.errors import StageFailed
from align.recipe import Plan
from align.reporting import index, places
from align.reporting.browse import PAGE, Browser
from align.reporting.jobs import Waiting
from align.settings import Stage

__all__ = ["ask", "plan"]


# -- lists ---------------------------------------------------------------------------------------


def test_candidates_are_filtered_and_sorted_by_what_their_scores_say(plan: Plan, ask: Ask) -> None:
    rows = [
        rated("agree", (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)),
        rated("apart", (1.0, 3.0), (2.0, 2.0), (3.0, 1.0)),
        rated("half", (1.0, 2.0), (3.0, 3.0), (2.0, 1.0)),
        rated("tied", (0.5, 1.0), (0.5, 2.0)),
        rated("cut", (0.0, 0.0), (None, 1.0), finish="length"),
    ]
    make(plan, "rated", rows)
    assert ids(ask("rated")) == ["agree", "apart", "half", "tied", "cut"]
    assert ids(ask("rated", filter="disagree")) == ["apart"]
    assert ids(ask("rated", filter="cut")) == ["cut"]
    assert ids(ask("rated", filter="tied")) == ["tied", "cut"]
    assert ids(ask("rated", filter="not scored")) == ["cut"]
    assert ask("rated")["sorts"]["disagreement"] == "disagreement of rewards"
    apart = ask("rated", sort="disagreement")
    told = {row["id"]: row["numbers"][""]["disagreement"] for row in apart["rows"]}
    assert told == {"apart": 1.0, "half": 1 / 3, "agree": 0.0, "tied": 0.0, "cut": 0.0}
    assert ids(apart)[:2] == ["apart", "half"]
    assert ids(ask("rated", sort="best", up="1"))[:2] == ["cut", "tied"]
    assert ids(ask("rated", sort="longest"))[-2:] == ["tied", "cut"]


def test_items_that_flipped_between_two_models_are_found(plan: Plan, ask: Ask) -> None:
    items(plan, "sft", "world", {"a": 1.0, "b": 0.0, "c": 1.0, "d": None})
    items(plan, "dpo", "world", {"a": 0.0, "b": 1.0, "c": 1.0, "d": 1.0})
    chosen = {"ours": "dpo-1", "theirs": "sft-1"}
    assert ids(ask("evaluate", filter="flipped", **chosen)) == ["a", "b"]
    assert ids(ask("evaluate", filter="lost", **chosen)) == ["a"]
    assert ids(ask("evaluate", filter="won", **chosen)) == ["b"]
    assert ids(ask("evaluate", filter="won", ours="sft-1", theirs="dpo-1")) == ["a"]
    assert ids(ask("evaluate", filter="not graded", ours="sft-1", theirs="dpo-1")) == ["d"]
    assert ids(ask("evaluate", filter="disagree", **chosen)) == ["a", "b"]
    assert ids(ask("evaluate", sort="difference", **chosen)) == ["b", "c", "a", "d"]
    items(plan, "sft", "facts", {"a": 1.0})
    found = ask("evaluate", task="world")
    assert found["parts"] == {"sft-1": "sft", "dpo-1": "dpo"}
    assert found["rows"][0]["numbers"]["sft-1"] == {"numbers.right": 1.0}


def test_the_main_number_of_a_task_is_the_first_and_any_can_be_chosen(plan: Plan, ask: Ask) -> None:
    numbers = {"strict": 1.0, "flexible": 0.0, "accuracy": None}
    row = {"id": "a", "prompt": "2 + 2 =", "options": [-1.0], "numbers": numbers}
    for model, strict in (("sft-1", 1.0), ("dpo-1", 0.0)):
        one = {**row, "numbers": {**numbers, "strict": strict}}
        write(plan.stages["evaluate"].artifact.path / "items" / "sums" / f"{model}.jsonl", [one])
    found = ask("evaluate", filter="flipped")
    assert (ids(found), found["taken"]["metric"]) == (["a"], "numbers.strict")
    assert found["metrics"] == ["numbers.strict", "numbers.flexible", "numbers.accuracy"]
    assert ids(ask("evaluate", filter="flipped", metric="numbers.flexible")) == []
    assert ask("evaluate")["sorts"]["numbers.flexible"] == "flexible"


def test_three_rewards_disagree_pair_by_pair(plan: Plan, ask: Ask) -> None:
    row = rated("a", (1.0, 3.0), (2.0, 2.0), (3.0, 1.0))
    for answer in row["completions"]:
        answer["scores"] |= {"judge": answer["scores"]["length"], "judge.detail": 1.0}
    make(plan, "rated", [row])
    sorts = ask("rated")["sorts"]
    apart = {name: words for name, words in sorts.items() if words.startswith("disagreement of ")}
    assert list(apart.values()) == [
        "disagreement of rewards",
        "disagreement of model and length",
        "disagreement of model and judge",
        "disagreement of length and judge",
    ]
    [told] = ask("rated", sort="apart.length and judge")["rows"]
    assert told["numbers"][""]["apart.length and judge"] == 0.0
    [told] = ask("rated", sort="apart.model and judge")["rows"]
    assert told["numbers"][""]["apart.model and judge"] == 1.0


def test_models_are_compared_as_the_report_did_and_their_answers_are_told(plan: Plan) -> None:
    items(plan, "sft", "world", {"a": 1.0}, texts=["one", "two"], finishes=["stop", "length"])
    items(plan, "dpo", "world", {"a": 0.0})
    file = plan.stages["evaluate"].artifact.path / "items" / "world" / "dpo-1.jsonl"
    before = json.loads(file.read_text())  # as earlier versions wrote it
    write(file, [{k: v for k, v in before.items() if k[:-1] not in ("text", "finishe")}
                 | {"text": "old", "finish": "no room"}])  # fmt: skip
    step = compared("sft", "sft-1", "dpo", "dpo-1")
    control = {**compared("dpo", "dpo-1", "sft", "sft-1"), "role": "control"}
    report = plan.stages["evaluate"].artifact.path / "report.json"
    report.write_text(json.dumps({"comparisons": [step, control]}))
    browser = Browser(plan)
    found = whole(lambda: browser.rows({"stage": "evaluate"}))
    assert (found["taken"]["ours"], found["taken"]["theirs"]) == ("sft-1", "dpo-1")
    row = browser.row({"stage": "evaluate", "n": str(found["rows"][0]["n"])})
    assert row["models"]["sft-1"]["answers"] == [("one", "stop"), ("two", "length")]
    assert row["models"]["dpo-1"] == {"answers": [("old", "no room")], "numbers": {"right": 0.0}}


class Asking(Stage):
    """An evaluation, as far as it names its models."""

    models: list[Model]


def test_models_from_outside_are_compared_in_the_order_they_are_asked_in(plan: Plan) -> None:
    stage = Asking(models=[Model(Path("/m/sft-a")), Model(Path("/m/dpo-b"))])
    one = plan.stages["evaluate"] = dataclasses.replace(plan.stages["evaluate"], stage=stage)
    for model, rights in (("sft-a", (1.0, 0.0)), ("dpo-b", (1.0, 1.0))):
        rows = [
            {"id": name, "prompt": "?", "numbers": {"right": right}}
            for name, right in zip("ab", rights, strict=True)
        ]
        write(store.partial(one.artifact.path) / "items" / "world" / f"{model}.jsonl", rows)
    browser = Browser(plan)
    asked = {"stage": "evaluate", "filter": "won"}
    found = whole(lambda: browser.rows(asked))
    assert list(found["parts"]) == ["sft-a", "dpo-b"] and ids(found) == ["b"]
    store.partial(one.artifact.path).rename(one.artifact.path)
    report: Row = {"files": ["dpo-b", "sft-a"], "tasks": [{"task": "world"}]}
    report["comparisons"] = [compared("dpo-b", "/m/dpo-b", "sft-a", "/m/sft-a")]
    (one.artifact.path / "report.json").write_text(json.dumps(report))
    found = whole(lambda: browser.rows(asked))
    assert list(found["parts"]) == ["dpo-b", "sft-a"]
    assert (found["taken"]["ours"], found["taken"]["theirs"]) == ("dpo-b", "sft-a")
    assert ids(found) == ["b"]


def test_tasks_are_in_the_order_of_the_report(plan: Plan, ask: Ask) -> None:
    for task in ("facts", "sums", "world"):
        items(plan, "sft", task, {task: 1.0})
    report = {"tasks": [{"task": "world"}, {"task": "facts"}], "comparisons": []}
    (plan.stages["evaluate"].artifact.path / "report.json").write_text(json.dumps(report))
    stages = Browser(plan).chain()["stages"]
    assert stages[-1]["tasks"] == ["world", "facts", "sums"]
    assert ids(ask("evaluate")) == ["world"]


def test_names_of_a_link_that_are_none_here_are_left_out(plan: Plan, ask: Ask) -> None:
    items(plan, "sft", "world", {"a": 1.0})
    wrong = dict.fromkeys(("task", "filter", "sort", "subset", "ours", "theirs", "metric"), "no")
    found = ask("evaluate", **wrong)
    names = {"task": "world", "ours": "sft-1", "metric": "numbers.right"}
    assert found["taken"] == {**dict.fromkeys(wrong, ""), **names}
    assert ask("evaluate", sort="difference")["taken"]["sort"] == ""  # of one model there is none


def test_options_and_answers_to_compare_are_found_and_told_once(plan: Plan) -> None:
    side = [[*user("Why?"), *reply("Bees")]]
    more = {"choices": ["An oak", "A fir"], "chosen_text": side, "rejected_text": ["Wasps"]}
    items(plan, "sft", "world", {"a": 1.0}, **more)
    browser = Browser(plan)
    for words in ("a fir", "bees", "wasps"):
        asked = {"stage": "evaluate", "search": words}
        [row] = whole(lambda asked=asked: browser.rows(asked))["rows"]
    told = browser.row({"stage": "evaluate", "n": str(row["n"])})
    assert {name: told[name] for name in more} == more
    assert told["models"]["sft-1"].keys() == {"answers", "numbers"}


def test_a_candidate_says_which_stages_took_it(plan: Plan) -> None:
    row = rated("p/1", (1.0, 1.0), (3.0, 1.0), (2.0, 1.0))
    for answer in row["completions"]:
        answer["text"] = "Yes" if answer["index"] < 2 else "No"
    make(plan, "rated", [row])
    make(
        plan, "best", [{"id": "p/1/0", "prompt_id": "p/1", "messages": [*user("?"), *reply("Yes")]}]
    )
    pair = {"chosen": reply("Yes"), "rejected": reply("No"), "prompt": user("?")}
    make(plan, "pairs", [{"id": "p/1", **pair}])
    browser = Browser(plan)
    n = str(whole(lambda: browser.rows({"stage": "rated"}))["rows"][0]["n"])
    found = whole(lambda: browser.row({"stage": "rated", "n": n}))
    assert [(a["index"], a["taken"], a["tokens"]) for a in found["completions"]] == [
        (1, ["chosen by pairs"], 2),
        (2, ["rejected by pairs"], 3),
        (0, ["kept by best"], 1),
    ]


def test_rows_are_found_by_what_they_say_and_a_link_opens_their_page(plan: Plan, ask: Ask) -> None:
    rows = [rated(f"{i}", (float(i), 0.0)) for i in range(3 * PAGE)]
    rows[7]["completions"][0]["text"] = 'He said "Straße\n"'
    make(plan, "rated", rows)
    assert ids(ask("rated", search='STRASSE\n"')) == ["7"]
    assert ids(ask("rated", search="answer 0 to 77")) == ["77"]
    assert ids(ask("rated", search="token_ids")) == []
    assert ids(ask("rated", search="12")) == ["12", "112", *map(str, range(120, 130))]
    around = ask("rated", id="101", sort="best")
    assert around["start"] == 0 and "101" in ids(around) and around["total"] == 3 * PAGE
    assert ids(ask("rated", id="101"))[0] == "100"
    assert ids(ask("rated", start="100"))[0] == "100"
    assert ask("rated", start="5000")["start"] == 2 * PAGE
    assert (ask("rated", start="50", search="12")["start"]) == 0


def test_pairs_of_every_form_that_stages_take_are_listed(plan: Plan, ask: Ask) -> None:
    both = "\n\nHuman: Name a colour.\n\nAssistant: {}"
    rows = [
        {"prompt": "Name a tree.", "chosen": "An oak", "rejected": "No"},
        {"chosen": both.format("Red"), "rejected": both.format("Blue")},
        {"prompt": "Name nothing.", "chosen": "Red", "rejected": "Red"},
    ]
    make(plan, "pairs", rows)
    found = ask("pairs", sort="longer")
    assert [row["title"] for row in found["rows"][:2]] == ["Name a tree.", "Name a colour."]
    assert [row["numbers"][""]["longer"] for row in found["rows"][:2]] == [4, -1]
    assert ids(found) == [f"shard-00000:{line}" for line in (1, 2, 3)]
    assert ids(ask("pairs", search="human")) == []
    row = Browser(plan).row({"stage": "pairs", "n": str(found["rows"][1]["n"])})
    assert (row["prompt"], row["chosen"]) == (user("Name a colour."), reply("Red"))


def test_subsets_are_counted_and_chosen(plan: Plan, ask: Ask) -> None:
    items(plan, "sft", "world", {"a": 1.0}, subset=["facts", "hard"])
    assert ask("evaluate")["subsets"] == [("facts", 1), ("hard", 1)]
    assert ids(ask("evaluate", subset="hard")) == ["a"]
    found = ask("evaluate", subset="easy")
    assert (found["total"], found["taken"]["subset"]) == (1, "")


# -- the index -----------------------------------------------------------------------------------


def test_while_a_stage_runs_only_what_is_new_is_read(
    plan: Plan, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    one = index.Index._read

    def counted(self: index.Index, db: Any, file: index.File, stamp: str) -> Iterator[int]:
        read.append(file.path.name)
        return one(self, db, file, stamp)

    monkeypatch.setattr(index.Index, "_read", counted)
    make(plan, "rated", [rated("c", (1.0, 1.0))], shard=2, partial=True)
    assert ids(ask("rated")) == ["c"]
    path = make(plan, "rated", [rated("a", (1.0, 1.0))], shard=0, partial=True)
    with (path / "data" / "shard-00003.jsonl").open("w") as file:
        file.write(json.dumps(rated("d", (1.0, 1.0))) + '\n{"id": "e", "pro')
    assert ids(ask("rated")) == ["a", "c", "d"]
    path.rename(plan.stages["rated"].artifact.path)
    assert ids(ask("rated")) == ["a", "c", "d"]
    assert ids(whole(lambda: Browser(plan).rows({"stage": "rated"}))) == ["a", "c", "d"]
    assert sorted(read) == ["shard-00000.jsonl", "shard-00002.jsonl", "shard-00003.jsonl"]


def test_files_that_are_gone_or_written_anew_are_forgotten(plan: Plan, ask: Ask) -> None:
    path = make(plan, "rated", [rated("a", (1.0, 1.0))], shard=0)
    make(plan, "rated", [rated("b", (1.0, 1.0)), rated("c", (1.0, 1.0))], shard=1)
    assert ids(ask("rated")) == ["a", "b", "c"]
    (path / "data" / "shard-00000.jsonl").unlink()
    make(plan, "rated", [rated("other", (1.0, 1.0))], shard=1)
    assert ids(ask("rated")) == ["other"]


def test_a_damaged_line_is_named(plan: Plan, ask: Ask) -> None:
    path = make(plan, "rated", [rated("a", (1.0, 1.0))])
    with (path / "data" / "shard-00000.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(StageFailed, match=r"shard-00000.jsonl, line 2 is damaged .* Run the stage"):
        ask("rated")


@pytest.mark.parametrize(
    "row",
    [
        [1, 2],
        {**rated("a"), "completions": None},
        rated("a", ("high", 1.0)),  # type: ignore[arg-type]
        {**rated("a", (1.0, 1.0)), "prompt": [None]},
    ],
)
def test_a_row_of_another_form_is_named_with_its_stage(plan: Plan, ask: Ask, row: Any) -> None:
    make(plan, "rated", [rated("first", (1.0, 1.0)), row])
    with pytest.raises(StageFailed, match=r"^rated: .*shard-00000.jsonl, line 2 is damaged \(.+\)"):
        ask("rated")


def test_an_item_without_its_texts_is_named(plan: Plan, ask: Ask) -> None:
    items(plan, "sft", "world", {"a": 1.0}, texts=None)
    with pytest.raises(StageFailed, match=r"^evaluate: .*sft-1.jsonl, line 1 is damaged"):
        ask("evaluate")


def test_a_damaged_index_is_made_again(plan: Plan, ask: Ask) -> None:
    make(plan, "rated", [rated(f"{i}", (1.0, 1.0)) for i in range(99)])
    assert ask("rated")["total"] == 99
    [file] = (plan.store / ".cache" / "view").iterdir()
    content = file.read_bytes()
    for damaged in (b"garbage" * 1000, content[: len(content) // 2], b""):
        file.write_bytes(damaged)
        assert ask("rated")["total"] == 99


def test_the_index_of_a_store_that_cannot_be_written_is_elsewhere(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(plan, "rated", [rated("a", (1.0, 1.0))])
    monkeypatch.setattr(places.os, "access", lambda *_: False)  # the tests may run as root
    browser = Browser(plan)
    found = whole(lambda: browser.rows({"stage": "rated"}))
    assert ids(found) == ["a"] and not (plan.store / ".cache").exists()
    assert found["notes"][0].startswith(f"{plan.store} cannot be written: the index is in ")


def test_while_another_view_reads_the_same_rows_the_page_waits(
    plan: Plan, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(plan, "rated", [rated("a", (1.0, 1.0))])
    assert ids(ask("rated")) == ["a"]
    monkeypatch.setattr(index, "LOCKED", 0.01)
    browser = Browser(plan)
    [file] = (plan.store / ".cache" / "view").iterdir()
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Waiting, match="waiting for another view"):
            browser.rows({"stage": "rated"})
    assert ids(browser.rows({"stage": "rated"})) == ["a"]


def test_what_a_stage_learns_to_say_is_marked(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "TRAINED_ON", 2)
    dialog = [*user("Name a colour."), *reply("Red")]
    write(Path("d.jsonl"), [{"messages": dialog}] * 3)
    Path("r.yaml").write_text(
        f"base: {tiny_model}\nstages: {{sft: {{model: base, data: d.jsonl}}}}\n"
    )
    browser = Browser(recipe.read("r.yaml"))
    found = whole(lambda: browser.rows({"stage": "sft"}))
    assert found["total"] == 2 and found["notes"] == ["the first that it is trained on"]
    row = browser.row({"stage": "sft", "n": str(found["rows"][0]["n"])})
    read = row["read"]
    assert (read["tokens"], read["learnt"], read["left_out"]) == (24, 4, False)
    [[name, tokens]] = read["parts"]
    assert name == "" and tokens[:2] == [["<s>", [1], "", True], ["<|user|>", [4], "", True]]
    assert [text for text, _, mark, _ in tokens if mark] == ["R", "e", "d", "<|end|>"]
    assert found["rows"][0]["numbers"][""]["tokens"] == 24
    assert ids(whole(lambda: browser.rows({"stage": "sft", "filter": "left out"}))) == []


def test_rows_that_lack_what_the_page_needs_are_named(plan: Plan, ask: Ask) -> None:
    make(plan, "rated", [{"id": "a", "prompt": user("Hi")}])
    with pytest.raises(StageFailed, match="line 1 has no 'completions': these rows need it"):
        ask("rated")


def test_the_index_may_be_deleted(plan: Plan, ask: Ask) -> None:
    make(plan, "rated", [rated("a", (1.0, 1.0))])
    assert ids(ask("rated")) == ["a"]
    shutil.rmtree(plan.store / ".cache")
    assert ids(ask("rated")) == ["a"]


def test_removed_rows_are_a_list_of_their_own_by_their_reasons(plan: Plan, ask: Ask) -> None:
    path = make(plan, "best", [{"id": "a", "messages": [*user("Hi"), *reply("Ho")]}])
    said = [["user", "Hi"], ["assistant", "Ho"]]
    near = {"id": "b", "reason": "near", "facts": {"repeats": "a", "similarity": 0.9}, "said": said}
    more = [{**near, "id": "c", "facts": {"repeats": "a", "similarity": 0.8}}]
    more.append({"id": "d", "reason": "length", "facts": {"words": 2}, "said": said})
    write(path / "removed.jsonl", [near, *more])
    browser = Browser(plan)
    [stage] = [one for one in browser.chain()["stages"] if one["name"] == "best"]
    assert stage["tasks"] == ["kept", "removed"]
    assert ids(ask("best", task="kept")) == ids(ask("best")) == ["a"]
    found = ask("best", task="removed")
    assert (found["form"], found["subset"]) == ("removed", "reason")
    assert found["subsets"] == [("near", 2), ("length", 1)]
    assert ids(ask("best", task="removed", subset="near", sort="numbers.similarity", up="1")) == [
        "c",
        "b",
    ]
    row = browser.row({"stage": "best", "task": "removed", "n": str(found["rows"][0]["n"])})
    assert row["facts"] == near["facts"] and row["messages"] == [*user("Hi"), *reply("Ho")]
    assert ids(ask("best", task="removed", search="ho")) == ["b", "c", "d"]
