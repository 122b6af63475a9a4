"""Data sources and the normal forms of rows."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import benchmarks, data
from align.artifacts import Conversations, Preferences, Prompts, Rows, Text
from align.data import Source
from align.errors import StageFailed
from align.out import Out

Write = Callable[[str, list[dict[str, Any]]], Path]

U = {"role": "user", "content": "Hi"}
A = {"role": "assistant", "content": "Hello"}
B = {"role": "assistant", "content": "Go away"}
BYE = {"role": "user", "content": "Bye"}
HUMAN = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return Out(tmp_path, tmp_path)


def read(path: Path, kind: type[Rows], out: Out | None = None, **keys: Any) -> list[dict[str, Any]]:
    return list(data.read(Source(path=str(path), **keys), kind, out))


def content(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


@pytest.mark.parametrize(
    ("kind", "row", "normal"),
    [
        (Text, {"text": "Once"}, {"text": "Once"}),
        (Prompts, {"prompt": "Hi", "answer": 4}, {"prompt": [U], "answer": 4}),
        (Prompts, {"prompt": [U]}, {"prompt": [U]}),
        (Prompts, {"messages": [U, A], "level": 1}, {"prompt": [U], "level": 1}),
        (Prompts, {"prompt": "Hi", "prompt_id": "ab", "level": 1}, {"prompt": [U], "level": 1}),
        (
            Prompts,
            {"instruction": "Add", "input": "1 2", "k": 1},
            {"prompt": [{"role": "user", "content": "Add\n\n1 2"}], "k": 1},
        ),
        (Conversations, {"messages": [U, A]}, {"messages": [U, A]}),
        (Conversations, {"messages": [U, A], "prompt": "x"}, {"messages": [U, A]}),
        (
            Conversations,
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            {"messages": [U, A]},
        ),
        (Conversations, {"prompt": "Hi", "completion": "Hello"}, {"messages": [U, A]}),
        (Conversations, {"prompt": "Hi", "response": "Hello"}, {"messages": [U, A]}),
        (Conversations, {"prompt": [U], "completion": [A]}, {"messages": [U, A]}),
        (
            Conversations,
            {"instruction": "Hi", "input": "", "output": "Hello"},
            {"messages": [U, A]},
        ),
        (
            Conversations,
            {"messages": [{**U, "tool_calls": None}, A], "tools": [{"name": "x"}]},
            {"messages": [U, A], "tools": [{"name": "x"}]},
        ),
        (
            Preferences,
            {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away", "margin": 1},
            {"prompt": [U], "chosen": [A], "rejected": [B], "margin": 1.0},
        ),
        (
            Preferences,
            {"chosen": [U, A], "rejected": [U, B]},
            {"prompt": [U], "chosen": [A], "rejected": [B]},
        ),
        (
            Preferences,
            {"prompt": "Hi", "chosen": [U, A], "rejected": [U, B]},
            {"prompt": [U], "chosen": [A], "rejected": [B]},
        ),
        (
            Preferences,
            {"prompt": "Hi", "chosen": [U, A, BYE, A], "rejected": [U, A, BYE, B]},
            {"prompt": [U, A, BYE], "chosen": [A], "rejected": [B]},
        ),
        (
            Preferences,
            {"prompt": "Hi ", "chosen": [U, A], "rejected": [U, B]},
            {"prompt": [U], "chosen": [A], "rejected": [B]},
        ),
        (
            Preferences,
            {
                "instruction": "Hi",
                "input": "",
                "output": "x",
                "chosen": "Hello",
                "rejected": "Go away",
            },
            {"prompt": [U], "chosen": [A], "rejected": [B]},
        ),
        (
            Preferences,
            {"chosen": HUMAN + " Yes", "rejected": HUMAN + " No"},
            {
                "prompt": [U, A, BYE],
                "chosen": [{"role": "assistant", "content": "Yes"}],
                "rejected": [{"role": "assistant", "content": "No"}],
            },
        ),
        (
            Preferences,
            {"prompt": "Hi", "ranked": ["Hello", "Hm", "Go away", "Hm"]},
            {"prompt": [U], "ranked": [[A], [{"role": "assistant", "content": "Hm"}], [B]]},
        ),
        (
            Preferences,
            {"prompt": "Hi", "ranked": ["Hello", "Go away"]},
            {"prompt": [U], "chosen": [A], "rejected": [B]},
        ),
    ],
)
def test_public_forms_are_understood(
    write_rows: Write, kind: type[Rows], row: dict[str, Any], normal: dict[str, Any]
) -> None:
    path = write_rows("rows.jsonl", [row])
    assert content(read(path, kind)) == [normal]
    artifact = kind(path.parent / "stage")
    (artifact.path / "data").mkdir(parents=True)
    (artifact.path / "data/rows.jsonl").write_text(json.dumps({"id": "a", **normal}))
    assert list(data.read(artifact, kind, None)) == [{"id": "a", **normal}]


def test_files_of_all_formats_hold_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f"Say {i}", "completion": f"né {i}"} for i in range(20)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "data": rows}))
    (tmp_path / "d.json").write_text(lines)
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
    for suffix, compress in packed.items():
        (tmp_path / f"e.jsonl.{suffix}").write_bytes(compress(lines.encode()))
    cells = "\n".join(f"{row['prompt']},{row['completion']}" for row in rows)
    (tmp_path / "f.csv").write_text("prompt,completion\n" + cells)
    (tmp_path / "f.tsv.xz").write_bytes(
        lzma.compress(("prompt,completion\n" + cells).replace(",", "\t").encode())
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "g.parquet")
    expected = read(tmp_path / "a.jsonl", Conversations)
    assert len({row["id"] for row in expected}) == 20
    for path in sorted(tmp_path.iterdir()):
        assert read(path, Conversations) == expected, path
    for keys in (
        {"data_files": str(tmp_path / "a.jsonl")},
        {"data_files": [str(tmp_path / "b.json")]},
    ):
        assert list(data.read(Source(path="json", **keys), Conversations, None)) == expected
    for part in range(2):
        (tmp_path / "folder").mkdir(exist_ok=True)
        half = lines.splitlines(keepends=True)[part * 10 : part * 10 + 10]
        packed = zstd("".join(half).encode())
        (tmp_path / f"folder/part-{part}.jsonl.zst").write_bytes(packed)
    assert read(tmp_path / "folder", Conversations) == expected
    assert read(tmp_path / "folder", Conversations, split="train[15:]") == expected[15:]


def zstd(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


def test_a_folder_has_the_splits_that_its_files_are_called_by(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split}) + "\n{")
    (tmp_path / "notes.txt").write_text("not data")
    for split in ("train", "test"):
        (row,) = read(tmp_path, Text, split=split, broken="drop")
        assert row["text"] == split
    with pytest.raises(StageFailed, match='has no split "dev". It has train, test.'):
        read(tmp_path, Text, split="dev")
    with pytest.raises(StageFailed, match=r"test\.jsonl, line 2 is damaged JSON"):
        read(tmp_path, Text, split="test")


def test_a_stream_is_sliced_and_counted_without_a_copy_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.txt").write_text("".join(f"line {n}\n" for n in range(50)))
    keys: dict[str, Any] = {"path": "text", "data_files": str(tmp_path / "a.txt")}

    def stream(**more: Any) -> list[str]:
        source = Source(**keys, streaming=True, **more)
        return [row["text"] for row in data.mix([source], Text, 0, None)]

    assert stream() == [f"line {n}" for n in range(50)]
    assert stream(split="train[10:13]") == ["line 10", "line 11", "line 12"]
    assert stream(split="train[48:]") == ["line 48", "line 49"]
    assert len(stream(count=7)) == 7 and len(stream(weight=2.0)) == 100
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    with pytest.raises(StageFailed, match=r"cannot be taken of a stream.*train\[1000:2000\]"):
        stream(split="train[10%:]")


@pytest.mark.parametrize(
    ("split", "rows"),
    [("train[:3]", "012"), ("train[8:]", "89"), ("train[-2:]", "89"), ("train[50%:60%]", "5")],
)
def test_a_split_can_be_sliced(write_rows: Write, split: str, rows: str) -> None:
    path = write_rows("rows.jsonl", [{"text": str(i)} for i in range(10)])
    assert "".join(row["text"] for row in read(path, Text, split=split)) == rows
    again = data.read(Source(path="json", data_files=str(path), split=split), Text, None)
    assert "".join(row["text"] for row in again) == rows


def test_columns_are_templates(write_rows: Write) -> None:
    path = write_rows("rows.jsonl", [{"q": "1+1", "a": "2", "said": [U, A]}])
    made = read(path, Conversations, columns={"prompt": "What is {q}?", "completion": "{a}"})
    assert [m["content"] for m in made[0]["messages"]] == ["What is 1+1?", "2"]
    assert read(path, Conversations, columns={"messages": "{said}"})[0]["messages"] == [U, A]
    with pytest.raises(StageFailed, match=r'row 1: columns\.prompt is "{x}".*There are q, a, said'):
        read(path, Prompts, columns={"prompt": "{x}"})


# -- ids and weights -----------------------------------------------------------------------------


def test_ids_are_the_sources_or_come_from_the_content(write_rows: Write) -> None:
    rows = [{"text": "a", "id": 7}, {"text": "b"}, {"text": "b"}, {"text": "c", "id": 7}]
    ids = [row["id"] for row in read(write_rows("rows.jsonl", rows), Text)]
    assert ids[0] == "7" and ids[3] == "7-1"
    assert len(ids[1]) == 16 and ids[2] == ids[1] + "-1"
    assert [row["id"] for row in read(write_rows("more.jsonl", rows[1:2]), Text)] == [ids[1]]


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 2.25])
def test_a_weight_says_how_often_rows_come(write_rows: Write, weight: float) -> None:
    path = str(write_rows("rows.jsonl", [{"text": str(i)} for i in range(2000)]))
    sources = [Source(path=path, weight=weight)]
    rows = list(data.mix(sources, Text, 5, None))
    assert len({row["id"] for row in rows}) == len(rows)
    share = weight % 1
    assert abs(len(rows) - 2000 * weight) <= 4 * (2000 * share * (1 - share)) ** 0.5
    assert rows == list(data.mix(sources, Text, 5, None))
    if share:
        assert rows != list(data.mix(sources, Text, 6, None))
        other = str(write_rows("part.jsonl", [{"text": str(i)} for i in range(500, 1000)]))
        part = {row["text"] for row in data.mix([Source(path=other, weight=share)], Text, 5, None)}
        whole = {row["text"] for row in data.mix([Source(path=path, weight=share)], Text, 5, None)}
        assert part == {text for text in whole if 500 <= int(text) < 1000}


# -- bad input -----------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_dropped_counted_and_shown(
    write_rows: Write, out: Out
) -> None:
    pairs = [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"},
        {"prompt": [U, A], "chosen": "Hello", "rejected": "No"},
    ]
    assert len(read(write_rows("pairs.jsonl", pairs), Preferences, out)) == 1
    assert out.counts["dropped.equal_answers"]["n"] == 1
    assert out.counts["dropped.equal_answers"]["examples"][0]["row"] == 2
    assert out.counts["dropped.no_question"]["n"] == 1
    said = [{"messages": [U, A]}, {"messages": [U]}, {"messages": [U, {**A, "content": ""}]}]
    assert len(read(write_rows("said.jsonl", said), Conversations, out)) == 1
    assert out.counts["dropped.no_answer"]["n"] == 2
    assert len(read(write_rows("text.jsonl", [{"text": " "}, {"text": "x"}]), Text, out)) == 1


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("a.jsonl", "", Text, r"a\.jsonl is empty\. Look at its path, split and slice"),
        ("a.json", "[]", Text, "is empty"),
        ("a.csv", "text\n", Text, "is empty"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', Text, "line 2 is damaged JSON"),
        ("a.jsonl", '{"text": "a', Text, "JSON: Unterminated string starting at character 10"),
        ("a.json", '[{"text": "a"}', Text, r"a\.json is damaged JSON"),
        ("a.jsonl", '"text"\n', Text, "line 1 is not an object"),
        ("a.json", "[1, 2]", Text, "is not a list of objects"),
        ("a.bin", "x", Text, r"files are read that end in \.jsonl"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"txt": "b"}',
            Text,
            'row 2: "text" is missing. The first row is',
        ),
        ("a.jsonl", '{"text": 1}', Text, 'row 1: "text" is the number 1'),
        (
            "a.jsonl",
            '{"question": "a", "answer": "b"}',
            Conversations,
            r"has the columns question, answer, and no format of conversations has those .*"
            r'Make them with `columns:`, as in columns: {prompt: "{question}", completion: '
            r'"{answer}"}',
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "user"}]}',
            Conversations,
            'row 1: "messages" holds a message of user without "content"',
        ),
        (
            "a.jsonl",
            '{"messages": 3}',
            Conversations,
            'row 1: "messages" is the number 3, and must be a text or a list',
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "chosen": "b", "rejected": "b"}',
            Preferences,
            r"none of its 1 rows can be used \(dropped.equal_answers\)",
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "a"}]}',
            Conversations,
            r"none of its 1 rows can be used \(dropped.no_answer\)",
        ),
    ],
)
def test_bad_data_is_a_sentence(
    tmp_path: Path, out: Out, name: str, text: str, kind: type[Rows], message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(StageFailed, match=message) as error:
        read(tmp_path / name, kind, out)
    assert name in str(error.value)


def test_a_file_has_one_split(write_rows: Write) -> None:
    path = write_rows("a.jsonl", [{"text": "a"}])
    with pytest.raises(StageFailed, match='has no split "test". It has train.'):
        read(path, Text, split="test")
    with pytest.raises(StageFailed, match=r'split "train\[x:\]" cannot be read'):
        read(path, Text, split="train[x:]")


def test_a_hub_name_while_offline_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailed, match="nobody/nothing cannot be read: it is not in the hub's"):
        list(data.read(Source(path="nobody/nothing"), Text, None))


def test_a_folder_of_several_formats_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "b.parquet").write_text("")
    with pytest.raises(StageFailed, match="several formats .*Name those you mean: data_files"):
        read(tmp_path, Text)


# -- real data -----------------------------------------------------------------------------------

DATA = Path(os.environ.get("ALIGN_DATA", "/nowhere"))


@pytest.mark.skipif(not DATA.is_dir(), reason="ALIGN_DATA is not set")
@pytest.mark.parametrize(
    ("file", "kind", "rows"),
    [
        ("tinystories/valid.jsonl", Text, 1000),
        ("raschka_instruct/instruction-data.json", Conversations, 1100),
        ("raschka_instruct/instruction-data-with-preference.json", Preferences, 1094),
        ("ultrafeedback_1k/eval_clean.jsonl", Preferences, 199),
        ("hh_rlhf_harmless_test/harmless-base.test.jsonl.gz", Preferences, 2299),
        ("ifeval/input_data.jsonl", Prompts, 541),
    ],
)
def test_real_data_is_read(file: str, kind: type[Rows], rows: int, out: Out) -> None:
    made = read(DATA / file, kind, out)
    assert len(made) == rows
    assert len({row["id"] for row in made}) == len(made)


def test_names_of_files_in_a_folder_are_not_looked_up_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("d/a.jsonl").write_text('{"text": "in the folder"}\n')
    Path("a.jsonl").write_text('{"text": "beside it"}\n')
    for source in (
        Source(path="./d", data_files="a.jsonl"),
        Source(path="json", data_dir="d", data_files="a.jsonl"),
    ):
        assert [row["text"] for row in data.read(source, Text, None)] == ["in the folder"]


def test_an_empty_cell_is_no_word_of_a_template(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('\ufeff{"a": "one", "b": null}\n', encoding="utf-8")  # with a mark, as Excel
    (row,) = data.read(Source(path=str(file), columns={"text": "{a} {b}!"}), Text, None)
    assert row["text"] == "one !"


def test_a_long_text_fits_in_a_csv_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "a" * 200_000 + "\n")
    (row,) = data.read(Source(path=str(tmp_path / "a.csv")), Text, None)
    assert len(row["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("a.csv", b"text\na,b\n", "line 2 has more cells than"),
        ("a.jsonl", b'{"text": "\xe9"}\n', "line 1 is not UTF-8: byte 11 of it is 0xe9"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1 holds half of a character"),
        ("a.jsonl.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("a.parquet", b"no parquet", "cannot be read: Parquet"),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path: Path, name: str, content: bytes, fact: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageFailed, match=fact):
        list(data.read(Source(path=str(tmp_path / name)), Text, None))


def test_a_stage_may_have_pairs_among_its_rankings(out: Out) -> None:
    pair = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}
    ranking = {"prompt": "2+2?", "ranked": ["4", "four", "5"]}
    out.write_rows([pair, ranking, {**pair, "prompt": "3+3?"}])
    found = list(data.read(Preferences(out.path), Preferences, None))
    assert ["ranked" in row for row in found] == [False, True, False]


def test_a_benchmark_is_read_as_it_is_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    half = Source(path=str(path), split="train[:1]")
    assert [row["text"] for row in benchmarks.rows(half, text=str)] == ["a"]
    with pytest.raises(StageFailed, match=r"read as it is, without count\. Leave that out"):
        list(benchmarks.rows(Source(path=str(path), count=1), text=str))
