"""What is wrong with data: refused with a sentence, or dropped with a count."""

import bz2
import csv
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align import cli, data, glance, recipe
from align.artifacts import Conversations, Preferences, Prompts, Rows, Text
from align.data import Source
from align.errors import RecipeError, StageFailed
from align.out import Out
from align.sources import files

Row = dict[str, Any]


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return Out(tmp_path, tmp_path)


def read(path: Path, kind: type[Rows], out: Out | None = None, **keys: Any) -> list[Row]:
    return list(data.read(Source(path=str(path), **keys), kind, out))


def talk(*turns: str) -> list[Row]:
    """ "u:Hi" is a message of the user."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


# -- what is dropped -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "row", "why"),
    [
        (Conversations, {"messages": talk("u:", "a:Hello")}, "empty_turn"),
        (Conversations, {"messages": talk("u:Hi", "a:\n", "u:So?", "a:Yes")}, "empty_turn"),
        (Conversations, {"messages": talk("u:Hi", "a:Hello", "u:So?", "a:")}, "empty_turn"),
        (Conversations, {"messages": talk("u:Hi", "u:So?", "a:Yes")}, "two_in_a_row"),
        (Conversations, {"messages": talk("u:Hi", "a:One", "a:Two")}, "two_in_a_row"),
        (Conversations, {"messages": talk("a:Hello", "u:Hi", "a:Yes")}, "assistant_first"),
        (Conversations, {"messages": talk("s:Be", "a:Hello", "u:Hi", "a:Yes")}, "assistant_first"),
        (Conversations, {"messages": talk("u:Hi", "a:")}, "no_answer"),
        (Conversations, {"messages": None}, "null"),
        (
            Conversations,
            {"messages": [{"role": "user", "content": None}, *talk("a:Hi")]},
            "empty_turn",
        ),
        (Conversations, {"prompt": "Hi", "completion": None}, "null"),
        (Conversations, {"instruction": None, "output": "Hello"}, "null"),
        (Prompts, {"prompt": None}, "null"),
        (Prompts, {"prompt": " "}, "empty_turn"),
        (Prompts, {"messages": talk("a:Hello")}, "no_question"),
        (Text, {"text": None}, "null"),
        (Text, {"text": "\n"}, "empty"),
        (Preferences, {"prompt": "Hi", "chosen": None, "rejected": "No"}, "null"),
        (
            Preferences,
            {"prompt": talk("u:Hi", "u:So?"), "chosen": "a", "rejected": "b"},
            "two_in_a_row",
        ),
        (Preferences, {"prompt": "", "chosen": "a", "rejected": "b"}, "empty_turn"),
        (Preferences, {"prompt": "Hi", "ranked": ["a", "a"]}, "equal_answers"),
        (
            Preferences,
            {"prompt": "Hi", "chosen": "a", "rejected": "b", "strength": None},
            "null",
        ),
    ],
)
def test_what_nobody_should_train_on_is_dropped_and_counted(
    tmp_path: Path, out: Out, kind: type[Rows], row: Row, why: str
) -> None:
    good: Row = {"text": "a", "prompt": "Hi"}
    good |= {
        key: {"messages": talk("u:Hi", "a:Yes"), "ranked": ["a", "b"]}.get(key, key) for key in row
    }
    good |= {"prompt": "Hi"} | ({"strength": "better"} if "strength" in row else {})
    lines = [json.dumps({key: good[key] for key in row}), json.dumps(row)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert len(read(tmp_path / "a.jsonl", kind, out)) == 1
    assert {name: entry["n"] for name, entry in out.counts.items()} == {f"dropped.{why}": 1}
    assert out.counts[f"dropped.{why}"]["examples"][0]["row"] == 2


@pytest.mark.parametrize(
    "said",
    [
        talk("s:", "u:Hi", "a:Yes"),
        [
            *talk("u:Hi"),
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
            *talk("t:", "a:Yes"),
        ],
        [
            *talk("u:Hi"),
            {"role": "assistant", "tool_calls": [{"name": "f"}]},
            *talk("t:1", "t:2", "a:Yes"),
        ],
    ],
)
def test_an_empty_system_message_and_what_tools_say_are_no_empty_turns(
    tmp_path: Path, said: list[Row]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": said}))
    assert len(read(tmp_path / "a.jsonl", Conversations)) == 1


def test_the_same_id_twice_is_counted(tmp_path: Path, out: Out) -> None:
    lines = [json.dumps({"id": "x", "text": text}) for text in "abc"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert [row["id"] for row in read(tmp_path / "a.jsonl", Text, out)] == ["x", "x-1", "x-2"]
    assert out.counts["duplicate_ids"] == {
        "n": 2,
        "examples": [{"id": "x", "called": "x-1"}, {"id": "x", "called": "x-2"}],
    }


def test_a_row_of_ten_megabytes_is_read_and_shown_short(tmp_path: Path, out: Out) -> None:
    long = "word " * 2_000_000
    rows = [{"prompt": "Hi", "completion": long}, {"prompt": long, "completion": ""}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (row,) = read(tmp_path / "a.jsonl", Conversations, out)
    assert len(row["messages"][1]["content"]) == 10_000_000
    assert len(json.dumps(out.counts)) < 1000
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "Hi", "completion": [{"role": long}]}))
    with pytest.raises(StageFailed) as error:
        read(tmp_path / "b.jsonl", Conversations)
    assert len(str(error.value)) < 1000


# -- what is refused -----------------------------------------------------------------------------

OK = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


@pytest.mark.parametrize(
    ("line", "kind", "sentence"),
    [
        (
            '{"prompt": "a", "completion": "b"}',
            Conversations,
            r"row 2 is conversations from prompt, completion \(format: answers\), and the first "
            r"row is conversations from messages \(format: messages\)\. Put them in two files",
        ),
        ('{"said": "a"}', Conversations, 'row 2: "messages or conversations or text" is missing'),
        (
            '{"messages": [{"role": "critic", "content": "a"}]}',
            Conversations,
            "\"messages\" has the role 'critic', which is not known. Roles are system, .*gpt",
        ),
        ('{"messages": [{"content": "a"}]}', Conversations, 'row 2: "role" is missing'),
        ('{"messages": [{"role": 1, "content": "a"}]}', Conversations, "the role the number 1"),
        ('{"messages": ["a"]}', Conversations, "\"messages\" holds 'a' where a message should be"),
        (
            '{"messages": [{"role": "user", "content": 12}]}',
            Conversations,
            'row 2: "messages" holds a message of user with the number 12 where a',
        ),
        (
            '{"messages": 2.5}',
            Prompts,
            '"messages" is the number 2.5, and must be a text or a list',
        ),
        ('{"messages": ', Conversations, r"line 2 is damaged JSON: .* It begins: .* broken: drop"),
        ('["messages"]', Conversations, "line 2 is not an object with columns"),
        ("[" * 100_000, Conversations, "line 2 is damaged JSON"),
    ],
)
def test_a_row_that_is_not_like_the_first_is_a_sentence(
    tmp_path: Path, line: str, kind: type[Rows], sentence: str
) -> None:
    (tmp_path / "a.jsonl").write_text(f"{OK}\n{line}\n")
    with pytest.raises(StageFailed, match=sentence) as error:
        read(tmp_path / "a.jsonl", kind)
    assert "a.jsonl" in str(error.value)


def test_broken_lines_are_dropped_if_asked_and_shown(tmp_path: Path, out: Out) -> None:
    lines = [b'{"text": "a"}', b'{"text": "b', b"[1]", b'{"text": "\xe9"}', b'{"text": "c"}']
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(
            b"\n".join(lines[: 4 if name == "a.jsonl" else 3]) + b"\n" + lines[4]
        )
        made = read(tmp_path / name, Text, out, broken="drop")
        assert [row["text"] for row in made] == ["a", "c"]
    assert out.counts["dropped.broken_line"]["n"] == 5
    first, second, third, *_ = out.counts["dropped.broken_line"]["examples"]
    assert first["line"] == 2 and first["begins"] == '{"text": "b'
    assert "damaged JSON: Unterminated string" in first["fact"]
    assert (second["line"], second["fact"]) == (3, "is not an object with columns")
    assert (third["line"], third["fact"]) == (4, "is not UTF-8")
    (tmp_path / "a.csv").write_text("text,n\na,1\nb,2,3\n")
    assert len(read(tmp_path / "a.csv", Text, out, broken="drop")) == 1
    assert len(read(tmp_path / "a.jsonl", Text, broken="drop", split="train[1:]")) == 1
    assert len(read(tmp_path / "a.jsonl", Text, out, broken="drop", count=1)) == 1
    assert out.counts["dropped.broken_line"]["n"] == 9


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"text": "né"}'.encode("utf-16"), r"is UTF-16.*iconv -f UTF-16 -t UTF-8 a\.j"),
        ("a.csv", "text\nné\n".encode("utf-16"), "is UTF-16"),
        (
            "a.json",
            b'[\n{"text": "a"},\n{"text": "n\xe9"}]',
            r"line 3 is not UTF-8: byte \d+ of it",
        ),
        ("a.csv", b"text\na\nn\xe9\n", r"line 3 is not UTF-8: byte 2 .*iconv -f WINDOWS-1252 .* >"),
        (
            "a.jsonl.gz",
            # without mtime the time is in the bytes, and so in the name of the test: two workers
            # that collect in different seconds disagree
            gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-20],
            "cut short or damaged",
        ),
        ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 99)[:-20], "cut short or damaged"),
        ("a.jsonl.bz2", bz2.compress(b'{"text": "a"}\n' * 99)[:-20], "cut short or damaged"),
        ("a.jsonl.zst", b"no zstd", "cannot be read"),
        ("a.jsonl.lz4", b"", "files are read that end in .jsonl"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_a_sentence(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageFailed, match=sentence) as error:
        read(tmp_path / name, Text)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("row", "kind", "sentence"),
    [
        (
            {"prompt": "a", "completion": "b", "tools": "search the web"},
            Conversations,
            '"tools" is .search the web., and must be a list of objects, or such a list as JSON',
        ),
        ({"prompt": "a", "tools": ["search"]}, Prompts, '"tools" is .*columns:` tools: ""'),
        (
            {"prompt": "a", "completion": "b", "system": 7},
            Conversations,
            '"system" is the number 7, and must be a text',
        ),
        (
            {"prompt": "a", "completion": "b", "history": "long"},
            Conversations,
            '"history" holds .long. where a list of a question and an answer should be',
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url"}]}], "completion": "b"},
            Conversations,
            r"a part that is no text \('image_url'\), and models of text read nothing else",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_rejected": "n/a"},
            Preferences,
            '"score_rejected" is .n/a., and must be a number.*columns:` score_rejected: ""',
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 10**400},
            Preferences,
            '"margin" is the number 1000.*, and must be a number',
        ),
        ({"prompt": "a", "ranked": "bcd"}, Preferences, '"ranked" is .bcd., and must be a list'),
        ({"messages": "Hi"}, Prompts, '"messages" is .Hi., and must be a list, or one as JSON'),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "also_rejected": "text"},
            Preferences,
            '"also_rejected" is .text., and must be a list',
        ),
        *(
            (
                {"messages": [*talk("u:Hi"), {"role": "assistant", "tool_calls": calls}]},
                Conversations,
                '"messages" holds the tool_calls .*each with the "name" of its tool',
            )
            for calls in ([{"function": {"arguments": {}}}], [{}], "add", ["add"])
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "strength": 0.9},
            Preferences,
            '"strength" is the number 0.9, .*write under `columns:` strength: better',
        ),
        (
            {"messages": talk("u:<image>What is it?", "a:A cherry"), "images": ["cherry.jpg"]},
            Conversations,
            '"images" is not empty, and models of text .* write under `columns:` images: ""',
        ),
    ],
)
def test_a_column_that_is_not_what_it_must_be_is_a_sentence_whose_remedy_helps(
    tmp_path: Path, row: Row, kind: type[Rows], sentence: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(StageFailed, match=sentence) as error:
        read(tmp_path / "a.jsonl", kind)
    assert "names another form" not in str(error.value)
    remedy = re.search(r"under `columns:` (\w+): (\w+|\"\")", str(error.value))
    if remedy is not None:
        columns = {remedy[1]: remedy[2].strip('"')}
        assert len(read(tmp_path / "a.jsonl", kind, columns=columns)) == 1


def test_half_of_a_character_is_found_whatever_the_row_is_called(tmp_path: Path, out: Out) -> None:
    whole, half = (f'{{"id": "x", "text": "\\ud83d{n}"}}' for n in ("\\ude00", ""))
    (tmp_path / "a.jsonl").write_text(f"{whole}\n{half}\n")
    (tmp_path / "b.json").write_text(f"[{whole}, {half}]")
    for name, place in (("a.jsonl", "line 2"), ("b.json", "row 2")):
        with pytest.raises(StageFailed, match=f"{place} holds half of a character"):
            read(tmp_path / name, Text)
        assert len(read(tmp_path / name, Text, out, broken="drop")) == 1
    assert out.counts["dropped.broken_line"]["n"] == 2


def test_how_many_rows_there_were_is_said_of_gathered_ones_too(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completion": "a", "label": True}
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(row), json.dumps(row)] * 2))
    with pytest.raises(StageFailed, match=r"none of its 4 rows can be used \(dropped.no_partner\)"):
        read(tmp_path / "a.jsonl", Preferences)


# -- quotes in tables ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ['5,"an open quote', *(f"{n},a" for n in range(6, 40))],  # to the end of the file
        ['5,"an open quote', "6,a", '7,"b"'],  # to the next cell in quotes
        ['5,"an open quote', "6,a", '7",b'],  # to a quote that closes it: a cell too many
        ['"5" apples,a'],
    ],
)
def test_a_quote_that_is_not_closed_breaks_its_own_line_alone(
    tmp_path: Path, out: Out, lines: list[str]
) -> None:
    text = "\n".join(["prompt,completion", '1,"two\nlines"', *lines, "99,z", ""])
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(StageFailed, match=r"a\.csv, line 4 has a quote .* It begins: .?5") as error:
        read(tmp_path / "a.csv", Conversations)
    assert "write quotes in them twice, or leave such lines out: broken: drop" in str(error.value)
    made = read(tmp_path / "a.csv", Conversations, out, broken="drop")
    assert made[0]["messages"][1]["content"] == "two\nlines"
    assert len(made) == len(lines) + 1 and out.counts["dropped.broken_line"]["n"] == 1


def test_a_csv_cell_may_hold_many_lines(tmp_path: Path) -> None:
    poem = "\n".join(["Roses are red, violets blue,", *["and so, so on"] * 30, "the end"])
    (tmp_path / "a.csv").write_text(f'prompt,completion\nRhyme,"{poem}"\n')
    (row,) = read(tmp_path / "a.csv", Conversations)
    assert row["messages"][1]["content"] == poem


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_a_cell_in_quotes_may_hold_anything(tmp_path: Path, suffix: str, mark: str) -> None:
    lines = [f"p{n}{mark}{n}" for n in range(12)]  # each as a row of the table would be
    code = f'def f(a,\n{mark}b):\n{mark}return "a", \'"\'\n\n'
    answers = ["\n".join(lines), "\r\n".join(lines), code, f'"{mark}"\n{mark}"', f"a{mark}b", '"\n']
    rows = [("Q", one, "x") for one in answers] + [(one, "A", "") for one in answers]
    path = tmp_path / f"a.{suffix}"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows([("prompt", "completion", "from"), *rows])
        file.write(f'Short{mark}"two\nlines"\n')
    names = ("prompt", "completion", "from")
    made = [dict(zip(names, row, strict=True)) for row in [*rows, ("Short", "two\nlines", None)]]
    assert list(files.rows([path])) == made


def test_quotes_of_a_tsv_are_text_unless_they_hold_a_cell(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(
        'prompt\tcompletion\n"Hello" she said\tHi\n"An open quote\tno end\n'
        'ten\t"tab\tand\nline"\n"two\nlines"\t"one ""word"""\n"Ends\tc\nd"\there\n"Open\tlast\n'
    )
    made = read(tmp_path / "a.tsv", Conversations)
    assert [[m["content"] for m in row["messages"]] for row in made] == [
        ['"Hello" she said', "Hi"],
        ['"An open quote', "no end"],
        ["ten", "tab\tand\nline"],
        ["two\nlines", 'one "word"'],
        ["Ends\tc\nd", "here"],
        ['"Open', "last"],
    ]


