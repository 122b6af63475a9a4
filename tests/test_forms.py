"""Forms of public data: trees, marks, levels, scores, and what a name or the columns say."""

import csv
import json
import math
import random
from collections.abc import Callable
from datetime import datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from transformers.utils.chat_template_utils import render_jinja_template

from align import data
from align.artifacts import Conversations, Preferences, Prompts, Rows, Text
from align.data import Source
from align.errors import StageFailed
from align.formats.strength import LEVELS
from align.forms import FORMS, recognise
from align.out import Out

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
Write = Callable[[str, list[Row]], Path]


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return Out(tmp_path, tmp_path)


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def read(path: Path, kind: type[Rows], out: Out | None = None, **keys: Any) -> list[Row]:
    return list(data.read(Source(path=str(path), **keys), kind, out))


def content(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


def dropped(out: Out) -> dict[str, int]:
    return {name: entry["n"] for name, entry in out.counts.items()}


HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
TURNS = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nBye"
DIALOG = [user("Hi"), assistant("Hello"), user("Bye")]
YES, NO, OK = [assistant("Yes")], [assistant("No")], [assistant("OK")]
ULTRA = [
    {"response": "No", "overall_score": 2.0, "model": "a"},
    {"response": "Yes", "overall_score": 8.5, "model": "b"},
    {"response": "OK", "overall_score": 5.0, "model": "c"},
]


@pytest.mark.parametrize(
    ("kind", "row", "normal"),
    [
        (Conversations, {"text": HH + " Yes"}, {"messages": [*DIALOG, *YES]}),
        (Prompts, {"text": HH}, {"prompt": DIALOG}),
        (Prompts, {"prompt": HH, "level": 1}, {"prompt": DIALOG, "level": 1}),
        (
            Conversations,
            {"chosen": HH + " Yes", "rejected": HH + " No"},
            {"messages": [*DIALOG, *YES]},
        ),
        (Prompts, {"chosen": HH + " Yes", "rejected": HH + " No"}, {"prompt": DIALOG}),
        (
            Conversations,
            {"prompt": "Hi", "chosen": "No", "rejected": "OK", "edited": "Yes"},
            {"messages": [user("Hi"), *YES]},
        ),
        (
            Conversations,
            {"prompt": "Hi", "completion": "Yes", "label": True},
            {"messages": [user("Hi"), *YES]},
        ),
        (
            Preferences,
            {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "strength": "Much better"},
            {"prompt": [user("Hi")], "chosen": YES, "rejected": NO},
        ),
        (
            Preferences,
            {"prompt": "Hi", "chosen": "OK", "rejected": "No", "edited": "Yes", "strength": 3},
            {"prompt": [user("Hi")], "ranked": [YES, OK, NO]},
        ),
        (
            Preferences,
            {"chosen": [*DIALOG, *OK], "rejected": [*DIALOG, *NO], "edited": [*DIALOG, *YES]},
            {"prompt": DIALOG, "ranked": [YES, OK, NO]},
        ),
        (
            Preferences,
            {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "edited": ""},
            {"prompt": [user("Hi")], "chosen": YES, "rejected": NO},
        ),
        (
            Preferences,
            {"prompt": TURNS, "response_1": "No", "response_2": "Yes", "preference_strength": 3},
            {"prompt": DIALOG, "chosen": YES, "rejected": NO},
        ),
        (
            Preferences,
            {"context": DIALOG, "response1": "Yes", "response2": "No", "overall_preference": -2},
            {"prompt": DIALOG, "chosen": YES, "rejected": NO},
        ),
        (
            Conversations,
            {"context": DIALOG, "response1": "Yes", "response2": "No", "overall_preference": -1},
            {"messages": [*DIALOG, *YES]},
        ),
        (
            Preferences,
            {"prompt": "Hi", "completions": ["No", "Yes"], "scores": [-1, 2.5]},
            {
                "prompt": [user("Hi")],
                "chosen": YES,
                "rejected": NO,
                "chosen_score": 2.5,
                "rejected_score": -1.0,
            },
        ),
        (
            Preferences,
            {"prompt": "Hi", "chosen": ["Yes"], "rejected": ["No", "OK"]},
            {"prompt": [user("Hi")], "chosen": YES, "rejected": NO, "also_rejected": [OK]},
        ),
        (
            Preferences,
            {"prompt": "Hi", "generations": ["No", "Yes", "OK"], "rewards": [1, 3, 2]},
            {"prompt": [user("Hi")], "ranked": [YES, OK, NO]},
        ),
        (
            Preferences,
            {"instruction": "Hi", "completions": ULTRA},
            {"prompt": [user("Hi")], "ranked": [YES, OK, NO]},
        ),
        (
            Conversations,
            {"instruction": "Hi", "completions": ULTRA},
            {"messages": [user("Hi"), *YES]},
        ),
        (
            Conversations,
            {"prompt": "Hi", "ranked": ["Yes", "OK", "No"]},
            {"messages": [user("Hi"), *YES]},
        ),
        (
            Preferences,
            {
                "prompt": "Hi",
                "chosen": [user("Hi"), *YES],
                "rejected": [user("Hi"), *NO],
                "score_chosen": 9.0,
                "score_rejected": 4.5,
            },
            {
                "prompt": [user("Hi")],
                "chosen": YES,
                "rejected": NO,
                "chosen_score": 9.0,
                "rejected_score": 4.5,
            },
        ),
    ],
)
def test_more_public_forms_are_understood(
    write_rows: Write, kind: type[Rows], row: Row, normal: Row
) -> None:
    assert content(read(write_rows("rows.jsonl", [row]), kind)) == [normal]
    again = write_rows("normal.jsonl", [normal])
    assert content(read(again, kind)) == [normal], "what a stage wrote is read as it is"


# -- trees ---------------------------------------------------------------------------------------


def message(name: str, role: str, *replies: Row, **more: Any) -> Row:
    text = {"message_id": name, "text": f"I say {name}", "role": role, **more}
    return {**text, "replies": [{**reply, "parent_id": name} for reply in replies]}


def prompter(name: str, *replies: Row, **more: Any) -> Row:
    return message(name, "prompter", *replies, **more)


def answer(name: str, *replies: Row, **more: Any) -> Row:
    return message(name, "assistant", *replies, **more)


TREE = {
    "message_tree_id": "q",
    "tree_state": "ready_for_export",
    "prompt": prompter(
        "q",
        answer("a0", prompter("q2", answer("a2", rank=1), answer("a3", rank=0)), rank=2),
        answer("a1", prompter("leaf"), rank=0),
        answer("a4", rank=1.0),
        answer("tie", rank=1),
        answer("late"),
        answer("gone", prompter("q3", answer("a5")), rank=3, deleted=True),
        answer("bad", rank=4, review_result=False),
        answer("bot", rank=5, synthetic=True),
    ),
}


def flat(tree: Row) -> list[Row]:
    """The messages of a tree as rows, as the hub has them."""

    def below(one: Row) -> list[Row]:
        row = {"parent_id": None, **one, "replies": None, "message_tree_id": "q"}
        return [row] + [inner for reply in one["replies"] for inner in below(reply)]

    return below(tree["prompt"])


def said(rows: list[Row], key: str = "messages") -> dict[str, list[str]]:
    return {row["id"]: [m["content"].removeprefix("I say ") for m in row[key]] for row in rows}


@pytest.mark.parametrize("shape", ["nested", "root", "flat", "shuffled"])
def test_a_tree_becomes_rows_however_its_messages_stand(
    write_rows: Write, out: Out, shape: str
) -> None:
    rows = {"nested": [TREE], "root": [TREE["prompt"] | {"parent_id": None}]}.get(shape)
    if rows is None:
        rows = flat(TREE)
    if shape == "shuffled":
        random.Random(1).shuffle(rows)
    path = write_rows("trees.jsonl", rows)
    paths = said(read(path, Conversations, out))
    assert paths == {
        "a2": ["q", "a0", "q2", "a2"],
        "a3": ["q", "a0", "q2", "a3"],
        "a1": ["q", "a1"],
        "a4": ["q", "a4"],
        "tie": ["q", "tie"],
        "late": ["q", "late"],
        "bot": ["q", "bot"],
    }
    assert dropped(out) == {"dropped.deleted": 3, "dropped.review_failed": 1}
    assert said(read(path, Conversations, best=1)) == {"a1": ["q", "a1"]}
    assert said(read(path, Conversations, best=3))["a3"] == ["q", "a0", "q2", "a3"]
    assert said(read(path, Prompts), "prompt") == {
        "q": ["q"],
        "q2": ["q", "a0", "q2"],
        "leaf": ["q", "a1", "leaf"],
    }


def test_ranks_of_a_tree_become_rankings_and_what_is_left_out_is_counted(
    write_rows: Write, out: Out
) -> None:
    path = write_rows("trees.jsonl", [TREE])
    first, second = read(path, Preferences, out)
    assert first["id"] == "q" and second["id"] == "q2"
    assert [ranked[0]["content"] for ranked in first["ranked"]] == [
        "I say a1",
        "I say a4",
        "I say a0",
    ]
    assert (second["chosen"][0]["content"], second["rejected"][0]["content"]) == (
        "I say a3",
        "I say a2",
    )
    assert dropped(out) == {
        "dropped.deleted": 3,
        "dropped.review_failed": 1,
        "dropped.synthetic": 1,
        "dropped.unranked": 1,
        "dropped.equal_rank": 1,
    }
    example = out.counts["dropped.equal_rank"]["examples"][0]
    assert example == {"source": str(path), "row": 1, "message": "tie", "rank": 1}


def test_messages_without_a_parent_and_the_same_ones_are_counted(
    write_rows: Write, out: Out
) -> None:
    rows = flat(TREE)
    lost = {**rows[1], "message_id": "lost", "parent_id": "nobody"}
    below = {**rows[1], "message_id": "below", "parent_id": "lost"}
    path = write_rows("trees.jsonl", [*rows, lost, below, rows[4]])
    assert len(read(path, Conversations, out)) == 7
    assert out.counts["dropped.no_parent"]["n"] == 2
    examples = out.counts["dropped.no_parent"]["examples"]
    assert [(one["row"], one["message"]) for one in examples] == [
        (len(rows) + 1, "lost"),
        (len(rows) + 2, "below"),
    ]
    assert out.counts["dropped.same_message"]["n"] == 1


def test_a_tree_that_is_not_ready_is_left_out(write_rows: Write, out: Out) -> None:
    path = write_rows("trees.jsonl", [TREE, {**TREE, "tree_state": "growing"}])
    assert len(read(path, Preferences, out)) == 2
    assert out.counts["dropped.tree_not_ready"]["n"] == 1


def test_a_tree_in_a_table_is_the_same_tree(tmp_path: Path, out: Out) -> None:
    names = ("parent_id", "message_id", "role", "text", "rank", "deleted", "review_result")
    rows = [
        ("", 1, "prompter", "q", "", "False", "True"),
        *(("1.0", n, "assistant", f"a{n}", n, "False", "True") for n in (10, 9)),
        ("1.0", 2, "assistant", "gone", "0", "True", "True"),
        ("1.0", 3, "assistant", "bad", "0.0", "False", "False"),
        ("1.0", 4, "assistant", "late", "", "False", ""),
    ]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    (made,) = read(tmp_path / "a.csv", Preferences, out)
    assert (made["chosen"][0]["content"], made["rejected"][0]["content"]) == ("a9", "a10")
    assert dropped(out) == {
        "dropped.deleted": 1,
        "dropped.review_failed": 1,
        "dropped.unranked": 1,
    }


def test_a_rank_that_is_no_number_is_none(write_rows: Write, out: Out) -> None:
    replies = [answer(name, rank=rank) for name, rank in (("a", math.nan), ("b", 1), ("c", 0))]
    path = write_rows("a.jsonl", [{"prompt": prompter("q", *replies)}])
    (made,) = read(path, Preferences, out)
    assert made["chosen"][0]["content"] == "I say c" and dropped(out) == {"dropped.unranked": 1}
    assert said(read(path, Conversations, best=1)) == {"c": ["q", "c"]}


def test_a_tree_may_be_deep_and_its_ids_large(write_rows: Write) -> None:
    roles = ("prompter", "assistant")
    rows = [
        {"message_id": 10**20 + n, "parent_id": 10**20 + n - 1, "role": roles[n % 2], "text": "a"}
        for n in range(1200)
    ]
    rows[0]["parent_id"] = None
    path = write_rows("a.jsonl", rows)
    (made,) = read(path, Conversations)
    assert len(made["messages"]) == 1200 and made["id"] == str(10**20 + 1199)


# -- marks ---------------------------------------------------------------------------------------


def test_marked_answers_are_paired_by_prompt_whatever_their_order(
    write_rows: Write, out: Out
) -> None:
    rows = [
        {"prompt": f"Q{q}", "completion": f"{'good' if good else 'bad'} {n}", "label": good}
        for q, goods, bads in ((1, 2, 1), (2, 1, 1), (3, 2, 0))
        for good, count in ((True, goods), (False, bads))
        for n in range(count)
    ]
    made = read(write_rows("a.jsonl", rows), Preferences, out)
    assert {pair["prompt"][0]["content"] for pair in made} == {"Q1", "Q2"} and len(made) == 2
    for pair in made:
        assert pair["chosen"][0]["content"].startswith("good")
        assert pair["rejected"][0]["content"].startswith("bad")
    assert dropped(out) == {"dropped.no_partner": 3}
    for order in list(permutations(rows))[:500:71]:
        assert read(write_rows("b.jsonl", list(order)), Preferences) == made
    good = read(write_rows("a.jsonl", rows), Conversations, out)
    assert len(good) == 5 and out.counts["dropped.marked_bad"]["n"] == 2


def test_an_answer_that_is_marked_both_ways_is_paired_with_others(
    write_rows: Write, out: Out
) -> None:
    rows = [
        {"prompt": "Q", "completion": answer, "label": good}
        for answer in "ABC"
        for good in (True, False)
    ]
    made = read(write_rows("a.jsonl", rows), Preferences, out)
    sides = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in made]
    assert not dropped(out) and all(better != worse for better, worse in sides)
    assert sorted(better for better, _ in sides) == sorted(worse for _, worse in sides) == [*"ABC"]
    for order in list(permutations(rows))[::97]:
        assert read(write_rows("b.jsonl", list(order)), Preferences) == made
    assert len(read(write_rows("c.jsonl", [*rows[:2], rows[3]]), Preferences, out)) == 1
    assert dropped(out) == {"dropped.no_partner": 1}


