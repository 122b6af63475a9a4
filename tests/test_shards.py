"""Shards: planned once, made whole or not at all, and made again only where they must be."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shouting import content, project, shout

from align.artifacts import Samples
from align.out import Out
from align.parallel import shards

__all__ = ["project"]


class Upper:
    """Work on rows of `id` and `text`; remembers what it was asked for."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.asked: list[int] = []
        self.stop_at = stop_at

    def worker(self, out: shards.Shard) -> shards.Work:
        def work(number: int, rows: list[shards.Row]) -> Iterator[shards.Row]:
            self.asked.append(number)
            for row in rows:
                if row["text"] == self.stop_at:
                    raise KeyboardInterrupt
                out.count("done", example=row["text"])
                yield {"id": row["id"], "text": row["text"].upper()}

        return work


def rows(n: int) -> Iterator[shards.Row]:
    return ({"id": str(i), "text": f"text {i}"} for i in range(n))


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return Out(tmp_path / "one.partial", tmp_path)


def test_no_row_is_dropped_or_doubled_for_any_count_and_any_size(out: Out) -> None:
    """One directory for all: every plan but the first finds the shards of another."""
    for n, size in itertools.product((8, 1, 7, 0, 2), (3, 1, 100, 2)):
        out.counts = {}
        shards.make(out, shards.cut(rows(n), size), Upper())
        assert list(Samples(out.path).rows()) == [
            {"id": str(i), "text": f"TEXT {i}"} for i in range(n)
        ]
        assert out.counts.get("done", {"n": 0})["n"] == n
        assert len(content(out)) == -(-n // size)


def test_a_plan_is_written_as_it_streams(out: Out) -> None:
    """What came before lies on the disk, so that nothing has to be kept."""

    def watched() -> Iterator[shards.Row]:
        for i, row in enumerate(rows(7)):
            assert len(list((out.path / shards.PLAN).glob("*.jsonl"))) == i // 2
            yield row

    shards.make(out, shards.cut(watched(), 2), Upper())
    assert len(content(out)) == 4


def test_what_was_interrupted_goes_on_with_the_shards_that_are_missing(out: Out) -> None:
    whole = Out(out.path.with_name("whole.partial"), out.cache)
    shards.make(whole, shards.cut(rows(7), 2), Upper())
    with pytest.raises(KeyboardInterrupt):
        shards.make(out, shards.cut(rows(7), 2), Upper(stop_at="text 5"))
    again = Upper()
    shards.make(out, shards.cut(rows(7), 2), again)
    assert again.asked == [2, 3]
    assert content(out) == content(whole)
    assert (
        out.counts
        == whole.counts
        == {"done": {"n": 7, "examples": [f"text {i}" for i in range(5)]}}
    )


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "unknown", "unread", "less"])
def test_a_shard_that_is_not_what_was_written_is_made_anew(out: Out, damage: str) -> None:
    shards.make(out, shards.cut(rows(7), 2), Upper())
    before = content(out)
    file = out.path / "data/shard-00001.jsonl"
    record = out.path / shards.MADE / "00001.json"
    whole = file.read_bytes()
    if damage == "flipped":
        file.write_bytes(whole.replace(b"TEXT 3", b"TEXT 4"))
    elif damage == "cut":
        file.write_bytes(whole[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "unknown":  # killed after the file was written and before that was noted
        record.unlink()
    elif damage == "unread":
        record.write_bytes(record.read_bytes()[:20])
    else:
        said = json.loads(record.read_text())
        del said["counts"]
        record.write_text(json.dumps(said))
    again = Upper()
    shards.make(out, shards.cut(rows(7), 2), again)
    assert again.asked == [1] and content(out) == before


def test_the_hundred_thousandth_shard_is_the_last(out: Out) -> None:
    out.path.mkdir()
    for number in (100000, 0, 99999):
        out.write_rows([{"id": number}], f"shard-{number:05d}")
    assert [row["id"] for row in Samples(out.path).rows()] == [0, 99999, 100000]


def test_rows_that_changed_make_their_shard_again(out: Out) -> None:
    shards.make(out, shards.cut(rows(7), 2), Upper())
    other = [{**row, "text": "other"} if row["id"] == "4" else row for row in rows(7)]
    again = Upper()
    shards.make(out, shards.cut(other, 2), again)
    assert again.asked == [2]
    assert [row["text"] for row in Samples(out.path).rows()][4] == "OTHER"


@pytest.mark.parametrize("wrong", [[0], [0, 1, 2], [1, 0], [0, 0]])
def test_work_that_loses_doubles_or_swaps_rows_is_a_defect(out: Out, wrong: list[int]) -> None:
    class Wrong:
        def worker(self, out: shards.Shard) -> shards.Work:
            return lambda number, planned: [{"id": str(i)} for i in wrong]

    with pytest.raises((AssertionError, ValueError)):
        shards.make(out, shards.cut(rows(2), 2), Wrong())
    assert not content(out)


def test_a_shard_is_made_once_whoever_asks(project: Path) -> None:
    """What another process does: from `stage.json` alone."""
    stage, out = shout(project, [f"word {i}" for i in range(5)])
    with pytest.raises(KeyboardInterrupt):
        shards.make(out, shards.cut(rows(5), 2), Upper(stop_at="text 0"))
    one = shards.join(out.path, "other")
    told = out.path / shards.PROGRESS / "other.json"
    assert not told.exists()
    with pytest.raises(KeyError):  # its own rows are prompts
        one(0)
    stage.run(out)
    before = content(out)
    times = {file: file.stat().st_mtime_ns for file in Samples(out.path).files()}
    one(0)
    assert content(out) == before
    assert {file: file.stat().st_mtime_ns for file in Samples(out.path).files()} == times


def test_progress_is_that_of_all_shards_together(out: Out) -> None:
    seen: list[Any] = []

    class Told:
        def worker(self, shard: shards.Shard) -> shards.Work:
            def work(number: int, planned: list[shards.Row]) -> Iterator[shards.Row]:
                for i, row in enumerate(planned):
                    shard._progress_at = out._progress_at = 0.0
                    shard.progress(10 * i, 10 * len(planned), "answers", f"at {row['id']}", 50 * i)
                    seen.append(json.loads((out.path / "progress.json").read_text()))
                    yield row
                shard.count("tokens", 100)

            return work

    shards.make(out, shards.cut(rows(5), 2), Told())
    assert [state["done"] for state in seen] == [0, 1, 2, 3, 4]
    assert {(state["total"], state["unit"]) for state in seen} == {(5, "prompts")}
    assert seen[0]["note"] == "at 0"
    rate, _, rest = seen[3]["note"].partition(" tokens/s, ")
    assert float(rate.replace(",", "")) > 0 and rest == "at 3"