def test_a_quote_of_a_tsv_that_leaves_too_few_cells_breaks_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('prompt\tcompletion\n"Open\nQ\tA\n')
    with pytest.raises(StageFailed, match=r"line 2 has a quote .* Put quotes around .* with tabs"):
        list(files.rows([tmp_path / "a.tsv"]))


# -- how many ------------------------------------------------------------------------------------


def numbers(path: Path, texts: range) -> Path:
    path.write_text("".join(json.dumps({"text": str(text)}) + "\n" for text in texts))
    return path


def drawn(path: Path, seed: int = 0, **keys: Any) -> set[int]:
    rows = data.mix([Source(path=str(path), **keys)], Text, seed, None)
    return {int(row["text"]) for row in rows}


def test_a_count_draws_rows_by_seed_whatever_their_order(tmp_path: Path) -> None:
    up = numbers(tmp_path / "a.jsonl", range(1000))
    down = numbers(tmp_path / "b.jsonl", range(999, -1, -1))
    found = drawn(up, count=100)
    assert len(found) == 100 and found == drawn(down, count=100)
    assert found != drawn(up, seed=1, count=100)
    assert found < drawn(up, count=101)
    assert sum(found) / 100 == pytest.approx(499.5, abs=4 * 289 / 10)
    in_order = [int(row["text"]) for row in read(up, Text, count=100)]
    assert in_order == sorted(found)


