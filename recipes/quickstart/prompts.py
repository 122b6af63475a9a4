"""The world's prompts: see align/world/."""

from align.artifacts import Prompts
from align.out import Out
from align.settings import Stage
from align.world.made import World
from align.world.things import FAILING, SKILLS


class Asked(Stage):
    """Prompts to sample answers to, or held-out ones, which no other part of the world contains.

    Rows carry the skill (`subset`) and what an answer must be (`want`), which only the judge reads.
    """

    rows: int
    """How many; of held-out prompts per skill."""

    after: int = 0
    """How many come before them in the same order: what another stage with as many rows asks."""

    held_out: bool = False
    failing: bool = False
    """The skills where judging is as hard as answering, instead of the others."""

    def run(self, out: Out) -> Prompts:
        """Write them."""
        world = World(self.seed, FAILING if self.failing else SKILLS)
        if self.held_out:
            items = [item for skill in world.skills for item in world.test(skill, self.rows)]
        else:
            items = world.prompts(self.after + self.rows)[self.after :]
        rows = (
            {
                "prompt": [{"role": "user", "content": item.prompt}],
                "subset": item.skill,
                "want": dict(item.want),
            }
            for item in items
        )
        out.count("rows", out.write_rows(rows))
        return Prompts(out.path)
