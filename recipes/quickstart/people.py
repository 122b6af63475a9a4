"""What the world's people say of an answer: see align/world/."""

from typing import Any

from align.rewards import text
from align.settings import Dialog, Reward
from align.world.things import Item
from align.world.truth import checks


class People(Reward):
    """Minus the number of faults that people see: whose answers they compare, `pair` says.

    The prompts are the world's: `subset` is a skill, `want` what an answer must be.
    """

    def __call__(
        self,
        *,
        prompts: list[Dialog],
        completions: list[Dialog],
        subset: list[str],
        want: list[dict[str, Any]],
        **columns: list[Any],
    ) -> list[float | None]:
        """One number per answer."""
        asked = [prompt[-1]["content"] for prompt in prompts]
        items = [Item(*one) for one in zip(subset, asked, want, strict=True)]
        return [
            -float(sum(not passed for passed in checks(item, text(completion)).values()))
            for item, completion in zip(items, completions, strict=True)
        ]
