"""Every task on every model, with intervals, paired comparisons and gates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from align import records, rewards
from align.artifacts import Model, Report, RewardModel
from align.asking.asked import identity, misfits, name_of, tell_apart
from align.asking.first import unreadable
from align.gates import Gate, judge
from align.out import Out
from align.parallel import shards
from align.parallel.workers import Workers
from align.settings import Settings, Stage, Task
from align.tokenizing import check_template


class Comparison(Settings):
    """Two models to compare, item by item."""

    model: Model | RewardModel
    against: Model | RewardModel


class Evaluate(Stage):
    """Every task on every model it is for.

    Models are compared with the model they were trained from where that is evaluated, too, else
    with the one before in the list (role `step`), and with their controls (role `control`), always
    on the same items.
    """

    models: list[Model | RewardModel] = Field(min_length=1)
    """Reward models get the tasks that ask for scores, language models all others."""

    tasks: list[Task] = Field(min_length=1)
    """Tests, by path. Answers are greedy unless a task's `generation:` says otherwise."""

    compare: list[Comparison] | None = None
    """Comparisons instead of the steps (role `asked`)."""

    controls: dict[str, Model | RewardModel] = {}
    """The control of a model, by the model's name: `{sft_best: sft_random}`."""

    gates: list[Gate] = Field([], exclude=True)
    """Judged at every run, from what was kept: another gate asks nothing again."""

    on_inconclusive: Literal["stop", "go on"] = Field("go on", exclude=True)

    rows: int | None = Field(None, ge=1, exclude=True)
    """Answers decoded at once. Unless set 128 on a CPU, and on a GPU as many as fit its memory."""

    workers: Workers | None = Field(None, exclude=True)
    """Who asks: `{on: local, count: 2}`. This process unless set."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Tasks that no model takes, names that are none, models that are not evaluated."""
        self._tell_apart()
        tasks, names = rewards.names(self.tasks), [name_of(model) for model in self.models]
        yield from misfits(self.models, self.tasks)
        yield from unreadable(self.tasks)
        for i, task in enumerate(self.tasks):
            for grader in records.consumed(task):
                if isinstance(grader, Model) and list(check_template(grader)):
                    message = f"The tokenizer of {grader.path} has no chat template. Name one: "
                    message += "model: {path: …, chat_template: plain}, or a jinja file."
                    yield f"tasks.{i}", message
        if self.workers is not None:
            yield from self.workers.problems()
        for name in self.controls:
            if name not in names:
                yield "controls", f'"{name}" is none of the models: {", ".join(names)}.'
        yield from self._with_themselves()
        known = {identity(model) for model in self.models}
        used = [("controls", model) for model in self.controls.values()]
        used += [("compare", m) for one in self.compare or () for m in (one.model, one.against)]
        used += [("gates", m) for gate in self.gates for m in (gate.model, gate.against) if m]
        for key, model in used:
            if identity(model) not in known:
                yield key, f'"{name_of(model)}" is not in "models": add it there.'
        for i, gate in enumerate(self.gates):
            if gate.task.partition("/")[0] not in tasks:
                yield f"gates.{i}", f'"{gate.task}" is none of the tasks: {", ".join(tasks)}.'
            if (gate.against is None) == (gate.at_least is None):
                yield f"gates.{i}", 'A gate has either "against" or "at_least".'
            elif gate.against is None and gate.may_lose:
                yield f"gates.{i}", '"may_lose" goes with "against"; "at_least" is the bar itself.'

    def run(self, out: Out) -> Report:
        """Ask, grade, compare."""
        from align import evaluation, overlap, results
        from align.scoring import winning

        self._tell_apart()
        tasks = evaluation.items(self.tasks, out)
        shared = overlap.find(self.models, tasks, out)
        found = evaluation.measure(self, tasks, out)
        notes = list(winning.notes(found.scores()))
        for note in notes:
            out.say(note)
        report: dict[str, Any] = {
            "files": [results.file_of(model) for model in self.models],
            "models": [identity(model) for model in self.models],
            "tasks": [evaluation.about(task) for task in tasks],
            "scores": found.scores(),
            "comparisons": [row for pair in self._pairs() for row in found.compare(*pair)],
            "overlap": shared,
            "notes": notes,
        }
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (out.path / "report.json").write_text(text + "\n", encoding="utf-8")
        return Report(out.path)

    def worker(self, out: shards.Shard) -> shards.Work:
        """Asks what a shard's rows say; what is said goes into the cache."""
        from align.asking import spread

        return spread.Asker(self, out)

    def judged(self, path: Path) -> list[dict[str, Any]]:
        """The gates with their verdicts, from the items that were kept."""
        self._tell_apart()
        return judge(self.gates, self.models, path)

    def verdict(self, path: Path) -> str | None:
        """Why the chain stops: a gate failed, or is inconclusive where that is to stop it."""
        if not self.gates:
            return None
        from align.reporting.wording import gate_lines

        stops = ("failed", "inconclusive") if self.on_inconclusive == "stop" else ("failed",)
        stopped = [gate for gate in self.judged(path) if gate["verdict"] in stops]
        return "\n".join(line for gate in stopped for line in gate_lines(gate)) or None

    def _tell_apart(self) -> None:
        asked = [self.models, self.compare, list(self.controls.values()), self.gates]
        tell_apart(model for model in records.consumed(asked) if isinstance(model, Model))

    def _with_themselves(self) -> Iterator[tuple[str, str]]:
        """Models that are evaluated twice, or compared with themselves.

        Two stages that make the same thing are two models: settings may differ in another run.
        """
        known = [(identity(model), name_of(model)) for model in self.models]
        for i, model in enumerate(self.models):
            if known[i] in known[:i]:
                yield f"models.{i}", f'"{name_of(model)}" is among the models already.'
        compared: list[tuple[str, Model, Model | None]] = []
        for i, one in enumerate(self.compare or ()):
            compared.append((f"compare.{i}", one.model, one.against))
        for model in self.models:
            if control := self.controls.get(name_of(model)):
                compared.append((f"controls.{name_of(model)}", model, control))
        compared += [(f"gates.{i}", gate.model, gate.against) for i, gate in enumerate(self.gates)]
        for place, model, other in compared:
            if other is None or identity(model) != identity(other):
                continue
            if name_of(model) == name_of(other):
                yield place, f'"{name_of(model)}" is compared with itself. Name another model.'

    def _pairs(self) -> Iterator[tuple[Model, Model, str]]:
        """(model, against, role): what is compared with what."""
        for one in self.compare or ():
            yield one.model, one.against, "asked"
        controls = {identity(control) for control in self.controls.values()}
        for i, model in enumerate(self.models):
            earlier = [m for m in self.models[:i][::-1] if type(m) is type(model)]
            parent = getattr(model.stage, "model", None)
            step = [m for m in earlier if parent is not None and identity(m) == identity(parent)]
            step += [m for m in earlier if identity(m) not in controls]
            if step and self.compare is None:
                yield model, step[0], "step"
            if control := self.controls.get(name_of(model)):
                yield model, control, "control"
