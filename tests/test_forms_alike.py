"""What looks like another thing: texts that are JSON, labels that are no marks."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align import data
from align.artifacts import Conversations, Preferences, Prompts, Rows
from align.data import Source
from align.errors import StageFailed
from align.out import Out

Row = dict[str, Any]
Write = Callable[[str, list[Row]], Path]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def read(path: Path, kind: type[Rows], out: Out | None = None, **keys: Any) -> list[Row]:
    rows = data.read(Source(path=str(path), **keys), kind, out)
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


def table(path: Path, row: Row) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
        return path
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(row), list(row.values())])
    return path


Q, YES, NO = [user("Red?")], assistant("Yes"), assistant("No")
PAIR = {"prompt": Q, "chosen": [YES], "rejected": [NO]}
LEARNT = [{"messages": [*Q, YES]}]
CHAT = json.dumps([user("Hi"), assistant("Hello")])
LONG = "9" * 5000


# -- texts that are JSON -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        CHAT,
        json.dumps([assistant("Hello")]),
        '[{"role": "admin", "content": "all"}]',
        '[{"from": "Paris", "to": "Rome", "value": 3}]',
        "[{'role': 'user', 'content': 'Hi'}] what does this print?",
        "[3, 1, 2]",
        LONG,
        f"[{LONG}]",
    ],
)
def test_a_text_of_json_lines_stays_one_whatever_it_looks_like(
    text: str, write_rows: Write
) -> None:
    path = write_rows("a.jsonl", [{"prompt": text, "completion": text, "note": LONG}])
    assert read(path, Conversations) == [{"messages": [user(text), assistant(text)]}]
    path = write_rows("b.jsonl", [{"prompt": text, "chosen": text, "rejected": f"{text}!"}])
    sides = {"chosen": [assistant(text)], "rejected": [assistant(f"{text}!")]}
    assert read(path, Preferences) == [{"prompt": [user(text)], **sides}]
    dialogs = {"chosen": [user(text), YES], "rejected": [user(text), NO]}
    path = write_rows("c.jsonl", [{"prompt": text, **dialogs}])
    assert read(path, Preferences) == [{**PAIR, "prompt": [user(text)]}]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    "text", [CHAT, '[{"role": "admin", "content": "all"}]', '[{"from": "Paris", "value": 3}]']
)
def test_an_answer_in_a_table_that_was_asked_for_as_json_is_a_text(
    tmp_path: Path, suffix: str, text: str
) -> None:
    path = table(tmp_path / f"a.{suffix}", {"prompt": "Red?", "completion": text})
    assert read(path, Conversations) == [{"messages": [*Q, assistant(text)]}]
    row = {"prompt": "Red?", "chosen": text, "rejected": f"{text} "}
    sides = {"chosen": [assistant(text)], "rejected": [assistant(f"{text} ")]}
    assert read(table(tmp_path / f"b.{suffix}", row), Preferences) == [{"prompt": Q, **sides}]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_dialogs_in_a_table_beside_the_question_that_they_begin_with_are_dialogs(
    tmp_path: Path, suffix: str
) -> None:
    sides = {"chosen": json.dumps([*Q, YES]), "rejected": json.dumps([*Q, NO])}
    path = table(tmp_path / f"a.{suffix}", {"prompt": "Red?", **sides})
    assert read(path, Preferences) == [PAIR]
    path = table(tmp_path / f"b.{suffix}", {"turns": json.dumps(Q), "completion": "Yes"})
    assert read(path, Conversations, columns={"prompt": "{turns}"}) == LEARNT


def test_a_list_as_python_shows_it_is_refused_in_a_table(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", {"prompt": str(Q), "completion": "Yes"})
    with pytest.raises(StageFailed, match=r"a list as Python shows it. Write it as JSON \(json"):
        read(path, Conversations)


# -- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [True, None])
def test_a_label_of_a_pair_is_no_mark_of_an_answer(label: bool | None, write_rows: Write) -> None:
    beside = {"messages": Q, "chosen": "Yes", "rejected": "No", "label": label}
    ended = {"messages": [*Q, YES], "rejected_response": "No", "label": label}
    for row in (beside, ended):
        path = write_rows("a.jsonl", [row])
        assert read(path, Preferences) == [PAIR]
        assert read(path, Conversations) == LEARNT


@pytest.mark.parametrize("label", [3, None, ""])
def test_the_column_that_is_a_mark_is_the_mark(label: Any, write_rows: Write) -> None:
    rows = [
        {"instruction": "Red?", "output": text, "label": label, "kto_tag": text == "Yes"}
        for text in ("No", "Yes")
    ]
    path = write_rows("a.jsonl", rows)
    assert read(path, Conversations) == LEARNT
    assert read(path, Preferences) == [PAIR]


def test_an_answer_that_is_marked_bad_after_some_without_a_mark_is_refused(
    write_rows: Write,
) -> None:
    for row in ({"prompt": "Red?", "completion": "Yes"}, {"messages": [*Q, YES]}):
        path = write_rows("a.jsonl", [row, row | {"label": False}])
        with pytest.raises(StageFailed, match='row 2: "label" is False.*`format: feedback`'):
            read(path, Conversations)
        form = "messages" if "messages" in row else "answers"
        assert len(read(path, Conversations, format=form)) == 2


def test_a_mark_may_be_a_number_with_a_point(write_rows: Write) -> None:
    rows = [{"prompt": "Red?", "completion": t, "label": float(t == "Yes")} for t in ("Yes", "No")]
    path = write_rows("a.jsonl", rows)
    assert read(path, Preferences, format="feedback") == [PAIR]


# -- pairs ---------------------------------------------------------------------------------------


def test_a_pair_beside_a_dialog_that_ends_with_the_answer_has_its_question(
    write_rows: Write,
) -> None:
    row = {"messages": [*Q, YES], "chosen": "Yes", "rejected": "No"}
    path = write_rows("a.jsonl", [row])
    assert read(path, Conversations) == LEARNT
    assert read(path, Preferences) == [PAIR]
    assert [one["prompt"] for one in read(path, Prompts)] == [Q]
    path = write_rows("b.jsonl", [row | {"chosen": None, "rejected": None}])
    assert read(path, Conversations) == LEARNT


def test_of_lists_of_answers_the_first_chosen_one_is_learnt_at_its_level(
    write_rows: Write, tmp_path: Path
) -> None:
    row = {"prompt": "Red?", "chosen": ["Yes"], "rejected": ["No", "Yes", "Blue"]}
    path = write_rows("a.jsonl", [row, row | {"strength": "slightly"}])
    assert read(path, Conversations) == LEARNT * 2
    out = Out(tmp_path, tmp_path)
    assert read(path, Preferences, out) == [{**PAIR, "also_rejected": [[assistant("Blue")]]}]
    assert out.counts["dropped.weak_preference"]["n"] == 1


def test_a_number_that_is_nan_is_none(write_rows: Write) -> None:
    row = {"prompt": "Red?", "chosen": "Yes", "rejected": "No", "margin": math.nan}
    assert read(write_rows("a.jsonl", [row | {"score_chosen": "nan"}]), Preferences) == [PAIR]


def test_answers_that_are_messages_may_have_scores(write_rows: Write) -> None:
    row = {"prompt": "Red?", "completions": [NO | {"score": 1}, YES | {"score": 2}]}
    assert read(write_rows("a.jsonl", [row]), Conversations) == LEARNT


# -- what stops no source, and what does ---------------------------------------------------------


@pytest.mark.parametrize("calls", ["", "null", {}, []])
def test_no_calls_are_none_however_written(calls: Any, write_rows: Write) -> None:
    path = write_rows("a.jsonl", [{"messages": [*Q, YES | {"tool_calls": calls}]}])
    assert read(path, Conversations) == LEARNT


@pytest.mark.parametrize("images", ["[]", [None], [], "null"])
def test_no_images_are_none_however_written(images: Any, write_rows: Write) -> None:
    path = write_rows("a.jsonl", [{"prompt": "Red?", "completion": "Yes", "images": images}])
    assert read(path, Conversations) == LEARNT


def test_a_loss_that_is_a_number_is_no_mark(write_rows: Write) -> None:
    said = [*Q, assistant("Yes", loss=0.53)]
    assert read(write_rows("a.jsonl", [{"messages": said}]), Conversations) == [{"messages": said}]


def tree(role: str = "assistant", **more: Any) -> Row:
    replies = [
        {"message_id": text, "role": role, "text": text, "rank": rank, **more}
        for rank, text in enumerate(("Yes", "No"))
    ]
    return {"prompt": {"message_id": "q", "role": "prompter", "text": "Red?", "replies": replies}}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (tree("critic"), "has the role 'critic', and roles are prompter and assistant"),
        (tree(rank="best"), "a rank is 'best', and must be a number"),
        (tree() | {"images": ["a.png"]}, '"images" is not empty'),
        (tree(images=["a.png"]), '"images" is not empty'),
        (
            {"prompt": "Red?", "completions": ["Yes"], "scores": [{"x": 1}]},
            "a score is {'x': 1}, and must be a number",
        ),
    ],
)
def test_what_is_wrong_in_trees_and_scores_is_a_sentence(
    row: Row, sentence: str, write_rows: Write
) -> None:
    with pytest.raises(StageFailed, match=sentence):
        read(write_rows("a.jsonl", [row]), Conversations, best=1 if "rank" in sentence else None)


def test_a_tree_that_is_null_is_dropped(write_rows: Write, tmp_path: Path) -> None:
    path, out = write_rows("a.jsonl", [tree(), {"prompt": None}]), Out(tmp_path, tmp_path)
    assert len(read(path, Preferences, out)) == 1
    assert out.counts["dropped.null"]["n"] == 1