def test_a_label_is_a_mark_if_it_says_true_or_false(write_rows: Write) -> None:
    def good(labels: tuple[Any, Any], **keys: Any) -> int:
        rows = [{"prompt": "Q", "completion": f"A{label}", "label": label} for label in labels]
        return len(read(write_rows("a.jsonl", rows), Conversations, **keys))

    assert good((True, False)) == good(("False", "true")) == 1
    assert good(("chemistry", "physics")) == 2
    assert good(("desirable", "undesirable")) == good((None, True)) == 1
    assert good((1, 0)) == 2
    assert good((1, 0), format="feedback") == 1
    with pytest.raises(StageFailed, match="row 2: \"label\" is 'maybe', neither true nor false"):
        good((True, "maybe"))


# -- levels and scores ---------------------------------------------------------------------------


def test_the_two_strongest_levels_are_read_unless_told(write_rows: Write, out: Out) -> None:
    words = ["significantly better", "better", "slightly_better", "Negligibly better / unsure"]
    rows = [
        {"prompt": f"Q{n}", "chosen": "Yes", "rejected": "No", "preference_strength": word}
        for n, word in enumerate(words)
    ]
    path = write_rows("a.jsonl", rows)
    assert [row["prompt"][0]["content"] for row in read(path, Preferences, out)] == ["Q0", "Q1"]
    assert dropped(out) == {"dropped.weak_preference": 2}
    for place, level in enumerate(reversed(LEVELS)):
        (row,) = read(path, Preferences, strength=[level])
        assert row["prompt"][0]["content"] == f"Q{place}"
    numbers = [{**row, "preference_strength": 3 - n} for n, row in enumerate(rows)]
    again = write_rows("b.jsonl", numbers)
    assert read(again, Preferences, strength=list(LEVELS)) == read(
        path, Preferences, strength=list(LEVELS)
    )


