"""Every task on every model, with intervals, paired comparisons and gates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import Field

from align import records, rewards
from align.artifacts import Model, Report, RewardModel
from align.asking import identity, name_of, takes, tell_apart
from align.errors import GateStopped
from align.gates import Gate
from align.generation.decoding import problems
from align.out import Out
from align.settings import Settings, Stage, Task


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

    gates: list[Gate] = []
    on_inconclusive: Literal["stop", "go on"] = "go on"

    rows: int = Field(128, ge=1, exclude=True)
    """Answers decoded at once."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Tasks that no model takes, names that are none, models that are not evaluated."""
        self._tell_apart()
        tasks, names = rewards.names(self.tasks), [name_of(model) for model in self.models]
        for i, (name, task) in enumerate(zip(tasks, self.tasks, strict=True)):
            yield from ((f"tasks.{i}", message) for _, message in problems(task.generation))
            if not any(takes(task, model) for model in self.models):
                what = "a reward model" if task.ask == "score" else "a language model"
                yield f"tasks.{i}", f'{name} is for {what}, and none is in "models".'
        for name in self.controls:
            if name not in names:
                yield "controls", f'"{name}" is none of the models: {", ".join(names)}.'
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

    def run(self, out: Out) -> Report:
        """Ask, grade, compare, judge."""
        from align import evaluation
        from align.reporting.wording import gate_sentence

        self._tell_apart()
        results = evaluation.measure(self.models, self.tasks, self.seed, self.rows, out)
        report: dict[str, Any] = {
            "scores": results.scores(),
            "comparisons": [row for pair in self._pairs() for row in results.compare(*pair)],
            "gates": [gate.judge(results) for gate in self.gates],
        }
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (out.path / "report.json").write_text(text + "\n", encoding="utf-8")
        stop = []
        for gate in report["gates"]:
            sentence = f"Gate {gate_sentence(gate)}"
            out.say(sentence)
            if gate["verdict"] == "failed" or (
                gate["verdict"] == "inconclusive" and self.on_inconclusive == "stop"
            ):
                stop.append(sentence)
        if stop:
            raise GateStopped(" ".join(stop))
        return Report(out.path)

    def _tell_apart(self) -> None:
        asked = [self.models, self.compare, list(self.controls.values()), self.gates]
        tell_apart(model for model in records.consumed(asked) if isinstance(model, Model))

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
