"""Where every row of some files lies, and what it is sorted and filtered by.

Rows are GBs: they stay where they are. Each file is read once, and of every row its place in it,
its id, the beginning of its prompt and a few numbers are kept in SQLite, under `runs/.cache/view`.
Files of an artifact never change; while a stage runs, only what is new is read.
"""

from __future__ import annotations

import json
import math
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import StageFailed
from align.reporting.jobs import Waiting

Row = dict[str, Any]
Progress = Callable[[int, int], None]
"""Called with the bytes that are done and all of them."""

FORM = 2
"""Part of a file's name: raised when the same rows get another index."""

TITLE = 160
"""Characters that a list shows of a prompt."""

LOCKED = 5.0
"""Seconds for which another process may hold the index before the page is told to wait."""

_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS files (number INTEGER PRIMARY KEY, name TEXT UNIQUE, stamp TEXT,
  place INTEGER);
CREATE TABLE IF NOT EXISTS names (number INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, file INTEGER, part TEXT, at INTEGER,
  size INTEGER, id TEXT, owner TEXT, title TEXT);
CREATE TABLE IF NOT EXISTS subsets (n INTEGER, name TEXT);
CREATE INDEX IF NOT EXISTS by_id ON rows (id, part);
CREATE INDEX IF NOT EXISTS by_owner ON rows (owner);
CREATE INDEX IF NOT EXISTS by_file ON rows (file);
CREATE INDEX IF NOT EXISTS by_subset ON subsets (name, n);
COMMIT;
"""


@dataclass(frozen=True)
class File:
    """A file of rows; `part` is whose they are where several say something about the same ids."""

    path: Path
    part: str = ""

    @property
    def name(self) -> str:
        """What the index calls it: the same while the stage runs and when it is done."""
        return f"{self.path.parent.name}/{self.path.name}"


@dataclass(frozen=True)
class Facts:
    """What is kept of a row."""

    title: str
    numbers: dict[str, float | None]
    subsets: Sequence[str] = ()


@dataclass(frozen=True)
class Asked:
    """Which rows, in which order. Names of numbers and of parts; all of them may come from anyone.

    `ours` and `theirs` are two parts to compare by the number `metric`. `where` is a condition in
    which `{0}` is the first of `numbers`, `{a}` and `{b}` are the metric of ours and of theirs,
    and `{o}` is that of any row called `o`.
    """

    where: str = ""
    numbers: tuple[str, ...] = ()
    ours: str = ""
    theirs: str = ""
    metric: str = ""
    subset: str = ""
    order: str = ""
    up: bool = False


@dataclass(eq=False)
class Index:
    """The index of one list of rows, in the file `path`."""

    path: Path
    normal: Callable[[Row], Row]
    facts: Callable[[Row], Facts]
    files: list[File] = field(default_factory=list)

    def stale(self, files: Sequence[File]) -> bool:
        """Whether there is something to refresh, now that there are these files."""
        self.files = list(files)
        if not self.path.is_file():
            return True
        with self._open() as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'files'").fetchone():
                return True  # another process makes it now
            known = dict(db.execute("SELECT name, stamp FROM files"))
        return known != {file.name: _stamp(file.path) for file in files}

    def refresh(self, progress: Progress) -> None:
        """Read the files that are new or other than they were, forget those that are gone.

        Raises:
            StageFailed: a line is no row.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files = self.files
        with self._open() as db:
            db.executescript(_TABLES)
            known = dict(db.execute("SELECT name, stamp FROM files"))
            new = [file for file in files if known.get(file.name) != _stamp(file.path)]
            gone = known.keys() - {file.name for file in files}
            total, done = sum(file.path.stat().st_size for file in new), 0
            for file in new:
                stamp = _stamp(file.path)
                with db:  # a file at once: a kill leaves whole ones
                    db.execute("BEGIN IMMEDIATE")  # another process may read the same
                    self._forget(db, file.name)
                    for at in self._read(db, file, stamp):
                        progress(done + at, total)
                done += file.path.stat().st_size
            with db:
                for name in gone:
                    self._forget(db, name)
            with db:
                order = [(place, file.name) for place, file in enumerate(files)]
                db.executemany("UPDATE files SET place = ? WHERE name = ?", order)

    def select(self, asked: Asked) -> array[int]:
        """The numbers of the rows that were asked for, in order."""
        with self._open() as db:
            column = {name: f'a."k{n}"' for n, name in db.execute("SELECT number, name FROM names")}
            metric = column.get(asked.metric, "NULL")
            theirs = metric.replace("a.", "b.", 1)
            words = [column.get(name, "NULL") for name in asked.numbers]
            other = metric.replace("a.", "o.", 1)
            where = asked.where.format(*words, a=metric, b=theirs, o=other) or "TRUE"
            order = f"{metric} - {theirs}" if asked.order == "difference" else ""
            order = order or column.get(asked.order, "")
            if order:
                order = f"{order} {'ASC' if asked.up else 'DESC'} NULLS LAST,"
            told = "AND EXISTS (SELECT 1 FROM subsets s WHERE s.n = a.n AND s.name = :subset)"
            found = db.execute(
                "SELECT a.n FROM rows a JOIN files f ON f.number = a.file"
                " LEFT JOIN rows b ON b.id = a.id AND b.part = :theirs AND b.part != a.part"
                f" WHERE a.part = :ours AND ({where}) {told if asked.subset else ''}"
                f" ORDER BY {order} f.place, a.at",
                {"ours": asked.ours, "theirs": asked.theirs, "subset": asked.subset},
            )
            return array("q", (n for (n,) in found))

    def summaries(self, numbers: Sequence[int], shown: Sequence[str]) -> Iterator[Row]:
        """Of each row `n`, `id`, `title`, and its numbers of those names, by part and name."""
        with self._open() as db:
            column = dict(db.execute("SELECT name, number FROM names"))
            picked = [f'"k{column[name]}"' if name in column else "NULL" for name in shown]
            for n in numbers:
                found = db.execute("SELECT id, title, part FROM rows WHERE n = ?", (n,)).fetchone()
                told = db.execute(
                    f"SELECT {', '.join(['part', *picked])} FROM rows WHERE id = ? AND "
                    "(n = ? OR part != ?)",
                    (found[0], n, found[2]),
                )
                values = {part: dict(zip(shown, each, strict=True)) for part, *each in told}
                yield {"n": n, "id": found[0], "title": found[1], "numbers": values}

    def names(self) -> list[str]:
        """The numbers that rows have."""
        with self._open() as db:
            return [name for (name,) in db.execute("SELECT name FROM names ORDER BY number")]

    def subsets(self, part: str) -> list[tuple[str, int]]:
        """The subsets of a part's rows, the largest first, with their sizes."""
        with self._open() as db:
            return db.execute(
                "SELECT name, count(*) FROM subsets s JOIN rows r ON r.n = s.n WHERE part = ?"
                " GROUP BY name ORDER BY 2 DESC, 1 LIMIT 300",
                (part,),
            ).fetchall()

    def number(self, id: str, part: str) -> int | None:
        """The first row of that id."""
        with self._open() as db:
            found = db.execute("SELECT n FROM rows WHERE id = ? AND part = ?", (id, part))
            return next((int(n) for (n,) in found), None)

    def numbers(self, ids: Iterable[str]) -> set[int]:
        """Every part's rows of these ids."""
        with self._open() as db:
            return {
                n for id in ids for (n,) in db.execute("SELECT n FROM rows WHERE id = ?", (id,))
            }

    def version(self) -> int:
        """Another one whenever the index has changed."""
        return self.path.stat().st_mtime_ns

    def row(self, n: int) -> Row | None:
        """A row by its number."""
        return next((row for _, row in self._rows("n = ?", n)), None)

    def of(self, id: str) -> dict[str, Row]:
        """What every part has under an id."""
        return dict(self._rows("id = ?", id))

    def owned(self, owner: str) -> list[Row]:
        """The rows made from the prompt of that id."""
        return [row for _, row in self._rows("owner = ?", owner)]

    def _rows(self, where: str, value: Any) -> Iterator[tuple[str, Row]]:
        paths = {file.name: file.path for file in self.files}
        with self._open() as db:
            found = db.execute(
                "SELECT part, name, at, size, id FROM rows JOIN files ON number = file"
                f" WHERE {where} ORDER BY place, at",
                (value,),
            ).fetchall()
        for part, name, at, size, id in found:
            with paths[name].open("rb") as lines:
                lines.seek(at)
                yield part, {"id": id, **self.normal(json.loads(lines.read(size)))}

    def _read(self, db: sqlite3.Connection, file: File, stamp: str) -> Iterator[int]:
        """Index a file; yields how many bytes are done."""
        number = db.execute(
            "INSERT INTO files (name, stamp) VALUES (?, ?)", (file.name, stamp)
        ).lastrowid
        columns = dict(db.execute("SELECT name, number FROM names"))
        with file.path.open("rb") as lines:
            at = 0
            for i, line in enumerate(lines, 1):
                if (row := _parsed(line, file.path, i)) is None:
                    return
                try:
                    facts = self.facts(self.normal(row))
                    numbers = {name: finite(value) for name, value in facts.numbers.items()}
                except KeyError as lacking:
                    message = f"{file.path}, line {i} has no {lacking}: these rows need it."
                    raise StageFailed(message) from None
                except (TypeError, ValueError, AttributeError) as error:
                    why = f"a value of another kind: {error}"
                    raise _damaged(file.path, i, why) from None
                for name in [name for name in numbers if name not in columns]:
                    made = db.execute("INSERT INTO names (name) VALUES (?)", (name,)).lastrowid
                    assert made is not None
                    columns[name] = made
                    db.execute(f'ALTER TABLE rows ADD COLUMN "k{made}" REAL')
                values = {
                    "file": number,
                    "part": file.part,
                    "at": at,
                    "size": len(line),
                    "id": named(row, file, i),
                    "owner": str(row.get("prompt_id", named(row, file, i))),
                    "title": facts.title[:TITLE],
                    **{f"k{columns[k]}": value for k, value in numbers.items()},
                }
                marks = ", ".join("?" * len(values))
                insert = f"INSERT INTO rows ({', '.join(values)}) VALUES ({marks})"
                n = db.execute(insert, list(values.values())).lastrowid
                each = ((n, name) for name in facts.subsets)
                db.executemany("INSERT INTO subsets VALUES (?, ?)", each)
                at += len(line)
                if i % 256 == 0:
                    yield at

    def _forget(self, db: sqlite3.Connection, name: str) -> None:
        of = "(SELECT number FROM files WHERE name = ?)"
        rows = f"(SELECT n FROM rows WHERE file = {of})"
        db.execute(f"DELETE FROM subsets WHERE n IN {rows}", (name,))
        db.execute(f"DELETE FROM rows WHERE file = {of}", (name,))
        db.execute("DELETE FROM files WHERE name = ?", (name,))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The index, open.

        Raises:
            Waiting: another process reads the same files into it; or it was damaged and is gone.
        """
        new = not self.path.is_file()
        try:
            with closing(sqlite3.connect(self.path, timeout=LOCKED)) as db:
                if new:
                    db.executescript(_TABLES)
                yield db
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # Python's own errors have none
            if code == sqlite3.SQLITE_BUSY:
                raise Waiting("waiting for another view, which reads these rows", 0, 0) from None
            if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            for end in ("-journal", ""):  # a journal of the old file would damage the new one
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
            raise Waiting("the index is damaged and is made again", 0, 0) from None


def named(row: Row, file: File, number: int) -> str:
    """A row's id; of one without, its place."""
    return str(row.get("id", f"{file.path.stem}:{number}"))


def _parsed(line: bytes, path: Path, number: int) -> Row | None:
    """A line as a row; None where it is still being written."""
    try:
        row = json.loads(line)
    except ValueError as error:
        if not line.endswith(b"\n"):
            return None
        raise _damaged(path, number, error) from None
    if not isinstance(row, dict):
        raise _damaged(path, number, "it is no JSON object")
    return row


def _damaged(path: Path, number: int, why: object) -> StageFailed:
    return StageFailed(
        f"{path}, line {number} is damaged ({why}). Run the stage that makes it again."
    )


def finite(value: float | None) -> float | None:
    """A number that can be compared; None: it is none."""
    return value if value is not None and math.isfinite(value) else None


def _stamp(path: Path) -> str:
    about = path.stat()
    return f"{about.st_size} {about.st_mtime_ns}"