def test_no_preference_between_two_responses_is_no_pair(write_rows: Write, out: Out) -> None:
    rows = [
        {"prompt": f"Q{n}", "response_1": "A", "response_2": "B", "preference_strength": n}
        for n in range(-3, 4)
    ]
    made = read(write_rows("a.jsonl", rows), Preferences, out)
    assert [row["chosen"][0]["content"] for row in made] == ["A", "A", "B", "B"]
    assert dropped(out) == {"dropped.weak_preference": 2, "dropped.no_preference": 1}


def test_a_level_that_is_not_known_or_not_there_is_a_sentence(write_rows: Write) -> None:
    pair = {"prompt": "Q", "chosen": "Yes", "rejected": "No"}
    path = write_rows("a.jsonl", [{**pair, "strength": "0.8"}])
    with pytest.raises(StageFailed, match=r'"strength" is .0\.8., and levels are significantly'):
        read(path, Preferences)
    with pytest.raises(StageFailed, match=r"no conversation tree \(format: pairs\): leave `best`"):
        read(write_rows("b.jsonl", [pair]), Preferences, best=1)
    two = {"context": [user("Q")], "response1": "A", "response2": "B", "overall_preference": 1}
    assert read(write_rows("c.jsonl", [two]), Preferences, strength=["slightly"])
    with pytest.raises(StageFailed, match=r"format: ranked\): leave `strength` out"):
        read(
            write_rows("d.jsonl", [{"prompt": "Q", "ranked": "ab"}]),
            Preferences,
            strength=["better"],
        )
    with pytest.raises(StageFailed, match=r"can be used \(dropped.no_strength\)"):
        read(write_rows("b.jsonl", [pair]), Preferences, strength=["better"])


