"""A plan becomes artifacts: what is missing is made, in order, each stage in its own process."""

from __future__ import annotations

import difflib
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from align import gates, launch, nodes, processes, space, store
from align.artifacts import Model, read_json
from align.errors import GateStopped, Problem, RecipeError, StageFailed
from align.processes import Forked, Fresh, Server, Stuck
from align.progress import Screen, in_words
from align.recipe import ATTEMPTS, COMMITS
from align.reporting import report
from align.reporting.wording import gate_sentence

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

TAIL = 15
"""How many lines of a failed stage's log are shown."""


class Interrupted(Exception):
    """SIGINT or SIGTERM; what runs has stopped."""


def run(plan: Plan, targets: Sequence[str] = ()) -> int:
    """Make the targets (names or kinds; all by default) and what they need; the exit code.

    Raises:
        RecipeError: a target is none, or something the recipe needs is not there. Nothing ran.
    """
    wanted = choose(plan, targets)
    if plan.not_checked:
        raise RecipeError([Problem(str(plan.path), "", message) for message in plan.not_checked])
    if lacks := [*_lacks(plan, wanted)]:
        raise RecipeError(lacks)
    screen = Screen()
    for sentence in plan.told:
        screen.say(sentence)
    if number := nodes.machine(plan, wanted):
        signals = Signals()
        try:
            return nodes.Follower(plan, number, screen, lambda: signals.count).follow(wanted)
        finally:
            signals.restore()
    try:
        with store.lock(plan.store, f"recipe.{plan.name}", f"{plan.name} is being run"):
            remember(plan)
            code, status = _run(plan, wanted, screen)
            _report(plan, status, screen)
    except StageFailed as failure:  # locked by another run
        screen.say(str(failure))
        return failure.exit_code
    except OSError as error:
        if not store.is_full(error, plan.store):
            raise
        screen.say(store.full(plan.store))
        return 1
    return code


def _lacks(plan: Plan, wanted: list[Planned]) -> Iterator[Problem]:
    """What this machine lacks to make the stages as their `launch:` says."""
    for stage in wanted:
        if store.state(stage.artifact.path) != "done" and (lack := launch.lack(dict(stage.stage))):
            here = f"--set stages.{stage.name}.launch=null"
            message = f"{lack}. Run it on one that has, or as this one can: `{here}`."
            yield Problem(str(plan.path), f"stages.{stage.name}.launch", message)


def remember(plan: Plan) -> None:
    """Keep what was asked for again and what the hub said, once it is sure that the plan runs."""
    folder = plan.store / plan.name
    for name, found in ((ATTEMPTS, plan.attempts), (COMMITS, plan.commits)):
        if found:
            folder.mkdir(parents=True, exist_ok=True)
            store.write_json(folder / name, found)


def _report(plan: Plan, status: str, screen: Screen) -> None:
    """Write the report and the verdicts, and show the table where something was evaluated."""
    page = report.write(plan, status)
    gates.keep(plan)
    if status in ("done", "stopped"):
        found = read_json(plan.store / plan.name / "report.json")
        screen.say("\n".join(filter(None, [report.table(found), f"Report: {page}"])))


def choose(plan: Plan, targets: Sequence[str]) -> list[Planned]:
    """The stages that targets name, and those they come from, in the plan's order.

    Those that are made are among them because their gates are judged; what a made stage was made
    from is not made again.
    """
    named: set[str] = set()
    problems = []
    for target in targets:
        names = {name for name, stage in plan.stages.items() if target in (name, stage.kind)}
        if target in plan.stages:
            names = {target}
        if not names:
            known = sorted({*plan.stages, *(stage.kind for stage in plan.stages.values())})
            near = difflib.get_close_matches(target, known, 1)
            hint = (
                f'Did you mean "{near[0]}"?' if near else f"Stages are: {', '.join(plan.stages)}."
            )
            problems.append(Problem(str(plan.path), "", f'"{target}" is no stage here. {hint}'))
        named |= names
    if problems:
        raise RecipeError(problems)
    makers = {stage.artifact.path: name for name, stage in plan.stages.items()}
    ahead = list(named or plan.stages)
    while ahead:
        stage = plan.stages[ahead.pop()]
        named.add(stage.name)
        made = store.state(stage.artifact.path) == "done"
        ahead += [
            makers[path]
            for path in store.used(one.path for one in stage.inputs)
            if makers.get(path, stage.name) not in named
            and (not made or store.state(path) == "done")
        ]
    return [stage for name, stage in plan.stages.items() if name in named]


