"""Rules that go by what can be counted in a text: its length, what it repeats, its emojis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from pydantic import Field

from align.curation.rules import Row, Rule, Said, Why
from align.out import Out
from align.settings import Settings


class Bounds(Settings):
    """The least and the most of something; without one of them, that end is open."""

    at_least: int = Field(0, ge=0)
    at_most: int | None = Field(None, ge=0)


class Length(Rule):
    """Rows that are too short or too long."""

    words: Bounds = Bounds()
    """Of all that a row says."""

    characters: Bounds = Bounds()
    answer_words: Bounds = Bounds()
    """Of each answer."""

    answer_characters: Bounds = Bounds()

    def look(self, said: list[Said]) -> Why | None:
        """`length`, with what was counted."""
        raise NotImplementedError


class Repetition(Rule):
    """Answers that repeat themselves, by Gopher's rules (arXiv 2112.11446, table A1).

    Every number is the largest share that stays. Code is left out.
    """

    lines: float = Field(0.3, ge=0, le=1)
    """Lines that were there before, of all lines."""

    paragraphs: float = Field(0.3, ge=0, le=1)
    line_characters: float = Field(0.2, ge=0, le=1)
    """Characters of lines that were there before."""

    paragraph_characters: float = Field(0.2, ge=0, le=1)
    top_ngrams: list[float] = Field([0.20, 0.18, 0.16], min_length=3, max_length=3)
    """Characters of the most frequent 2, 3 and 4 words in a row."""

    duplicate_ngrams: list[float] = Field(
        [0.15, 0.14, 0.13, 0.12, 0.11, 0.10], min_length=6, max_length=6
    )
    """Characters of 5, 6 … 10 words in a row that were there before."""

    def look(self, said: list[Said]) -> Why | None:
        """`repetition`, with the rule and the share."""
        raise NotImplementedError


class Emoji(Rule):
    """Emojis and exclamation marks beyond measure, in answers (Llama 3, arXiv 2407.21783, §4.2.3).

    What is too much is taken out, code excepted; rows that hold little else are removed.
    """

    emojis: int = Field(3, ge=0)
    """The most emojis of an answer: those after them are taken out."""

    exclamations: int = Field(1, ge=1)
    """The most exclamation marks in a row."""

    share: float | None = Field(None, gt=0)
    """Emojis per word above which a row is removed, as it came; none unless set."""

    def look(self, said: list[Said]) -> Why | None:
        """`emoji`, with the share."""
        raise NotImplementedError

    def change(self, row: Row) -> tuple[Row, Counter[str]]:
        """The row with less of both, and how many were taken out: `emojis`, `exclamations`."""
        raise NotImplementedError


class Phrases(Settings):
    """Phrases that answers use too often, as "I apologize" (Llama 3, arXiv 2407.21783, §4.2.3).

    Of the rows with a phrase as many stay as it may have, drawn by what they hold.
    """

    phrases: list[str] = Field(["I'm sorry", "I apologize"], min_length=1)
    """Whole words, in any case."""

    at_most: float = Field(0.01, gt=0, lt=1)
    """The largest share of the rows that stay which may hold one phrase."""

    def sift(self, rows: Callable[[], Iterator[Row]], out: Out) -> Iterator[tuple[Row, Why | None]]:
        """Every row in its order, and why it is removed: `phrases`, with the phrase."""
        raise NotImplementedError