def test_a_row_without_a_level_is_dropped_where_levels_are_named(
    write_rows: Write, out: Out
) -> None:
    pair = {"chosen": "Yes", "rejected": "No"}
    rows = [{**pair, "prompt": "Q0"}, {**pair, "prompt": "Q1", "strength": "2.0"}]
    path = write_rows("a.jsonl", rows)
    (made,) = read(path, Preferences, out, strength=["better"])
    assert made["prompt"] == [user("Q1")] and dropped(out) == {"dropped.no_strength": 1}
    assert len(read(path, Preferences)) == 2


def test_equal_scores_are_one_answer_whatever_their_order(write_rows: Write, out: Out) -> None:
    answers = [("Yes", 2.0), ("OK", 1.0), ("Fine", 1.0), ("No", 0.0), ("Eh", None), ("?", "N/A")]
    expected = None
    for shuffle in range(4):
        random.Random(shuffle).shuffle(answers)
        row = {
            "prompt": "Q",
            "responses": [a for a, _ in answers],
            "scores": [s for _, s in answers],
        }
        (made,) = read(write_rows("a.jsonl", [row]), Preferences, out)
        assert made == (expected or made)
        expected = made
    assert [ranked[0]["content"] for ranked in expected["ranked"]] == ["Yes", "Fine", "No"]
    assert dropped(out) == {"dropped.no_score": 8, "dropped.equal_score": 4}
    row = {"prompt": "Q", "responses": ["a", "b"], "scores": [1]}
    with pytest.raises(StageFailed, match="it has 2 answers and 1 scores"):
        read(write_rows("b.jsonl", [row]), Preferences)
    equal = [
        {"prompt": "Q", "responses": ["a", "b"], "scores": scores} for scores in ([1, 1], [1, 2])
    ]
    assert len(read(write_rows("c.jsonl", equal), Preferences, out)) == 1
    assert out.counts["dropped.nothing_to_compare"]["n"] == 1


