"""Whether an answer ends in the right number, letter or words."""

import re
from typing import Any, Literal

from align.errors import StageFailed
from align.rewards import text
from align.settings import Dialog, Reward
from align.verifiers import answers


class Answer(Reward):
    r"""1 where the final answer is that of a column, else 0; None where the column is empty.

    The final answer is what is boxed (`\boxed{…}`), else what follows `####`, else what follows
    "answer is" or "answer:" at once, else the last; the column's is found in the same way.

    * `number`: as a value: `$1,000.00` is `1000`, `3/4` is `0.75`, and `50%` is `50`.
    * `letter`: one of A to J: `(B)`, `**B**`, `B) because A …`, `I choose option B`.
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
        final = answers.number if self.kind == "number" else answers.letter
        return float(final(said) is not None and final(said) == final(right))


def _words(said: str) -> list[str]:
    return re.findall(r"\w+", said.casefold())
