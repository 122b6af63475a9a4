"""The world's people compare answers of a model: see align/world.py."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from align.artifacts import Preferences, Samples
from align.out import Out
from align.settings import Stage
from align.world import Item, checks


class Annotated(Stage):
    """Pairs of a model's own answers of which the one that fails fewer checks is chosen.

    What human annotators do in every round of Llama 2 and Llama 3: a reward model has to know the
    answers of the policy it is asked about (arXiv 2307.09288, section 3.2.1).
    """

    samples: Samples
    pairs: int = 3
    """At most so many per prompt."""

    def run(self, out: Out) -> Preferences:
        """Compare."""
        out.count("rows", out.write_rows(self._rows()))
        return Preferences(out.path)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for row in self.samples.rows():
            asked = row["prompt"][-1]["content"]
            item = Item(row["columns"]["subset"], asked, row["columns"]["want"])
            answers = {one["text"]: None for one in row["completions"] if one["finish"] == "stop"}
            failed = {text: list(checks(item, text).values()).count(False) for text in answers}
            found = [sorted(two, key=failed.__getitem__) for two in combinations(answers, 2)]
            found = [(better, worse) for better, worse in found if failed[better] < failed[worse]]
            for better, worse in found[: self.pairs]:
                chosen, rejected = ([{"role": "assistant", "content": t}] for t in (better, worse))
                yield {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