def _run(plan: Plan, wanted: list[Planned], screen: Screen) -> tuple[int, str]:
    """The chain, and how it ended: (exit code, status of the report)."""
    begun = time.monotonic()
    missing = [stage for stage in wanted if store.state(stage.artifact.path) != "done"]
    signals = Signals()
    line = _Line(plan, screen, signals, missing)
    try:
        space.check(plan, missing)
        _link(plan)
        for sentence in _passed_by(plan, wanted) if missing else ():
            screen.say(sentence)
        for stage in wanted:
            line.bring(stage)
    except GateStopped as gate:
        screen.say(str(gate))
        return 3, "stopped"
    except StageFailed as failure:
        screen.say(str(failure))
        return 1, "failed"
    except Interrupted:
        screen.say(f"Stopped. What was made is kept; {_on(plan)}")
        return 130, "interrupted"
    finally:
        line.close()
        signals.restore()
    seconds = time.monotonic() - begun
    screen.say(f"{plan.name}: {len(wanted)} stages, {len(missing)} made now, in {seconds:.1f} s.")
    return 0, "done"


class _Line:
    """Makes one stage after the other; keeps the warm parent between them."""

    def __init__(
        self, plan: Plan, screen: Screen, signals: Signals, missing: list[Planned]
    ) -> None:
        self.plan = plan
        self.screen = screen
        self.signals = signals
        self.server: Server | None = None
        alone = [s for s in missing if not launch.spread(s.record["settings"])]
        heavy = [s for s in alone if any(isinstance(a, Model) for a in (s.artifact, *s.inputs))]
        if processes.can_fork() and len(heavy) > 1:
            self.server = Server(plan.store / ".cache" / "warm.log")

    def close(self) -> None:
        """End the warm parent."""
        if self.server is not None:
            self.server.close()
        self.screen.end()

    def bring(self, stage: Planned) -> None:
        """Make the stage unless it is made.

        Raises:
            GateStopped: it is made, and its gate says stop.
            StageFailed: it could not be made.
            Interrupted: we were asked to stop.
        """
        path = stage.artifact.path
        if store.state(path) != "done":
            if self.signals.count:
                raise Interrupted
            self.make(stage)
        if stopped := _stopped(stage):
            raise GateStopped(f"{stage.name}: {stopped}")
        for gate in stage.stage.judged(path):
            if gate["verdict"] == "inconclusive":
                self.screen.say(f"{stage.name}: Gate {gate_sentence(gate)} The chain goes on.")

    def make(self, stage: Planned) -> None:
        """Run the stage's process until the artifact is there."""
        path = stage.artifact.path
        work = store.partial(path)
        again = work.exists()
        with store.lock(path.parent, path.name, f"{stage.name}: {path.name} is being made"):
            work.mkdir(parents=True, exist_ok=True)
            store.write_json(work / "stage.json", stage.record)
            (work / "error.json").unlink(missing_ok=True)
        here = self.plan.store / self.plan.name / stage.name
        store.link(here, work)
        self.screen.say(f"{stage.name}: {path.name}" + (", going on" if again else ""))
        self.screen.begin(stage.name, work)
        begun = time.monotonic()
        code = self.watch(stage, work)
        self.screen.end()
        if code == 130 or (self.signals.count and code != 0):
            raise Interrupted
        if not path.is_dir():
            raise StageFailed(_failure(stage.name, work, code, _on(self.plan)))
        store.link(here, path)
        self.screen.say(f"{stage.name}: made in {time.monotonic() - begun:.1f} s")

    def watch(self, stage: Planned, work: Path) -> int:
        """Start the stage's process and wait for it, showing what it does; its exit code."""
        spread = launch.spread(stage.record["settings"])
        child: Forked | Fresh | None = None
        heard = 0
        while True:
            try:
                if child is None:
                    child = Fresh(work) if self.server is None or spread else self.server.fork(work)
                code = child.wait(0.1)
            except Stuck as reason:
                assert self.server is not None
                self.screen.say(f"  {reason}: every stage gets a fresh process from here.")
                self.server.close()
                self.server = child = None
                continue
            if code is not None:
                return code
            self.screen.look()
            if self.signals.count > heard:
                heard = self.signals.count
                if not child.signal(signal.SIGTERM if heard == 1 else signal.SIGKILL):
                    return 130
                if heard == 1:
                    self.screen.say("Stopping cleanly; once more kills it.")


