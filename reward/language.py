"""Whether an answer is in the right language."""

from functools import cache, lru_cache
from typing import Any

from pydantic import model_validator

from align.errors import StageFailed
from align.extras import need
from align.options import nearest
from align.rewards import text
from align.settings import Dialog, Reward
from align.verifiers.languages import codes, likely, prose

LETTERS = 20
"""Fewer say too little: of Django's translations into 51 languages langdetect names the right one
for 64 % with 5 to 9 letters, 88 % with 20 to 29, 98 % with 50 to 99 and over 99 % with more."""


class Language(Reward):
    """The probability that an answer is in a language: the given one, or the prompt's own.

    Llama 3 drops answers in another language than the prompt's before anything else scores them
    (arXiv 2407.21783, §4.3.2). Code and addresses are left out. By langdetect, offline; None for a
    text of fewer than 20 letters. Needs `pip install 'align-recipes[rewards]'`.
    """

    language: str | None = None
    """A code, as `en`; `zh` is any Chinese. Else it is that of the prompt's last message."""

    column: str | None = None
    """The prompts' column with the code, instead."""

    @model_validator(mode="after")
    def _known(self) -> "Language":
        need("langdetect", "rewards")
        if self.language is not None and self.column is not None:
            raise ValueError('Give "language" or "column", not both.')
        if self.language is not None:
            _check(self.language)
        return self

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        """A probability per answer; None where a text is too short or the column is empty."""
        if self.column is not None and self.column not in columns:
            raise StageFailed(
                f'reward/language.py: the prompts have no column "{self.column}", only '
                f"{', '.join(columns) or 'none'}. Name the one with the language's code: column: …"
            )
        said = [text(completion) for completion in completions]
        if self.column is not None:
            wanted = columns[self.column]
        elif self.language is not None:
            wanted = [self.language] * len(said)
        else:
            wanted = [_asked(text(prompt[-1:])) for prompt in prompts]
        return [
            None if code is None else _probability(one, _check(str(code)))
            for one, code in zip(said, wanted, strict=True)
        ]


def _likely(said: str) -> dict[str, float] | None:
    said = prose(said)
    return likely(said) if sum(map(str.isalpha, said)) >= LETTERS else None


def _probability(said: str, code: str) -> float | None:
    found = _likely(said)
    if found is None:
        return None
    return sum(p for name, p in found.items() if name == code or name.startswith(f"{code}-"))


@lru_cache(1024)  # the same for all answers to a prompt
def _asked(question: str) -> str | None:
    name = next(iter(_likely(question) or {}), None)
    return name and name.partition("-")[0]


@cache
def _check(code: str) -> str:
    """The code, if there is such a language."""
    known = codes()
    if not any(name == code or name.startswith(f"{code}-") for name in known):
        hint = nearest(code, known) or f" There are {', '.join(known)}."
        raise ValueError(f'langdetect knows no language "{code}".{hint}')
    return code