def test_a_count_above_what_there_is_is_a_sentence(tmp_path: Path) -> None:
    path = numbers(tmp_path / "a.jsonl", range(10))
    assert len(drawn(path, count=10)) == 10
    with pytest.raises(StageFailed, match=r"has 10 rows .* asks for 11\. .* repeat rows with `wei"):
        drawn(path, count=11)
    with pytest.raises(ValidationError, match='"count" and "weight" both say how many'):
        Source(path="a.jsonl", count=3, weight=2.0)


def test_rows_whose_prompts_stand_elsewhere_are_left_out(tmp_path: Path, out: Out) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": f"{n}"} for n in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held = [
        {"chosen": talk("u:question  3?", "a:x"), "rejected": talk("u:question  3?", "a:y")},
        {
            "chosen": talk("u:Question 5?", "a:x", "u:And?", "a:z"),
            "rejected": talk("u:Question 5?", "a:x", "u:And?", "a:y"),
        },
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, held)))
    without = [Source(path=str(tmp_path / "b.jsonl"))]
    made = read(tmp_path / "a.jsonl", Conversations, out, without=without)
    assert [row["messages"][1]["content"] for row in made] == list("01246789")
    assert out.counts["dropped.prompt_elsewhere"]["n"] == 2
    with pytest.raises(StageFailed, match="Documents have no prompts"):
        read(numbers(tmp_path / "c.jsonl", range(3)), Text, without=without)


