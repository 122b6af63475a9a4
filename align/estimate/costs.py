"""What a plan will take, in words: the cells of its table, and what fits a GPU."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from align import space, store
from align.estimate import effort, fit, totals
from align.estimate.memory import GIB
from align.space import human

if TYPE_CHECKING:
    from align.estimate.effort import Effort
    from align.estimate.totals import Estimate
    from align.recipe import Plan

HEAD = ("memory", "disk", "tokens", "time")

UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def size(text: str) -> float:
    """Bytes of `24GiB` (2**30 bytes each), `80GB` or `24G` (10**9 each).

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?", text.strip().lower())
    if not found or not float(found[1]):
        raise ValueError(text)
    number, unit, binary = found.groups()
    return float(number) * (1024 ** ("kmgt".find(unit) + 1) if binary else UNITS[unit])


class Costs:
    """What every stage of a plan will take."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.estimates = {name: totals.stage(one) for name, one in plan.stages.items()}
        self.efforts = {name: effort.of(one) for name, one in plan.stages.items()}

    def cells(self, name: str) -> tuple[str, ...]:
        """A stage's cells under `HEAD`."""
        planned, work, disk = self.plan.stages[name], self.efforts[name], 0.0
        if store.state(planned.artifact.path) != "done":
            disk = space.stays(planned) + space.passes(planned)
        room = human(disk) if disk else "-"
        return _memory(self.estimates[name]), room, _amount(work), _duration(work)

    def notes(self) -> list[str]:
        """What the cells do not say: why memory is not known, and where a time is from."""
        why: dict[str, list[str]] = {}
        for name, found in self.estimates.items():
            if found.why:
                why.setdefault(f"memory is not known, because {found.why}", []).append(name)
            if like := self.efforts[name].like:
                why.setdefault(f"time as {like} took for a token", []).append(name)
        return [f"{fact}: {', '.join(names)}" for fact, names in why.items()]

    def fits(self, memory: float) -> list[str]:
        """For every stage that needs a GPU, whether it fits one of so many bytes."""
        lines = [f"on {human(memory)} a GPU:"]
        for name, found in self.estimates.items():
            if found.peak:
                lines += self._fits(name, found, memory)
        return lines

    def _fits(self, name: str, found: Estimate, memory: float) -> list[str]:
        assert found.peak is not None and found.memory is not None
        if found.peak <= memory:
            return [f"  {name}: fits, with {human(memory - found.peak)} to spare"]
        parts = ", ".join(f"{part} {bytes_ / GIB:.2f}" for part, bytes_ in found.memory.items())
        lines = [f"  {name}: does not fit: {human(found.peak)} are {parts}"]
        planned = self.plan.stages[name]
        change = fit.smallest(self.plan, planned, memory)
        if change is None:
            nothing = "nothing that is tried and that the whole recipe allows makes it fit"
            return [*lines, f"    {nothing}: {fit.remedy(planned)}"]
        words = shlex.join(word for one in change[0] for word in ("--set", one))
        return [*lines, f"    {human(change[1])} with {words}"]


def _memory(found: Estimate) -> str:
    if found.peak is None:
        return "?"
    if not found.memory:
        return "-"
    return f"{found.devices} x {human(found.peak)}" if found.devices > 1 else human(found.peak)


def _amount(work: Effort) -> str:
    if work.tokens is None:
        return "?" if work.rows is None else f"{_short(work.rows)} rows"
    return f"{'' if work.exact else '~'}{_short(work.tokens)}"


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def _duration(work: Effort) -> str:
    if work.seconds is None:
        return "?"
    about, minutes = "~" if work.like else "", work.seconds / 60
    if minutes < 1:
        return f"{about}{work.seconds:.0f} s"
    return f"{about}{minutes:.0f} min" if minutes < 120 else f"{about}{minutes / 60:.1f} h"