class Signals:
    """Counts SIGINT and SIGTERM instead of dying of them."""

    def __init__(self) -> None:
        self.count = 0
        self._before = {
            number: signal.signal(number, self._count) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def restore(self) -> None:
        """Put back the handlers that were there."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _stopped(stage: Planned) -> str | None:
    """Why the chain stops at a stage that is made: as it was made, or by the recipe's gate now."""
    path = stage.artifact.path
    stopped: str | None = store.manifest(path)["stopped"]
    return stopped or stage.stage.verdict(path)


def _passed_by(plan: Plan, wanted: list[Planned]) -> Iterator[str]:
    """Gates that stop the chain before what was asked for by name, which is made all the same."""
    named = {stage.name for stage in wanted}
    for stage in takewhile(lambda stage: stage is not wanted[-1], plan.stages.values()):
        made = store.state(stage.artifact.path) == "done"
        if stage.name not in named and made and (stopped := _stopped(stage)):
            yield f"{stage.name}: {stopped}\nWhat is named is made all the same."


def _failure(name: str, work: Path, code: int, on: str) -> str:
    """What to tell about a stage that left no artifact."""
    if (work / "error.json").is_file():
        return f"{name}: {read_json(work / 'error.json')['error']}{_where(work, on)}"
    if store.free(work) < 1 << 16:
        return f"{name}: {store.full(work)}"
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        how += " (out of memory?)" if code == -signal.SIGKILL else ""
    log = (work / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    last = "\n".join(f"  | {line}" for line in log[-TAIL:])
    return f"{last}\n{name}: {how}.{_where(work, on)}"


def _where(work: Path, on: str) -> str:
    return (
        f"\n  log: {work / 'log.txt'}"
        f"\n  this stage alone: {' '.join(processes.command(work))}"
        f"\n  What was made is kept; {on}"
    )


def _on(plan: Plan) -> str:
    """How to go on: `--again` once more would begin what it remade once more."""
    without = " without --again" if plan.attempts else ""
    return f"the same command{without} goes on from here."


def _link(plan: Plan) -> None:
    """Make `runs/<recipe>/` show this plan: links to what is made or begun of its stages.

    Of one that is neither the link stays at what was made of it last: a run that was asked for
    another stage alone takes no model away.
    """
    folder = plan.store / plan.name
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_symlink() and path.name not in plan.stages:
                path.unlink()
    for name, stage in plan.stages.items():
        path = stage.artifact.path
        if path.is_dir():
            store.link(folder / name, path)
        elif store.partial(path).is_dir():
            store.link(folder / name, store.partial(path))
        elif not (folder / name / store.MANIFEST).is_file():
            (folder / name).unlink(missing_ok=True)


def status(plan: Plan) -> int:
    """Print how far every stage is."""
    lines = []
    said = gates.said(plan)
    for name, stage in plan.stages.items():
        state = store.state(stage.artifact.path)
        detail = _detail(stage, state, said.get(stage.artifact.key, ()))
        lines.append(f"{name:20} {state:8} {stage.artifact.path.name}  {detail}")
    sys.stdout.write("\n".join(line.rstrip() for line in lines) + "\n")
    return 0


def _detail(stage: Planned, state: str, said: Sequence[gates.Entry]) -> str:
    if state == "done":
        about = store.manifest(stage.artifact.path)
        end = (_stopped(stage) or f"made {about['made_at']}").partition("\n")[0]
        return "; ".join([f"{about['seconds']:.1f} s, {end}", *gates.in_words(said)])
    if state in ("running", "partial"):
        progress = store.partial(stage.artifact.path) / "progress.json"
        if progress.is_file():
            return in_words(read_json(progress))
    return ""


def other_versions(stages: Iterable[Planned]) -> dict[str, dict[str, tuple[str, str]]]:
    """Made stages that other versions made: name -> library -> (then, now)."""
    from align import versions

    found = {}
    for stage in stages:
        if store.state(stage.artifact.path) == "done":
            differing = versions.differing(store.manifest(stage.artifact.path))
            if differing:
                found[stage.name] = differing
    return found