@pytest.mark.parametrize(
    ("name", "text", "keys", "sentence"),
    [
        ("a.jsonl", '{"text": "a"}\n', "", r"a\.jsonl has the columns text, and no format of conv"),
        ("a.jsonl", '{"prompt": \n', "", r"a\.jsonl, line 1 is damaged JSON"),
        ("a.csv", "prompt,response\né,b\n", "", r"a\.csv, line 2 is not UTF-8"),
        (
            "a.jsonl",
            '{"prompt": "a", "response": "b"}\n',
            "format: pairs",
            "pairs takes chosen .* and",
        ),
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n', "format: pair", 'Did you mean "pairs"'),
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n', "count: 0", "must be greater than or"),
        (
            "a.jsonl",
            '{"prompt": "a", "response": "b"}\n',
            "count: 1, weight: 2.0",
            "both say how many",
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "response": "b"}\n',
            "strength: [weak]",
            'must be "significantly", "better"',
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "response": "b"}\n',
            "without: [b.jsonl]",
            'no file "b.jsonl"',
        ),
    ],
)
def test_what_is_wrong_with_a_local_file_is_known_when_the_recipe_is_read(
    tmp_path: Path, name: str, text: str, keys: str, sentence: str
) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    (tmp_path / "r.yaml").write_text(
        "base: nobody/nothing\nstages:\n"
        f"  sft: {{model: base, data: [{{path: {tmp_path / name}, {keys}}}]}}\n"
    )
    with pytest.raises(RecipeError, match=sentence) as error:
        recipe.read(tmp_path / "r.yaml", store=tmp_path / "runs")
    assert error.value.problems[0].path.startswith("stages.sft.data.0")


