"""The world's text: see align/world/."""

from align.artifacts import Text
from align.out import Out
from align.settings import Stage
from align.world.made import World
from align.world.things import FAILING, SKILLS


class WorldText(Stage):
    """Documents to pretrain on: plain sentences, and questions with answers of mixed quality."""

    rows: int
    """How many."""

    failing: bool = False
    """The skills where judging is as hard as answering, instead of the others."""

    def run(self, out: Out) -> Text:
        """Write them."""
        world = World(self.seed, FAILING if self.failing else SKILLS)
        out.count("rows", out.write_rows({"text": text} for text in world.text(self.rows)))
        return Text(out.path)
