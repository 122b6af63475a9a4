"""How often a reward model prefers the better of two held-out answers."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from align.artifacts import Preferences as Pairs
from align.data import Source, read
from align.settings import Task


class Preferences(Task):
    """Accuracy on held-out pairs, a tie counting one half; rankings give all their pairs.

    A column `subset` is reported by itself, too.
    """

    ask: ClassVar[Literal["score"]] = "score"

    data: Pairs | Source
    """Held-out preferences."""

    def items(self) -> Iterator[dict[str, Any]]:
        """The pairs, in the order of the data."""
        for row in read(self.data, Pairs, None):
            answers = row.get("ranked") or [row["chosen"], row["rejected"]]
            for i, chosen in enumerate(answers):
                for j, rejected in enumerate(answers[i + 1 :], i + 1):
                    pair = {**row, "chosen": chosen, "rejected": rejected}
                    pair.pop("ranked", None)
                    yield pair if len(answers) == 2 else {**pair, "id": f"{row['id']}/{i}>{j}"}