def test_what_a_stage_made_of_a_tree_is_read_again_pairs_and_rankings(
    write_rows: Write, tmp_path: Path
) -> None:
    made = read(write_rows("trees.jsonl", [TREE]), Preferences)
    for order in (made, made[::-1]):
        (tmp_path / "stage/data").mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in order)
        (tmp_path / "stage/data/rows.jsonl").write_text(text)
        assert list(data.read(Preferences(tmp_path / "stage"), Preferences, None)) == order
        assert read(write_rows("copied.jsonl", order), Preferences) == order


# -- names ---------------------------------------------------------------------------------------


def test_a_name_is_read_in_place_of_the_columns(write_rows: Write, out: Out, capsys: Any) -> None:
    row = {"messages": [user("a"), assistant("b")], "prompt": "Hi", "completion": "Hello"}
    path = write_rows("a.jsonl", [row])
    assert content(read(path, Conversations))[0]["messages"][0]["content"] == "a"
    (named,) = read(path, Conversations, out, format="answers")
    assert named["messages"][0]["content"] == "Hi"
    assert "conversations from prompt, completion (format: answers)." in capsys.readouterr().err
    with pytest.raises(StageFailed, match=r"format pairs takes chosen \(or .*\) and rejected"):
        read(path, Conversations, format="pairs")
    with pytest.raises(StageFailed, match="format text has no conversations. Those that have: tr"):
        read(path, Conversations, format="text")


