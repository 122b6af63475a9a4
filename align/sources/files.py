"""Rows of local files, streamed: JSON lines, JSON, csv, tsv and parquet, compressed or not.

What is wrong with a line is said with its number and what mends it. Nothing is skipped unless the
caller takes what is broken.
"""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import IO, Any, cast

from align.errors import StageFailed

Row = dict[str, Any]

Broken = Callable[[int, str, str], None]
"""Takes a line that cannot be read: its number, what is wrong, how it begins."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

PACKED = (".gz", ".bz2", ".xz", ".zst")

UTF_16 = (b"\xff\xfe", b"\xfe\xff")

HALF = "holds half of a character (a lone surrogate, as \\ud800 without \\udc00)"

_HALVES = re.compile(rb"\\u[dD]")
"""How JSON begins a half: only these lines are looked at, as it costs time."""

START = 80
"""Characters of a broken line that are shown."""


def format_of(path: Path) -> str:
    """The suffix that says how a file is written, without that of its compression."""
    stem = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return stem.suffix.lower()


def rows(paths: Iterable[Path], broken: Broken | None = None) -> Iterator[Row]:
    """The rows of files, one after the other.

    Args:
        paths: of files whose suffix says what they are.
        broken: takes lines that cannot be read; None: they are an error.

    Raises:
        StageFailed: a file, or a line of it, cannot be read.
    """
    return chain.from_iterable(_file(path, broken) for path in paths)


def sliced(paths: list[Path], split: str, broken: Broken | None = None) -> Iterator[Row]:
    """The rows of a slice, `test[10%:]`; all are read twice, so that they need not be kept.

    Raises:
        StageFailed: the slice cannot be read; or see `rows`.
    """
    from datasets import ReadInstruction

    n = sum(1 for _ in rows(paths, (lambda *_: None) if broken else None))
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({split.partition("[")[0]: n})
    except (ValueError, AssertionError) as error:
        fact = f'split "{split}" cannot be read: {error}'
        raise StageFailed(f"{paths[0]}: {fact}.") from None
    for part in parts:
        yield from islice(rows(paths, broken), part.from_ or 0, n if part.to is None else part.to)


def _file(path: Path, broken: Broken | None) -> Iterator[Row]:
    suffix = format_of(path)
    if suffix not in SUFFIXES or (suffix == ".parquet" and suffix != path.suffix.lower()):
        packed = f"and {', '.join(PACKED)} after it but for parquet, which is packed in itself"
        raise StageFailed(f"{path}: files are read that end in {', '.join(SUFFIXES)} ({packed}).")
    try:
        yield from _parquet(path) if suffix == ".parquet" else _text(path, suffix, broken)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise StageFailed(f"{path} cannot be read: {error.strerror}.") from None
        fact = str(error).split("\n")[0].rstrip(".")
        raise StageFailed(
            f"{path} cannot be read: {fact}. It is cut short or damaged; fetch or write it anew."
        ) from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    batches = pyarrow.parquet.ParquetFile(path).iter_batches(1000)
    return (_cells(plain(row)) for batch in batches for row in batch.to_pylist())


class Cell(str):
    """A text of a table that may be a list as JSON. In a file of JSON it would be one if meant."""


def _cells(row: Row) -> Row:
    return {
        name: Cell(value) if isinstance(value, str) and value.startswith("[") else value
        for name, value in row.items()
    }


class Binary(bytes):
    """Bytes that are no UTF-8 text, as hashes and images: refused by whoever takes them for one."""

    def __repr__(self) -> str:
        return f"{bytes(self[:8])!r} (no UTF-8 text)"

    def __format__(self, _: str) -> str:
        raise TypeError(repr(self))


def is_binary(value: Any) -> bool:
    """Whether a value is or holds bytes that are no text, so that JSON has no place for it."""
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, Binary) or any(map(is_binary, held))


def plain(value: Any) -> Any:
    """A value as JSON has it: times in ISO's form, bytes as UTF-8, of other types their text.

    Bytes that are no UTF-8 are `Binary`, as most columns are read by nobody.
    Arrow gives every tool the arguments of all others, as nulls: those of tools are left out.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, dict):
        tools = ("tools", "tool_calls")
        return {
            key: plain(_without_nulls(one) if key in tools else one) for key, one in value.items()
        }
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return Binary(value)
    return str(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return list(map(_without_nulls, value)) if isinstance(value, list) else value


def _text(path: Path, suffix: str, broken: Broken | None) -> Iterator[Row]:
    with closing(_open(path)) as file:
        lines = _lines(path, file)
        if suffix in (".csv", ".tsv"):
            yield from _table(path, suffix, lines, broken)
        elif suffix == ".json":
            yield from _json(path, b"".join(line for _, line in lines), broken)
        else:
            for number, line in lines:
                if line.strip():
                    yield from _one(path, number, line, broken)


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 1 << 16)
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return cast(IO[bytes], openers.get(suffix, open)(path, "rb"))


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, without the mark that editors put first."""
    for number, line in enumerate(file, 1):
        if number == 1 and line.startswith(UTF_16):
            raise StageFailed(
                f"{path} is UTF-16, and files are read as UTF-8. Convert it: "
                f"iconv -f UTF-16 -t UTF-8 {path.name} > utf8{format_of(path)}"
            )
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        number += line.count(b"\n", 0, error.start)
        raise StageFailed(
            f"{path}, line {number} is not UTF-8: byte {error.start + 1} of it is "
            f"0x{line[error.start]:02x}. If it is Latin-1 or Windows-1252, convert the file: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{format_of(path)}"
        ) from None


def _table(
    path: Path, suffix: str, lines: Iterator[tuple[int, bytes]], broken: Broken | None
) -> Iterator[Row]:
    """The rows of a table, whose cells may be in quotes and hold lines and delimiters then.

    Where a quote is not closed, its line alone is broken, and the next one is read anew. In a .tsv
    such a quote is a part of the text: most programs that write them quote nothing. A row whose
    quotes close is taken as it is, whatever its cells hold: they may be tables, or code.
    """
    csv.field_size_limit(2**31 - 1)  # 128 KiB unless told, less than a long document
    mark = "\t" if suffix == ".tsv" else ","
    taken: list[tuple[int, bytes]] = []
    again: deque[tuple[int, bytes]] = deque()

    def texts() -> Iterator[str]:
        while True:
            line = again.popleft() if again else next(lines, None)
            if line is None:
                return
            taken.append(line)
            yield _decoded(path, *line)

    reader = csv.reader(texts(), delimiter=mark, strict=True)
    names: list[str] = []
    while True:
        taken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "new-line" in str(error):  # a lone carriage return
                raise
            cells, fact = [], _OPEN
        else:
            if cells is None:
                return
            fact = _OPEN if len(taken) > 1 and 0 < len(names) < len(cells) else ""
        number, first = taken[0]
        if fact:
            again.extendleft(reversed(taken[1:]))
            reader = csv.reader(texts(), delimiter=mark, strict=True)
        if fact and mark == "\t":
            cells = _decoded(path, number, first).rstrip("\r\n").split(mark)
            fact = _OPEN if len(cells) < len(names) else ""
        if not fact and names and len(cells) > len(names):
            fact = "has more cells than the first line has columns"
        if fact:
            start = first[: START * 4].decode(errors="replace")
            held = "tabs" if mark == "\t" else "commas"
            remedy = f"Put quotes around texts with {held}, and write quotes in them twice"
            _tell(path, number, fact, start, broken if names else None, remedy)
        elif cells and not names:
            names = cells
        elif cells:
            yield _cells(dict(zip_longest(names, cells)))


_OPEN = "has a quote that is not closed in its cell"


def _json(path: Path, content: bytes, broken: Broken | None) -> Iterator[Row]:
    """A list of rows, or an object of one such list, or (as many .json files are) JSON lines."""
    text = _decoded(path, 1, content)
    try:
        value = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        lines = [(n, line) for n, line in enumerate(content.splitlines(), 1) if line.strip()]
        if len(lines) == 1 or not lines[0][1].rstrip().endswith(b"}"):
            raise StageFailed(f"{path} is damaged JSON: {error}.") from None
        for number, line in lines:
            yield from _one(path, number, line, broken)
        return
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise StageFailed(f"{path} is not a list of objects, one per row.")
    may_halve = _HALVES.search(content) is not None
    for number, row in enumerate(value, 1):
        if may_halve and _halved(row):
            _tell(path, number, HALF, str(row), broken, "Mend it", "row")
        else:
            yield row


def _one(path: Path, number: int, line: bytes, broken: Broken | None) -> Iterator[Row]:
    """The row of a line of JSON, or none where it is broken and somebody takes it."""
    try:
        row = json.loads(line.strip().decode())  # as bytes it would look for UTF-16 in each
    except UnicodeDecodeError:
        if broken is None:
            _decoded(path, number, line)
        fact, row = "is not UTF-8", None
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        fact, row = f"is damaged JSON: {what} at character {error.colno}", None
    except ValueError:  # Python's limit
        fact, row = "holds a whole number of more than 4,300 digits", None
    except RecursionError:
        fact, row = "is damaged JSON: it is nested too deeply", None
    else:
        fact = "is not an object with columns"
        if _HALVES.search(line) and _halved(row):
            fact, row = HALF, None
    if isinstance(row, dict):
        yield row
        return
    start = line[: START * 4].decode(errors="replace")
    _tell(path, number, fact, start, broken, "Mend it")


def _halved(row: Any) -> bool:
    """Whether a text of a row cannot be written: one of two halves of a character is missing."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _tell(
    path: Path,
    number: int,
    fact: str,
    start: str,
    broken: Broken | None,
    remedy: str,
    what: str = "line",
) -> None:
    start = re.sub(r"\s+", " ", start).strip()[:START]
    if broken is None:
        raise StageFailed(
            f"{path}, {what} {number} {fact}. It begins: {start} … {remedy}, or leave such {what}s "
            "out: broken: drop."
        )
    broken(number, fact, start)
