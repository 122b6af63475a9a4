"""The quickstart's held-out prompts, judged by its world's truth."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from align.artifacts import Prompts
from align.data import read
from align.settings import Task
from align.world.things import Item
from align.world.truth import judge


class Held(Task):
    """Answers to the world's held-out prompts, each right (1) or not (0), by skill.

    The judge is the world's own truth (`align.world.truth.judge`); no reward model is asked.
    """

    ask: ClassVar[Literal["answer"]] = "answer"

    data: Prompts
    """Prompts that the world wrote: their `subset` is a skill, `want` what an answer must be."""

    def items(self) -> Iterator[dict[str, Any]]:
        """The prompts, in the order of the data."""
        yield from read(self.data, Prompts, None)

    def grade(self, items: list[dict[str, Any]], answers: list[str]) -> list[dict[str, float]]:
        """Right or not."""
        return [
            {"right": judge(Item(one["subset"], one["prompt"][-1]["content"], one["want"]), text)}
            for one, text in zip(items, answers, strict=True)
        ]
