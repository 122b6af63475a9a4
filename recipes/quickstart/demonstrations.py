"""The world's demonstrations: see align/world/."""

from align.artifacts import Conversations
from align.out import Out
from align.settings import Stage
from align.world.made import World
from align.world.things import FAILING, SKILLS


class Demonstrations(Stage):
    """Conversations of mixed quality, as people write them: some right, most with a fault."""

    rows: int
    """How many."""

    failing: bool = False
    """The skills where judging is as hard as answering, instead of the others."""

    def run(self, out: Out) -> Conversations:
        """Write them."""
        world = World(self.seed, FAILING if self.failing else SKILLS)
        out.count("rows", out.write_rows(world.demonstrations(self.rows)))
        return Conversations(out.path)
