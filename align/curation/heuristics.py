"""Rules that go by what can be counted in a row: its length, what it repeats, emojis, phrases."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

from pydantic import Field, field_validator

from align.curation import emojis
from align.curation.repetition import Shares, shares
from align.curation.rules import Row, Rule, Said, Why, said
from align.curation.scripts import apart
from align.curation.texts import amended, answers, tie
from align.out import Out
from align.settings import Settings
from align.verifiers.languages import prose


class Bounds(Settings):
    """The least and the most of something; without one of them, that end is open."""

    at_least: int = Field(0, ge=0)
    at_most: int | None = Field(None, ge=0)

    def within(self, n: int) -> bool:
        """Whether a number is."""
        return self.at_least <= n and (self.at_most is None or n <= self.at_most)


class Length(Rule):
    """Rows that are too short or too long. Words are what stands between white space.

    Of scripts without it (Chinese, Japanese, Thai) every letter is a word.
    """

    words: Bounds = Bounds()
    """Of all that a row says."""

    characters: Bounds = Bounds()
    """Of all that a row says."""

    answer_words: Bounds = Bounds()
    """Of each answer: of every turn of the assistant, of the chosen and of the rejected one."""

    answer_characters: Bounds = Bounds()
    """Of each answer."""

    def look(self, said: list[Said]) -> Why | None:
        """`length`, with what was counted."""
        texts, given = [text for _, text in said], answers(said)
        for name, n in (("words", _words(texts)), ("characters", sum(map(len, texts)))):
            if not getattr(self, name).within(n):
                return Why("length", {name: n})
        for text in given:
            counted = {"answer_words": _words([text]), "answer_characters": len(text)}
            for name, n in counted.items():
                if not getattr(self, name).within(n):
                    return Why("length", {name: n})
        return None


def _words(texts: list[str]) -> int:
    return sum(len(apart(text)) for text in texts)


class Repetition(Rule):
    """Answers that repeat themselves, by Gopher's rules (arXiv 2112.11446, table A1).

    Every number is the largest share that stays. Code is left out, and so are texts of fewer than
    50 words, of which two alike are soon a large share. Of a very long text the beginning is read.
    """

    lines: float = Field(0.3, ge=0, le=1)
    """Lines that were there before, of all lines."""

    paragraphs: float = Field(0.3, ge=0, le=1)
    """Paragraphs that were there before, of all paragraphs."""

    line_characters: float = Field(0.2, ge=0, le=1)
    """Characters in lines that were there before."""

    paragraph_characters: float = Field(0.2, ge=0, le=1)
    """Characters in paragraphs that were there before."""

    top_ngrams: list[float] = Field([0.20, 0.18, 0.16], min_length=3, max_length=3)
    """Characters in the most frequent 2, 3 and 4 words in a row."""

    duplicate_ngrams: list[float] = Field(
        [0.15, 0.14, 0.13, 0.12, 0.11, 0.10], min_length=6, max_length=6
    )
    """Characters in 5, 6 … 10 words in a row that were there before."""

    def look(self, said: list[Said]) -> Why | None:
        """`repetition`, with the share that is too large."""
        for text in answers(said):
            for name, share, bar in self._compared(shares(prose(text))):
                if share > bar:
                    return Why("repetition", {name: round(share, 4)})
        return None

    def _compared(self, found: Shares | None) -> Iterator[tuple[str, float, float]]:
        if found is None:
            return
        for name in ("lines", "paragraphs", "line_characters", "paragraph_characters"):
            yield name, getattr(found, name), getattr(self, name)
        for n, share, bar in zip((2, 3, 4), found.top_ngrams, self.top_ngrams, strict=True):
            yield f"top_{n}_gram", share, bar
        for n, share, bar in zip(
            range(5, 11), found.duplicate_ngrams, self.duplicate_ngrams, strict=True
        ):
            yield f"duplicate_{n}_grams", share, bar


class Emoji(Rule):
    """Emojis and exclamation marks beyond measure, in answers (Llama 3, arXiv 2407.21783, §4.2.3).

    What is too much is taken out, code excepted; rows that are full of them are removed.
    """

    emojis: int = Field(3, ge=0)
    """The most emojis of an answer: those after them are taken out."""

    exclamations: int = Field(1, ge=1)
    """The most exclamation marks in a row."""

    share: float | None = Field(None, gt=0)
    """Emojis per word of an answer, as it came, above which the row is removed."""

    def look(self, said: list[Said]) -> Why | None:
        """`emoji`, with the share."""
        if self.share is not None:
            for text in answers(said):
                share = emojis.count(text) / max(1, _words([text]))
                if share > self.share:
                    return Why("emoji", {"emojis_per_word": round(share, 4)})
        return None

    def change(self, row: Row) -> tuple[Row, Counter[str]]:
        """The row with less of both, and how many were taken out: `emojis`, `exclamations`."""
        counts: Counter[str] = Counter()

        def less(text: str) -> str:
            return emojis.fewer(text, self.emojis, self.exclamations, counts)

        changed = amended(row, less)
        return (changed, counts) if counts else (row, counts)


class Phrases(Settings):
    """Phrases that answers use too often, as "I apologize" (Llama 3, arXiv 2407.21783, §4.2.3).

    Of the rows with a phrase as many stay as it may have, drawn by what they hold.
    """

    phrases: list[str] = Field(["I'm sorry", "I apologize"], min_length=1)
    """Whole words, in any case."""

    at_most: float = Field(0.01, gt=0, lt=1)
    """The largest share of the rows that stay which may have one phrase."""

    @field_validator("phrases")
    @classmethod
    def _not_empty(cls, phrases: list[str]) -> list[str]:
        if not all(phrase.strip() for phrase in phrases):
            raise ValueError("A phrase is empty.")
        return phrases

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order, and why it is removed: `phrases`, with the phrase."""
        having: dict[str, list[int]] = {phrase: [] for phrase in self.phrases}
        without = 0
        for row in rows():
            found = self._in(row)
            without += not found
            for phrase in found:
                having[phrase].append(tie(row))
        most = int(self.at_most * without / (1 - self.at_most))  # a(w + x) = x
        bars = {
            phrase: sorted(ties)[most] if len(ties) > most else None
            for phrase, ties in having.items()
        }
        for row in rows():
            why = None
            for phrase in self._in(row):
                bar = bars[phrase]
                if bar is not None and tie(row) >= bar:
                    why = Why("phrases", {"phrase": phrase, "rows_with_it": len(having[phrase])})
            yield row, why

    def _in(self, row: Row) -> list[str]:
        """The phrases that an answer of the row uses."""
        text = _straight("\n".join(answers(said(row))))
        return [p for p in self.phrases if _pattern(p).search(text)]


@cache
def _pattern(phrase: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(_straight(phrase))}(?!\w)", re.IGNORECASE)


def _straight(text: str) -> str:
    """A text with one kind of apostrophe, in NFC."""
    return unicodedata.normalize("NFC", text.replace("\u2019", "'"))
