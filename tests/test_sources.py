"""Which files a source names, and that the plan, the key and the reader mean the same ones."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from align import data, recipe
from align.artifacts import Conversations, Prompts, Rows, Text
from align.data import Source
from align.errors import RecipeError, StageFailed
from align.sources import files, loading, questions

Row = dict[str, Any]


def write(path: Path, *rows: Row) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def texts(path: str = ".", kind: type[Rows] = Text, **keys: Any) -> list[str]:
    return [row["text"] for row in data.read(Source(path=path, **keys), kind, None)]


def key(**source: Any) -> str:
    """The key of a stage that reads a source, here."""
    Path("r.yaml").write_text(
        f"base: nobody/nothing\nstages:\n  sft: {{model: base, data: {json.dumps(source)}}}\n"
    )
    return recipe.read(Path("r.yaml"), store=Path("runs")).stages["sft"].artifact.key


# -- which files ---------------------------------------------------------------------------------


def test_names_in_a_folder_are_in_there_for_the_plan_and_the_key_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside, beside = {"text": "in the folder"}, {"text": "beside it"}
    for path in ("mix", "./mix", str(tmp_path / "mix")):
        for names in ("*.jsonl", "a.jsonl", {"train": ["a.jsonl"]}):
            source = {"path": path, "data_files": names}
            write(Path("mix/a.jsonl"), inside)
            before = key(**source)
            write(Path("a.jsonl"), beside)
            assert key(**source) == before
            assert texts(**source) == ["in the folder"]
            write(Path("mix/a.jsonl"), inside, inside)
            assert key(**source) != before
            Path("a.jsonl").unlink()
    write(Path("a.jsonl"), beside)
    Path("mix/a.jsonl").unlink()
    write(Path("mix/b.jsonl"), inside)
    with pytest.raises(RecipeError, match='there is no file "a.jsonl"'):
        key(path="mix", data_files="a.jsonl")


def test_a_folder_is_no_loader_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("text/a.txt"), {"text": "a loader would make a text of this line"})
    write(Path("text/b[1]/a.jsonl"), {"text": "one"})
    assert texts("text", data_files="a.jsonl", data_dir="b[1]") == ["one"]
    assert texts("text/b[1]", data_files="*") == ["one"]


def test_which_split_a_file_is_of_is_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.jsonl"), {"text": "a"})
    write(Path("b.jsonl"), {"text": "b"})
    apart: Row = {"path": "json", "data_files": {"train": "a.jsonl", "test": "b.jsonl"}}
    both: Row = {"path": "json", "data_files": {"train": ["a.jsonl", "b.jsonl"]}}
    assert key(**apart) != key(**both)
    one: Row = {"path": "json", "data_files": "a.jsonl"}
    assert key(**one) == key(**{**one, "data_files": {"train": "a.jsonl"}})
    assert texts(**apart, split="test") == ["b"] and texts(**both) == ["a", "b"]
    with pytest.raises(StageFailed, match=r'has no split "dev"\. It has train, test\.'):
        texts(**apart, split="dev")


def test_splits_and_slices_of_several_files_are_added_up_as_datasets_adds_them(
    tmp_path: Path,
) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", *({"text": f"{name} {n}"} for n in range(4)))
    split = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    for source in ({"path": str(tmp_path)}, {"path": "json", "data_files": split}):
        both: Any = {**source, "split": "test[:1]+train[75%:]"}
        assert texts(**both) == ["test 0", "train 3"]
        whole = [f"{name} {n}" for name in ("train", "test") for n in range(4)]
        assert texts(**{**both, "split": "train + test"}) == whole
        assert texts(**{**both, "split": "all"}) == whole
        with pytest.raises(StageFailed, match=r'has no split "dev"\. It has train, test\.'):
            texts(**{**both, "split": "train[:1]+dev[:1]"})


def test_what_datasets_reads_in_a_folder_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Row = {}
    monkeypatch.setattr(
        loading, "load", lambda _, **keys: asked.update(keys) or iter([{"text": "a"}])
    )
    monkeypatch.chdir(tmp_path)
    write(Path("mine/a.arrow"), {})
    assert texts("mine", data_files="a.arrow") == ["a"]
    assert asked["path"] == str(tmp_path / "mine")
    assert asked["data_files"] == {"train": [str(tmp_path / "mine/a.arrow")]}


def test_a_file_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "b[1]/z[2].jsonl", {"text": "a"})
    assert texts("json", data_files=str(path)) == ["a"]
    write(tmp_path / "b[1]/z2.jsonl", {"text": "b"})
    assert texts(str(tmp_path / "b[1]"), data_files="z[0-9].jsonl") == ["b"]


def test_a_link_up_is_no_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("mine/train.jsonl"), {"text": "a"})
    Path("mine/up").symlink_to(Path(".."))
    before = key(path="mine")
    write(Path("runs/more.jsonl"), {"text": "b"})
    assert key(path="mine") == before


def test_a_link_to_a_folder_is_read_and_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("real/train-00000-of-00001.jsonl"), {"prompt": "a", "completion": "b"})
    Path("mine").mkdir()
    Path("mine/data").symlink_to(Path("../real"))
    Path("real/circle").symlink_to(Path("../mine"))
    before = key(path="mine")
    (row,) = data.read(Source(path="mine"), Conversations, None)
    write(Path("real/train-00000-of-00001.jsonl"), {"prompt": "a", "completion": "c"})
    assert key(path="mine") != before


def test_a_part_of_a_folder_is_read_alone(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name / "train.jsonl", {"text": name})
    assert texts(str(tmp_path), data_dir="b") == ["b"]


# -- what is in them -----------------------------------------------------------------------------


def test_bytes_of_a_parquet_file_are_text_or_left_out_or_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file, image = tmp_path / "a.parquet", b"\x89PNG"
    columns = {
        "id": [image, image],
        "prompt": ["Grün?".encode(), b"Red?"],
        "sha": ["a", image],
        "image": [{"bytes": image, "path": "x"}] * 2,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    green, red = data.read(Source(path=str(file)), Prompts, None)
    assert green["prompt"] == [{"role": "user", "content": "Grün?"}] and green["sha"] == "a"
    assert set(green) == {"id", "prompt", "sha"} and set(red) == {"id", "prompt"}
    assert green["id"].isalnum() and green["id"] != red["id"]
    for template, said in (
        ("{sha}", r"row 2: \"prompt\" is b'.x89PNG' \(no UTF-8 text\), and must be a text"),
        ("See {sha}", r"row 2: columns\.prompt is .* b'.x89PNG' \(no UTF-8 text\) is no column"),
        ("See {image[bytes]}", r"row 1: columns\.prompt is .* is no column"),
    ):
        with pytest.raises(StageFailed, match=said):
            list(data.read(Source(path=str(file), columns={"prompt": template}), Prompts, None))


def test_a_packed_parquet_file_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(StageFailed, match="but for parquet, which is packed in itself"):
        list(files.rows([tmp_path / "a.parquet.gz"]))


def test_a_number_that_python_does_not_read_breaks_its_line_alone(tmp_path: Path) -> None:
    lines = '{"text": "a"}\n\n{"text": "b", "n": 1' + "0" * 5000 + '}\n\n{"text": "c"}\n'
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(lines)
        assert texts(str(tmp_path / name), broken="drop") == ["a", "c"]
        with pytest.raises(StageFailed, match=r"line 3 holds a whole number of more than 4,300"):
            texts(str(tmp_path / name))


def test_a_part_of_a_column_is_taken_as_it_is(tmp_path: Path) -> None:
    dialog = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = str(write(tmp_path / "a.jsonl", {"data": {"said": dialog, "n": 3}, "name": "x"}))
    source = Source(path=path, columns={"messages": "{data[said]}"})
    (row,) = data.read(source, Conversations, None)
    assert row["messages"] == dialog
    for template in ("{data[more]}", "{name[more]}"):
        with pytest.raises(StageFailed, match=r"row 1: columns\.messages is .* There are data"):
            list(data.read(Source(path=path, columns={"messages": template}), Prompts, None))


def test_who_writes_to_a_file_that_is_counted_is_noticed(tmp_path: Path) -> None:
    rows = [{"text": str(n)} for n in range(100)]
    path = write(tmp_path / "a.jsonl", *rows)
    found = data.read(Source(path=str(path), count=50), Text, None)
    write(path, *rows[:30])
    with pytest.raises(StageFailed, match=r"in place of 50: it changed between the two times"):
        list(found)


def test_what_the_system_says_makes_no_other_question(tmp_path: Path) -> None:
    asks, says = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    other = {"role": "user", "content": "Another"}
    plain = write(tmp_path / "a.jsonl", {"messages": [asks, says]}, {"messages": [other, says]})
    for role in ("system", "developer"):
        told = {"role": role, "content": ""}
        held = write(tmp_path / "b.jsonl", {"messages": [told, asks, says]})
        source = Source(path=str(plain), without=[Source(path=str(held))])
        (row,) = data.read(source, Conversations, None)
        assert row["messages"] == [other, says]
    document = " ".join(["word"] * 65)
    messages = [[{"role": "system", "content": f"{n} {document}"}, asks] for n in (1, 2)]
    first, second = (questions.number({"prompt": said}) for said in messages)
    assert first != second, "the question is about a document"
    alone = [{"prompt": [{"role": "system", "content": text}]} for text in ("One.", "Two.")]
    assert questions.number(alone[0]) != questions.number(alone[1])
