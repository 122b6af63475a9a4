"""Which language a text is in, by langdetect: offline, and the same every time."""

from __future__ import annotations

import re
from pathlib import Path

_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\b\w+://\S+", re.DOTALL)
"""Code blocks, code in a line and addresses: of no language, or of English in any."""


def codes() -> list[str]:
    """The languages that can be told, as langdetect calls them: `de`, `en`, `zh-cn` …"""
    from langdetect import PROFILES_DIRECTORY  # type: ignore[import-untyped]

    return sorted(path.name for path in Path(PROFILES_DIRECTORY).iterdir())


def likely(text: str) -> dict[str, float]:
    """The probability of each likely language, likeliest first; empty where nothing can be read.

    langdetect draws random numbers: here from the same seed for every text, so that a text has the
    same languages each time and whatever was asked before.
    """
    import langdetect

    langdetect.DetectorFactory.seed = 0
    try:
        return {found.lang: found.prob for found in langdetect.detect_langs(text)}
    except langdetect.LangDetectException:  # no letters, or none of a script it knows
        return {}


def prose(text: str) -> str:
    """A text without its code and its addresses."""
    return _NOT_PROSE.sub(" ", text)
