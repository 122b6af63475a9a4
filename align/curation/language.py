"""Whether a row is in a language that is wanted."""

from __future__ import annotations

from pydantic import Field

from align.curation.rules import Rule, Said, Why


class Language(Rule):
    """Rows whose answers are in another language; of prompts without answers, the prompts.

    Code and addresses are left out. Rows of fewer than 20 letters stay.
    """

    keep: list[str] = Field(min_length=1)
    """Codes, as `en`; `zh` is any Chinese."""

    at_least: float = Field(0.65, gt=0, le=1)
    """The probability that it is one of them, as FineWeb asks for (arXiv 2406.17557)."""

    def look(self, said: list[Said]) -> Why | None:
        """`language`, with the likeliest language and its probability."""
        raise NotImplementedError

    def short(self, said: list[Said]) -> bool:
        """Whether a row says too little to tell: it stays, and is counted."""
        raise NotImplementedError
