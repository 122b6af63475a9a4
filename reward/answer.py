"""Whether an answer's last number, letter or words are the right ones."""

import re
from typing import Any, Literal

from align.errors import StageFailed
from align.rewards import text
from align.settings import Dialog, Reward

NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
LETTER = re.compile(r"(?<![A-Za-z'])\(?([A-J])\)?(?![A-Za-z'])")


class Answer(Reward):
    """1 where the final answer is that of a column, else 0; None where the column is empty.

    * `number`: the last number of the text, as a value: `1,000.0` is `1000`. The column's last
      number counts, too (GSM8K's ends with `#### 42`).
    * `letter`: the last of A to J that stands alone: `(B)`, `The answer is B.`
    * `words`: the text ends with the column's words, whatever the case and punctuation.
    """

    kind: Literal["number", "letter", "words"] = "number"
    column: str = "answer"
    """The prompts' column that holds the right answer."""

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        """1, 0 or None per answer."""
        if self.column not in columns:
            raise StageFailed(
                f'reward/answer.py: the prompts have no column "{self.column}", only '
                f"{', '.join(columns) or 'none'}. Name the one with the right answer: column: …"
            )
        pairs = zip(completions, columns[self.column], strict=True)
        return [
            None if right is None else self._right(text(one), str(right)) for one, right in pairs
        ]

    def _right(self, said: str, right: str) -> float:
        if self.kind == "words":
            ours, theirs = _words(said), _words(right)
            return float(bool(theirs) and ours[-len(theirs) :] == theirs)
        last = _number if self.kind == "number" else _letter
        return float(last(said) is not None and last(said) == last(right))


def _number(said: str) -> float | None:
    found = NUMBER.findall(said)
    return float(found[-1].replace(",", "")) if found else None


def _letter(said: str) -> str | None:
    found = LETTER.findall(said)
    return str(found[-1]) if found else None


def _words(said: str) -> list[str]:
    return re.findall(r"\w+", said.casefold())
