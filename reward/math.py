"""Whether an answer is the right mathematics, by math-verify."""

from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from align.errors import StageFailed
from align.extras import need
from align.rewards import text
from align.settings import Dialog, Reward
from align.verifiers.cores import cores
from align.verifiers.killable import Lost, Pool

FIRST = (r"$\frac{1}{2} + x$ and \boxed{(1, 2]}", r"\{x^2\}")


class Math(Reward):
    """1 where the answer equals a column's, in whatever form, else 0; None where that is empty.

    `\\frac{1}{2}` is 0.5, and `x^2 + 2x + 1` is `(x+1)^2`. An answer is what is boxed, else what
    follows "answer is", else the last formula or number. The check runs in a process that is killed
    when its time is over: such an answer gets 0, and 1 in the detail `timed_out`.
    """

    column: str = "answer"
    """The prompts' column with the right answer: LaTeX, or a number, after `####` if there is one.
    """

    timeout: float = Field(1.0, gt=0)
    """Seconds for one answer."""

    workers: int | None = Field(None, ge=1, exclude=True)
    """Processes that check at once; else one a core, of the worker's share, up to 8."""

    _pool: Pool | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _can_be_used(self) -> "Math":
        need("math_verify", "rewards")
        return self

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[dict[str, float | None]]:
        """1, 0 or None per answer, and whether its time was over."""
        if self.column not in columns:
            raise StageFailed(
                f'reward/math.py: the prompts have no column "{self.column}", only '
                f"{', '.join(columns) or 'none'}. Name the one with the right answer: column: …"
            )
        if self._pool is None:
            count = self.workers or min(cores(), 8)  # each takes 100 MB
            self._pool = Pool("align.verifiers.expressions:equal", self.timeout, FIRST, count)
        pairs = [
            (text(one), str(right))
            for one, right in zip(completions, columns[self.column], strict=True)
            if right is not None
        ]
        asked = list(dict.fromkeys(pairs))
        found = dict(zip(asked, self._pool.map(asked), strict=True))
        results = (_numbers(found[pair]) for pair in pairs)
        return [
            {"score": None, "timed_out": None} if right is None else next(results)
            for right in columns[self.column]
        ]


def _numbers(result: Any) -> dict[str, float | None]:
    if isinstance(result, Lost):
        return {"score": 0.0, "timed_out": float(result.timed_out)}
    return {"score": None if result is None else float(result), "timed_out": 0.0}
