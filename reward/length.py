"""How long an answer is."""

from typing import Any, Literal

from align.rewards import text
from align.settings import Dialog, Reward


class Length(Reward):
    """The number of words, or how near it is to a target.

    With a small negative weight beside a reward model it holds length down; alone it shows what
    rejection sampling does with a reward that can be gamed.
    """

    unit: Literal["words", "characters"] = "words"
    """What is counted; words are what spaces separate."""

    target: int | None = None
    """The length wanted: the score is minus the distance to it. Else longer is better."""

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        """One number per answer."""
        texts = map(text, completions)
        lengths = [len(t.split()) if self.unit == "words" else len(t) for t in texts]
        if self.target is None:
            return [float(n) for n in lengths]
        return [-float(abs(n - self.target)) for n in lengths]
