"""Whether a text has a pattern, as a function that `killable` calls: some never come back."""

from __future__ import annotations

import re


def found(pattern: str, said: str, whole: bool) -> bool:
    """Whether the pattern is found in a text, or is the whole of it."""
    test = re.fullmatch if whole else re.search
    return test(pattern, said) is not None