def test_a_long_json_file_is_left_to_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}]')
    source = Source(path=str(tmp_path / "a.json"))
    with pytest.raises(StageFailed, match="no format of conversations"):
        glance.form_of(source, [Conversations], any_file=True)
    monkeypatch.setattr(glance, "WHOLE", 4)
    assert glance.form_of(source, [Conversations], any_file=True) is None


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_data_that_a_later_stage_cannot_take_stops_the_recipe_before_the_first(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "b.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n')
    (tmp_path / "c.json").write_text('[{"text": "a"}]')
    file = tmp_path / "r.yaml"
    file.write_text(
        "stages:\n"
        f"  first: {{use: curate, rows: conversations, data: [{tmp_path}/a.jsonl]}}\n"
        f"  second: {{use: curate, rows: conversations, data: [{tmp_path}/b.jsonl]}}\n"
        f"  third: {{use: curate, rows: text, data: [{{path: {tmp_path}/a.jsonl, split: dev}}],\n"
        f"    decontaminate: [{{use: eval/gsm8k.py, data: {{path: {tmp_path}/b.jsonl,\n"
        "      split: 'test[:8]'}}]}\n"
        f"  fourth: {{use: curate, rows: conversations, data: [{tmp_path}/c.json]}}\n"
    )
    assert cli.main([verb, str(file), "--store", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert (
        re.search(r"r\.yaml:3:\d+: stages.second.data.0: ", said)
        and "no format of conversations" in said
    )
    assert f'stages.third.data.0: {tmp_path}/a.jsonl has no split "dev"' in said
    assert f'stages.third.decontaminate.0.data: {tmp_path}/b.jsonl has no split "test"' in said
    assert ("stages.fourth.data.0: " in said) == (verb == "run"), "a plan reads no whole file"
    assert not list((tmp_path / "runs").glob("curate-*"))


def test_a_source_that_rows_are_kept_apart_from_is_part_of_the_key(
    tmp_path: Path,
) -> None:
    def key(held_out: str) -> str:
        (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": held_out}))
        plan = recipe.read(tmp_path / "r.yaml", store=tmp_path / "runs")
        record = json.loads(json.dumps(plan.stages["sft"].record))
        assert recipe.restore(record, tmp_path / "runs") is not None
        return plan.stages["sft"].artifact.key

    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "r.yaml").write_text(
        f"base: nobody/nothing\nstages:\n  sft: {{model: base, data: [{{path: {tmp_path}/a.jsonl, "
        f"without: [{tmp_path}/b.jsonl]}}]}}\n"
    )
    assert key("one") == key("one") != key("two")


def test_a_plan_says_what_local_files_are_taken_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "r.yaml").write_text(
        f"base: nobody/nothing\nstages:\n  sft: {{model: base, data: {tmp_path}/a.jsonl}}\n"
        f"  dpo: {{model: sft, data: [{{path: {tmp_path}/a.jsonl, count: 7}}]}}\n"
    )
    assert cli.main(["plan", str(tmp_path / "r.yaml"), "--store", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    read_as = "from prompt, chosen, rejected (format: pairs)"
    assert f"sft.data, {tmp_path}/a.jsonl: conversations {read_as}" in said
    assert f"dpo.data, {tmp_path}/a.jsonl: preferences {read_as}" in said
    assert "21 rows" in said, "7 in each of TRL's 3 epochs"
