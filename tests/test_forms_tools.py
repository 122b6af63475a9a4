"""Files of LLaMA-Factory, axolotl and ms-swift: read as they are, with `columns:`, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import data
from align.artifacts import Conversations, Preferences, Rows
from align.data import Source
from align.errors import StageFailed
from align.out import Out

Row = dict[str, Any]
Write = Callable[[str, list[Row]], Path]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def human(text: str, **more: Any) -> Row:
    return {"from": "human", "value": text, **more}


def gpt(text: str, **more: Any) -> Row:
    return {"from": "gpt", "value": text, **more}


def read(path: Path, kind: type[Rows], out: Out | None = None, **keys: Any) -> list[Row]:
    rows = data.read(Source(path=str(path), **keys), kind, out)
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


SYSTEM = {"role": "system", "content": "Be kind."}
BEFORE = {"system": "Be kind.", "history": [["Hi", "Hello"]]}
ASKED = [SYSTEM, user("Hi"), assistant("Hello"), user("Red?")]
PAIR = {"chosen": [assistant("Yes")], "rejected": [assistant("No")]}
Q = [user("Red?")]
YES = {"response": "Yes"}
SYSTEM_PROMPT = {"system": "{system_prompt}", "prompt": "{question}"}
CALL = '{"name": "find", "arguments": {"of": "red"}}'
CALLED = {"type": "function", "function": {"name": "find", "arguments": {"of": "red"}}}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Red?", "input": "", "chosen": "Yes", "rejected": "No"} | BEFORE, ASKED),
        (
            {"conversations": [human("Red?")], "system": "Be kind."}
            | {"chosen": gpt("Yes"), "rejected": gpt("No")},
            [SYSTEM, *Q],
        ),
        ({"messages": ASKED, "chosen": assistant("Yes"), "rejected": assistant("No")}, ASKED),
        ({"messages": [*ASKED, assistant("Yes")], "rejected_response": "No"}, ASKED),
        (
            {"messages": [*Q, assistant("Yes")], "rejected_messages": [*Q, assistant("No")]},
            Q,
        ),
        ({"instruction": "Red?", "chosen_response": "Yes", "rejected_response": "No"}, Q),
    ],
)
def test_a_comparison_is_read_beside_its_prompt_or_in_it(
    row: Row, prompt: list[Row], write_rows: Write
) -> None:
    path = write_rows("a.jsonl", [row])
    assert read(path, Preferences) == [{"prompt": prompt, **PAIR}]
    assert read(path, Conversations) == [{"messages": [*prompt, assistant("Yes")]}]


@pytest.mark.parametrize(
    ("row", "answer", "mark"),
    [
        ({"instruction": "Red?", "input": ""}, "output", "kto_tag"),
        ({}, "conversations", "kto_tag"),
        ({}, "messages", "label"),
    ],
)
def test_an_answer_that_is_marked_bad_is_not_learnt(
    row: Row, answer: str, mark: str, write_rows: Write, tmp_path: Path
) -> None:
    def said(text: str) -> Any:
        return text if answer == "output" else [*Q, assistant(text)]

    rows = [{**row, answer: said("Yes"), mark: True}, {**row, answer: said("No"), mark: False}]
    path, out = write_rows("a.jsonl", rows), Out(tmp_path, tmp_path)
    assert read(path, Conversations, out) == [{"messages": [*Q, assistant("Yes")]}]
    assert out.counts["dropped.marked_bad"]["n"] == 1
    assert read(path, Preferences) == [{"prompt": Q, **PAIR}]


@pytest.mark.parametrize(
    ("turns", "normal"),
    [
        (
            [{"from": "function_call", "value": CALL}, {"from": "observation", "value": "3"}],
            [assistant("", tool_calls=[CALLED]), {"role": "tool", "content": "3"}],
        ),
        (
            [{"from": "function_call", "value": f"[{CALL}, {CALL}]"}],
            [assistant("", tool_calls=[CALLED, CALLED])],
        ),
        (
            [
                assistant("I look."),
                {"role": "tool_call", "content": CALL},
                {"role": "tool_call", "content": CALL},
                {"role": "tool_response", "content": "3"},
            ],
            [
                assistant("I look.", tool_calls=[CALLED, CALLED]),
                {"role": "tool", "content": "3"},
            ],
        ),
    ],
)
def test_a_call_of_a_tool_in_a_text_is_a_call(
    turns: list[Row], normal: list[Row], write_rows: Write
) -> None:
    path = write_rows("a.jsonl", [{"conversations": [human("Red?"), *turns]}])
    assert read(path, Conversations) == [{"messages": [*Q, *normal]}]


@pytest.mark.parametrize("text", ["{", "3", "[]", '{"name": "find"}', '["find"]', None])
def test_a_call_of_a_tool_that_is_broken_is_dropped(
    text: str | None, write_rows: Write, tmp_path: Path
) -> None:
    bad = {"messages": [*Q, {"role": "function_call", "content": text}]}
    path = write_rows("a.jsonl", [{"messages": [*Q, assistant("Yes")]}, bad])
    out = Out(tmp_path, tmp_path)
    assert len(read(path, Conversations, out)) == 1
    assert out.counts["dropped.broken_call"]["n"] == 1


@pytest.mark.parametrize("mark", ["train", "training", "loss"])
def test_a_message_that_is_not_to_be_learnt_has_no_weight(mark: str, write_rows: Write) -> None:
    turns = [human("Red?"), gpt("Yes", **{mark: False}), human("Red?"), gpt("Yes", **{mark: True})]
    path = write_rows("a.jsonl", [{"conversations": turns}])
    kept = [*Q, assistant("Yes", weight=0), *Q, assistant("Yes")]
    assert read(path, Conversations) == [{"messages": kept}]


def test_a_call_and_the_turn_before_it_of_another_weight_are_two(
    write_rows: Write, tmp_path: Path
) -> None:
    said = assistant("I look.", loss=False)
    bad = {"messages": [*Q, said, {"role": "tool_call", "content": CALL}]}
    path = write_rows("a.jsonl", [{"messages": [*Q, assistant("Yes")]}, bad])
    out = Out(tmp_path, tmp_path)
    assert len(read(path, Conversations, out)) == 1
    assert out.counts["dropped.two_in_a_row"]["n"] == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, "train_detail"),
        ({"train": "false"}, "\"train\": 'false', which is true where it is learnt"),
    ],
)
def test_a_mark_that_cannot_be_followed_is_a_sentence(
    more: Row, sentence: str, write_rows: Write
) -> None:
    path = write_rows("a.jsonl", [{"messages": [*Q, assistant("Yes", **more)]}])
    with pytest.raises(StageFailed, match=sentence):
        read(path, Conversations)


@pytest.mark.parametrize(
    ("row", "kind", "columns"),
    [
        ({"query": "Red?", "response": "Yes"} | BEFORE, Conversations, {"prompt": "{query}"}),
        ({"question": "Red?", "chosen": "Yes", "rejected": "No"}, Preferences, None),
        ({"question": "Red?", "chosen": "Yes", "rejected": "No"}, Conversations, None),
        ({"input": "Red?", "chosen": "Yes", "rejected": "No"}, Preferences, {"prompt": "{input}"}),
        ({"question": "Red?", "completion": "Yes", "label": True}, Conversations, None),
        (
            {"query": "Red?", "response": "Yes", "rejected_response": "No"},
            Preferences,
            {"prompt": "{query}", "chosen": "{response}", "rejected": "{rejected_response}"},
        ),
        (
            {"question": "Red?", "answer": "Yes"},
            Conversations,
            {"prompt": "{question}", "completion": "{answer}"},
        ),
    ],
)
def test_the_remedy_for_columns_of_other_names_helps(
    row: Row, kind: type[Rows], columns: Row | None, write_rows: Write
) -> None:
    path, columns = write_rows("a.jsonl", [row]), columns or {"prompt": "{question}"}
    with pytest.raises(StageFailed) as refused:
        read(path, kind)
    remedy = ", ".join(f"{name}: {json.dumps(old)}" for name, old in columns.items())
    assert f"columns: {{{remedy}}}." in str(refused.value)
    (made,) = read(path, kind, columns=columns)
    prompt = ASKED if "history" in row else Q
    pair = {"prompt": prompt, **PAIR}
    assert made == ({"messages": [*prompt, assistant("Yes")]} if kind is Conversations else pair)


@pytest.mark.parametrize(
    "row",
    [
        {"segments": [{"label": True, "text": "<s>Yes</s>"}]},
        {"conversation": [{"human": "Red?", "assistant": "Yes"}]},
        {"input_ids": [1], "attention_mask": [1], "labels": [1]},
        {"text": "Once upon a time"},
        {"messages": [assistant("Once upon a time")]},
        {"prompt": "Red?", "answers": [{"answer": "Yes", "rank": 1}]},
    ],
)
def test_what_is_no_dialog_is_not_read_as_one(row: Row, write_rows: Write) -> None:
    with pytest.raises(StageFailed):
        read(write_rows("a.jsonl", [row]), Conversations)


def test_a_column_that_is_not_read_is_named_and_read_where_columns_say_so(
    write_rows: Write, capsys: Any, tmp_path: Path
) -> None:
    path = write_rows("a.jsonl", [{"prompt": "Red?", "query": "A cherry", "response": "Yes"}])
    read(path, Conversations, Out(tmp_path, tmp_path))
    assert "Not read: query" in capsys.readouterr().err
    (made,) = read(path, Conversations, columns={"prompt": "{prompt}\n\n{query}"})
    assert made["messages"][0] == user("Red?\n\nA cherry")
    path = write_rows("a.jsonl", [{"system_prompt": "Be kind.", "question": "Red?"} | YES])
    (made,) = read(path, Conversations, columns=SYSTEM_PROMPT)
    assert made["messages"] == [SYSTEM, *Q, assistant("Yes")]


def test_the_value_of_a_message_with_a_role_is_read(write_rows: Write) -> None:
    turns = [{"role": "user", "value": "Red?"}, {"role": "assistant", "value": "Yes"}]
    path = write_rows("a.jsonl", [{"conversations": turns}])
    assert read(path, Conversations) == [{"messages": [*Q, assistant("Yes")]}]
