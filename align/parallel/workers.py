"""Who makes a stage's shards: processes on this machine, Ray, or an array of SLURM jobs.

    workers: {on: local, count: 4}

The driver keeps the plan and hands out numbers of shards; every worker restores the stage from its
`stage.json`, loads once what it needs, and makes one shard after the other (shards.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field

from align.out import Out
from align.settings import Settings


class Workers(Settings):
    """Who makes the shards of a stage, and how many at a time."""

    on: Literal["local", "ray", "slurm"] = "local"
    """Processes of this machine, actors of Ray, or the tasks of a SLURM array."""

    count: int = Field(ge=1)
    """Workers. On GPUs each has one for itself; on a CPU they share the cores."""

    options: dict[str, Any] = {}
    """What Ray or submitit is told, under their own names."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) for what is wrong with the block `workers`; for `Stage.check`."""
        if self.on == "ray":
            from align.parallel import rays

            yield from rays.problems(self)
        elif self.on == "slurm":
            from align.parallel import arrays

            yield from arrays.problems(self)
        elif self.options:
            yield "workers.options", "Workers on this machine have no options. Leave it out."

    def make(self, out: Out, missing: list[int], watch: Callable[[], None]) -> None:
        """Make the shards with these numbers; `watch` is called every second or so.

        Raises:
            StageFailed: a worker said why it cannot go on, or a shard failed three times; there
                are fewer GPUs than workers of this machine.
        """
        if self.on == "ray":
            from align.parallel import rays

            rays.make(self, out, missing, watch)
        elif self.on == "slurm":
            from align.parallel import arrays

            arrays.make(self, out, missing, watch)
        else:
            from align.parallel import pool

            pool.make(self, out, missing, watch)
