"""The world's preferences: see align/world/."""

from align.artifacts import Preferences
from align.out import Out
from align.settings import Stage
from align.world.made import World
from align.world.things import FAILING, SKILLS


class Judged(Stage):
    """Pairs of answers of which the one with fewer faults is chosen."""

    rows: int
    """How many."""

    held_out: bool = False
    """About held-out prompts."""

    failing: bool = False
    """The skills where judging is as hard as answering, instead of the others."""

    def run(self, out: Out) -> Preferences:
        """Write them."""
        world = World(self.seed, FAILING if self.failing else SKILLS)
        rows = world.preferences(self.rows, "test" if self.held_out else "train")
        out.count("rows", out.write_rows(rows))
        return Preferences(out.path)