def test_a_wrong_name_gives_the_list() -> None:
    with pytest.raises(ValidationError) as error:
        Source(path="a.jsonl", format="tree")
    assert 'Did you mean "trees"?' in str(error.value)
    assert all(name in str(error.value) for name in FORMS)


def test_names_of_roles_are_said(write_rows: Write, out: Out, capsys: Any) -> None:
    row = {"conversations": [{"from": "Human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    read(write_rows("a.jsonl", [row]), Conversations, out)
    assert "roles Human → user, gpt → assistant." in capsys.readouterr().err


def test_documents_stay_documents(write_rows: Write) -> None:
    assert content(read(write_rows("a.jsonl", [{"text": HH}]), Text)) == [{"text": HH}]


# -- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (Conversations, {"messages": [*DIALOG, *YES]}),
        (Conversations, {"conversations": [{"from": "human", "value": "Hi"}, *YES]}),
        (Prompts, {"messages": [*DIALOG, *YES]}),
        (Conversations, {"prompt": DIALOG, "completion": YES}),
        (Preferences, {"prompt": "Hi", "chosen": YES, "rejected": NO, "also_rejected": ["OK"]}),
        (Preferences, {"chosen": [*DIALOG, *YES], "rejected": [*DIALOG, *NO]}),
        (Preferences, {"prompt": DIALOG, "chosen": [*DIALOG, *YES], "rejected": [*DIALOG, *NO]}),
        (Preferences, {"prompt": "Hi", "ranked": ["Yes", "OK", "No"]}),
        (Conversations, {"prompt": "Hi", "ranked": ["Yes", "OK", "No"]}),
        (Preferences, {"prompt": "Hi", "completions": ["No", "OK", "Yes"], "scores": [1, 2, 3]}),
        (Preferences, {"instruction": "Hi", "completions": ULTRA}),
        (
            Preferences,
            {"context": DIALOG, "response1": "Yes", "response2": "No", "overall_preference": -3},
        ),
        (
            Conversations,
            {"messages": [user("Hi"), {**assistant(""), "tool_calls": [{"name": "f"}]}]},
        ),
    ],
)
def test_lists_are_read_from_the_json_in_a_table(
    write_rows: Write, tmp_path: Path, kind: type[Rows], row: Row
) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        cells = [one if isinstance(one, str) else json.dumps(one) for one in row.values()]
        csv.writer(file).writerows([list(row), cells])
    expected = read(write_rows("a.jsonl", [row]), kind)
    assert read(tmp_path / "a.csv", kind) == expected
    if calls := row.get("messages", [{}])[-1].get("tool_calls"):
        row["messages"][-1]["tool_calls"] = json.dumps(calls)
        assert read(write_rows("b.jsonl", [row]), kind) == expected


@pytest.mark.parametrize("text", ['["a", "b"]', '[{"name": "a"}]', "[]", "[" * 100_000])
def test_an_answer_that_is_a_list_of_something_else_stays_a_text(
    write_rows: Write, text: str
) -> None:
    (row,) = read(write_rows("a.jsonl", [{"prompt": "Hi", "completion": text}]), Conversations)
    assert row["messages"][1] == assistant(text)


def test_nulls_that_arrow_puts_into_tools_are_left_out(tmp_path: Path) -> None:
    def row(name: str, arguments: Row) -> Row:
        tool = {"name": name, "parameters": {"properties": {key: {} for key in arguments}}}
        call = {"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}]}
        return {"messages": [user("Hi"), call], "tools": [tool]}

    rows = [row("w", {"city": "Paris"}), row("add", {"a": 1, "b": [{"c": 2}]})]
    rows[0]["tools"][0]["parameters"]["properties"]["city"] = {"type": "string"}
    rows[1]["tools"][0]["parameters"]["properties"] = {"a": {"type": "number"}}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for given, made in zip(rows, read(tmp_path / "a.parquet", Conversations), strict=True):
        assert made["tools"] == given["tools"]
        calls = given["messages"][1]["tool_calls"]
        assert made["messages"][1]["tool_calls"] == calls


# -- what stands beside a dialog, and inside of it -----------------------------------------------


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("kind", "row", "normal"),
    [
        (
            Conversations,
            {"instruction": "Bye", "output": "Yes", "history": [["Hi", "Hello"]]},
            {"messages": [*DIALOG, *YES]},
        ),
        (
            Conversations,
            {"system": "Be brief.", "conversations": [*DIALOG, *YES]},
            {"messages": [SYSTEM, *DIALOG, *YES]},
        ),
        (
            Conversations,
            {"system": "Be long.", "messages": [SYSTEM, *DIALOG, *YES]},
            {"messages": [SYSTEM, *DIALOG, *YES]},
        ),
        (
            Prompts,
            {"system": "Be brief.", "history": [["Hi", "Hello"]], "prompt": "Bye", "level": 1},
            {"prompt": [SYSTEM, *DIALOG], "level": 1},
        ),
        (Prompts, {"history": '[["Hi", "Hello"]]', "prompt": "Bye"}, {"prompt": DIALOG}),  # of csv
        (Prompts, {"history": "[]", "prompt": "Bye"}, {"prompt": DIALOG[2:]}),
        (
            Conversations,
            {"instruction": "Sum up.", "context": "It rains.", "response": "Yes"},  # as in Dolly
            {"messages": [user("Sum up.\n\nIt rains."), *YES]},
        ),
        (
            Preferences,
            {
                "prompt": [SYSTEM, *DIALOG[:1]],
                "chosen": [*DIALOG, *YES],
                "rejected": [*DIALOG, *NO],
            },
            {"prompt": [SYSTEM, *DIALOG], "chosen": YES, "rejected": NO},
        ),
        (
            Preferences,
            {"system": "Be brief.", "chosen": [*DIALOG, *YES], "rejected": [*DIALOG, *NO]},
            {"prompt": [SYSTEM, *DIALOG], "chosen": YES, "rejected": NO},
        ),
        (
            Preferences,
            {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "preference_strength": "-2"},
            {"prompt": [user("Hi")], "chosen": YES, "rejected": NO},
        ),
        (
            Conversations,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": t} for t in ("H", "i")]},
                    {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
                ]
            },
            {"messages": [user("Hi"), *YES]},
        ),
    ],
)
def test_what_begins_a_dialog_in_other_columns_and_parts_of_texts_are_read(
    write_rows: Write, kind: type[Rows], row: Row, normal: Row
) -> None:
    path = write_rows("a.jsonl", [row])
    assert content(read(path, kind)) == [normal]
    again = write_rows("b.jsonl", read(path, kind))
    assert content(read(again, kind)) == [normal]


