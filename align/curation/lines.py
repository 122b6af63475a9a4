"""Lines that many rows have in common: boilerplate, not content (ccNet, arXiv 1911.00359, §3.1)."""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Callable, Iterator

from pydantic import Field

from align.curation import hashes
from align.curation.rules import Row, Why, said
from align.curation.scripts import apart
from align.curation.texts import amended, answers
from align.out import Out
from align.settings import Settings

CHUNK = 1 << 20
"""Numbers that are compared, or written, at once."""


class Lines(Settings):
    """Lines that stand in many rows are taken out of answers and documents.

    Lines are compared as ccNet does it: small letters, every digit a 0, no accents and no
    punctuation. A row counts a line once; code is left alone. All of a line's places go, not all
    but the first, so that what stays does not hang on the order of the rows; a row is removed where
    an answer of it would be empty. Not for answers of one line that follow a pattern.
    """

    more_than: int = Field(6, ge=1)
    """Rows that a line may stand in (Llama 3, arXiv 2407.21783, §3.1.1)."""

    words: int = Field(8, ge=1)
    """Shorter lines stay in answers: "Yes, of course." is said often, and rightly. In documents
    lines of any length go."""

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order, changed; and why it is removed: `lines`, with one of them."""
        frequent = self._frequent(rows, out)
        for row in rows():
            taken: list[str] = []
            left: list[str] = []

            def without(
                text: str, row: Row = row, taken: list[str] = taken, left: list[str] = left
            ) -> str:
                found = [line for line, n in self._lines(text, row) if n in frequent]
                if not found:
                    return text
                taken += found
                left.append(_without(text, set(found)))
                return left[-1]

            new = amended(row, without)
            if not taken:
                yield row, None
                continue
            if "" in left:
                yield row, Why("lines", {"line": taken[0].strip()[:200]})
                continue
            out.count("changed.lines", len(taken), {"id": row["id"], "line": taken[0][:200]})
            yield new, None

    def _frequent(self, rows: Callable[[], Iterator[Row]], out: Out) -> set[int]:
        """The numbers of the lines that stand in too many rows.

        All numbers lie in a file and are sorted there: what is in memory can be paged out.
        """
        import numpy as np

        file = out.path / "lines.tmp"
        with file.open("wb") as numbers:
            ahead = array("Q")
            for row in rows():
                texts = answers(said(row))
                ahead.extend({n for text in texts for _, n in self._lines(text, row)})
                if len(ahead) >= CHUNK:
                    ahead.tofile(numbers)
                    del ahead[:]
            ahead.tofile(numbers)
        found: set[int] = set()
        if file.stat().st_size:
            every = np.memmap(file, np.uint64, "r+")
            every.sort()
            for at in range(0, len(every) - self.more_than, CHUNK):
                part = every[at : at + CHUNK + self.more_than]
                same = part[self.more_than :] == part[: -self.more_than]
                found.update(part[self.more_than :][same].tolist())
        file.unlink()
        return found

    def _lines(self, text: str, row: Row) -> Iterator[tuple[str, int]]:
        """The lines that count, each as it is written and its number."""
        least = 1 if "text" in row else self.words
        for line, code in _told(text):
            normal = "" if code else normalised(line)
            if normal and len(apart(normal)) >= least:
                yield line, hashes.number(normal)


def _told(text: str) -> Iterator[tuple[str, bool]]:
    """Every line of a text, and whether it is code; the fences are."""
    code = False
    for line in text.split("\n"):
        fence = line.lstrip().startswith("```")
        yield line, code or fence
        code ^= fence


def _without(text: str, lines: set[str]) -> str:
    """A text without these lines, and without the room that they leave: of blank lines on both
    sides those after them go, and at the end those before them.
    """
    kept: list[str] = []
    taken = False
    for line, code in _told(text):
        if not code and line in lines:
            taken = True
        elif not (taken and not line.strip() and not "".join(kept[-1:]).strip()):
            kept.append(line)
            taken = False
    while taken and kept and not kept[-1].strip():
        kept.pop()
    return "\n".join(kept)


_ASCII = {
    n: "0" if chr(n).isdigit() else None if unicodedata.category(chr(n)).startswith("P") else chr(n)
    for n in range(128)
}


def normalised(line: str) -> str:
    """A line as it is compared: ccNet's normalisation, without its replacing of quotes and dashes,
    which go with all punctuation.
    """
    line = line.lower()
    if not line.isascii():
        apart = unicodedata.normalize("NFKD", line)
        line = "".join(map(_plain, apart))
    return " ".join(line.translate(_ASCII).split())


def _plain(character: str) -> str:
    """A character; nothing for accents, punctuation and what is not printed."""
    kind = unicodedata.category(character)
    if kind == "Nd":
        return "0"
    return "" if kind[0] in "MP" or (kind[0] == "C" and character != "\t") else character
