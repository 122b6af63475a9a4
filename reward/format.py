"""Whether an answer has a form."""

import re
from typing import Any

from pydantic import field_validator

from align.rewards import text
from align.settings import Dialog, Reward


class Format(Reward):
    """1 where a regular expression is found in the answer, else 0."""

    pattern: str
    """Python's `re`; `(?s)`, `(?i)` … at its beginning are flags."""

    whole: bool = False
    """Whether the whole answer must match, blank space around it apart."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        """1 or 0 per answer."""
        found = re.compile(self.pattern)
        test = found.fullmatch if self.whole else found.search
        return [float(test(text(one).strip()) is not None) for one in completions]
