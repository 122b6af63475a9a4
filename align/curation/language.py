"""Whether a row is in a language that is wanted, by py3langid: offline, and the same every time."""

from __future__ import annotations

import importlib.util
import io
import lzma
import re
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from align.curation.rules import Rule, Said, Why
from align.curation.texts import answers
from align.extras import need
from align.options import nearest
from align.verifiers.languages import prose

LETTERS = 50
"""Fewer say too little: of Django's translations into 35 languages py3langid names the right one
for 60 % with fewer than 20 letters, 89 % with 20 to 29, 96 % with 30 to 49, 98 % with 50 to 99 and
99 % with more."""

ENOUGH = 2000
"""Characters after which nothing changes, and reading more takes time: 0.8 ms for 190 words."""

_SIGNS = re.compile(r"(?<![!-~])[!-~]*?[\\_(){}\[\]=<>|#@/^][!-~]*")
"""What stands between blanks and holds a sign that code is full of: from its beginning, once."""

_LINK = re.compile(r"(?<!\w)\[([^\[\]\n]*)\]\([^()\s]*\)")
"""Markdown's, of which its text is read."""

PLAIN = 0.5
"""Of the characters but blanks. Where fewer are free of such signs it is code that no fence shows:
698 of MBPP's 807 programs with 50 letters, 77 of 2,299 answers of GSM8K, none of 4,589 dialogs of
HH-RLHF."""

NONE = "zxx"
"""What is no language: markup, numbers."""


class Language(Rule):
    """Rows whose answers are in another language; of prompts without answers, the prompts.

    Code and addresses are left out. Rows of fewer than 50 letters, or most of whose words are code,
    stay and are counted; what is but numbers or markup stays. Needs `pip install
    'align-recipes[curate]'`.
    """

    keep: list[str] = Field(min_length=1)
    """Codes of py3langid, as `en`."""

    at_least: float | None = Field(None, gt=0, le=1)
    """The probability that it is one of them. Unless set, one of them is to be the likeliest: that
    removes 1.5 % of what is right and has 50 to 99 letters, 0.5 removes 3 %, and 0.65 7 %, which
    FineWeb asks another detector for (arXiv 2406.17557). All keep 2 or 3 of 10,000 that are wrong
    (Django's translations)."""

    @field_validator("keep")
    @classmethod
    def _known(cls, keep: list[str]) -> list[str]:
        need("py3langid", "curate")
        for code in keep:
            if code not in (known := codes()):
                hint = nearest(code, known) or f" There are {', '.join(known)}."
                raise ValueError(f'py3langid knows no language "{code}".{hint}')
        return keep

    def look(self, said: list[Said]) -> Why | None:
        """`language`, with the likeliest language and the probability of those that stay."""
        text = _read(said)
        if _letters(text) < LETTERS:
            return None
        likely = dict(_identifier().rank(text))
        likeliest = max(likely, key=likely.__getitem__)
        share = sum(likely.get(code, 0.0) for code in self.keep) / (1 - likely.get(NONE, 0.0))
        wanted = likeliest in self.keep if self.at_least is None else share >= self.at_least
        if wanted or likeliest == NONE:
            return None
        return Why("language", {"language": likeliest, "probability": round(share, 4)})

    def short(self, said: list[Said]) -> bool:
        """Whether a row says too little to tell: it stays, and is counted."""
        return _letters(_read(said)) < LETTERS


def _read(said: list[Said]) -> str:
    texts = answers(said) or [text for role, text in said if role != "call"]
    text = prose(_LINK.sub(r"\1", "\n".join(texts)[:ENOUGH]))
    plain, signs = _SIGNS.subn(" ", text)
    return "" if signs and _size(plain) < PLAIN * _size(text) else text


def _size(text: str) -> int:
    """Its characters but blanks."""
    return len("".join(text.split()))


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def codes() -> list[str]:
    """The languages that can be told, from the model's file: a plan loads no numpy for it."""
    spec = importlib.util.find_spec("py3langid")
    assert spec is not None and spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]) / "data" / "model.npz.xz"
    with zipfile.ZipFile(io.BytesIO(lzma.decompress(file.read_bytes()))) as archive:
        array = archive.read("classes.npy")
    begin = 10 + int.from_bytes(array[8:10], "little")  # NPY 1.0: magic, length of the header
    letters = array[begin:].decode("utf-32-le")
    return sorted({letters[i : i + 3].rstrip("\0") for i in range(0, len(letters), 3)} - {NONE})