@pytest.mark.parametrize("template", ["chatml", "llama-3.1"])
def test_calls_of_tools_are_the_same_whether_their_arguments_are_json_or_an_object(
    write_rows: Write, template: str
) -> None:
    def written(arguments: Any) -> str:
        call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        path = write_rows("a.jsonl", [{"messages": [user("Hi"), turn]}])
        (row,) = read(path, Conversations)
        assert row["messages"][1]["tool_calls"] == [call | {"function": normal}]
        text = (ROOT / "align" / "templates" / f"{template}.jinja").read_text(encoding="utf-8")
        return str(render_jinja_template([row["messages"]], chat_template=text)[0][0])

    normal = {"name": "find", "arguments": {"name": "été", "n": [1]}}
    given = written({"name": "été", "n": [1]})
    assert given == written('{"name": "\\u00e9té", "n": [1]}')
    assert '{"name": "été", "n": [1]}' in given


def test_columns_that_nothing_is_made_of_are_named(write_rows: Write) -> None:
    row = {"id": "1", "prompt": "Q", "completion": "A", "system": "S", "output": "B", "topic": "T"}
    found = recognise(row, Conversations, "a")
    assert found.words.endswith(
        "prompt, completion, system (format: answers). Not read: output, topic"
    )
    many = recognise({"text": "a"} | {f"c{n}": n for n in range(10)}, Text, "a")
    assert many.words.endswith("Not read: c0, c1, c2, c3, c4, c5, c6, c7 and 2 more")
    assert recognise({"prompt": "Q", "topic": "T"}, Prompts, "a").unread == ""


def test_an_edited_answer_that_says_what_the_rejected_one_says_is_dropped(
    write_rows: Write, out: Out
) -> None:
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    path = write_rows("a.jsonl", [{**pair, "edited": "c"}, {**pair, "edited": "b"}])
    assert len(read(path, Preferences, out)) == len(read(path, Conversations, out)) == 1
    assert dropped(out) == {"dropped.equal_answers": 2}


def test_times_of_a_parquet_file_are_texts(tmp_path: Path) -> None:
    when = datetime(2024, 7, 26, 12)
    table = pa.table({"prompt": ["Q"], "when": [when], "more": [[{"day": when.date()}]]})
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = read(tmp_path / "a.parquet", Prompts)
    assert row["when"] == "2024-07-26T12:00:00" and row["more"] == [{"day": "2024-07-26"}]


def test_columns_that_others_are_made_of_are_read() -> None:
    row = {"question": "1+1?", "answer": "2", "level": 3, "prompt": "1+1?", "completion": "2"}
    columns = {"prompt": "{question}", "completion": "{answer}"}
    assert recognise(row, Conversations, "", None, columns).words.endswith("Not read: level")
