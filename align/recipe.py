"""Recipes: from a YAML file to a checked plan.

`read` finds everything that is wrong before anything runs, with all problems at once; what it
returns says of every stage where its artifact lies or will lie. `restore` makes one stage again
from its record, in the process that runs it. Nothing here imports torch, transformers or datasets.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align import artifacts, glance, hub, launch, records, shelf, yaml
from align.annotations import Annotation
from align.artifacts import Artifact, Model
from align.errors import Problem, RecipeError, StageFailed
from align.options import nearest
from align.outside import BAD, base
from align.reading import Ahead, Reader
from align.settings import RecipeTasks, Stage, Task
from align.yaml import Node, show

KEYS = ("base", "seed", "defaults", "launch", "stages")

ATTEMPTS = "attempts.json"
"""In `runs/<recipe>/`: how often each stage was asked for again."""

COMMITS = "hub.json"
"""In `runs/<recipe>/`: which commits names of the hub meant when it ran first."""

_NAME = re.compile(r"[A-Za-z_][\w-]*")


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: checked, with the place of what it makes."""

    name: str
    kind: str
    stage: Stage
    artifact: Artifact
    inputs: tuple[Artifact, ...]
    record: dict[str, Any]
    """What `stage.json` holds: enough to make the stage again, alone."""


@dataclass(frozen=True)
class Plan:
    """A recipe that was read and found right."""

    name: str
    path: Path
    store: Path
    stages: dict[str, Planned]
    not_checked: list[str]
    overrides: list[str]
    seed: int
    attempts: dict[str, int] = field(default_factory=dict)
    """How often each stage was asked for again, where one was now; a run remembers it."""

    commits: dict[str, str] = field(default_factory=dict)
    """What names of the hub mean, by `hub.reference`; a run remembers it."""

    told: list[str] = field(default_factory=list)
    """Sentences about them."""


def read(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    store: Path = Path("runs"),
    again: Sequence[str] = (),
    strict: bool = False,
) -> Plan:
    """Read and check a recipe.

    `overrides` are `a.b.c=VALUE`. Stages named in `again` are made once more, and what follows from
    them (`Plan.attempts`). With `strict`, what cannot be checked (unset
    variables, hub items that are not cached and cannot be asked for) is a problem.

    Raises:
        RecipeError: something is wrong; it holds every problem that was found.
    """
    path = shelf.recipe(recipe)
    problems: list[Problem] = []
    root = _tree(path, overrides, problems)
    root, unset = yaml.interpolate(root, problems)
    problems += yaml.secrets(root)
    told = {problem.place for problem in problems}
    reading = _Reading(root, Reader(store, unset, strict), path, again)
    stages = reading.stages(list(overrides))
    problems += [problem for problem in reading.reader.problems if problem.place not in told]
    if problems:
        raise RecipeError(_in_order(problems))
    assert len(stages) == len(reading.reader.later), "a stage was left out without a word"
    reading.contents.save()
    commits = reading.reader.resolved
    hub.note(store, commits)
    found = reading.reader.not_checked.items()
    not_checked = [f"{fact}: {', '.join(where)}" for fact, where in found if where]
    attempts = reading.attempts if again else {}
    return Plan(
        reading.name,
        path,
        store,
        stages,
        not_checked,
        list(overrides),
        reading.seed,
        attempts,
        reading.reader.kept | commits if commits and reading.keeps else {},
        reading.reader.told,
    )


def restore(record: dict[str, Any], store: Path) -> Stage:
    """The stage of a record (`Planned.record`), alone: its inputs lie in the store.

    Raises:
        StageFailed: a file that the stage is made of is gone.
        RecipeError: such a file cannot be imported any more.
    """
    return records.restore(record, store)


def makes(cls: type[Stage], inputs: Sequence[Artifact] = ()) -> type[Artifact] | None:
    """What a stage makes: the return annotation of its `run`.

    Where that names several types (`Model | RewardModel`) it is the type of the first input that
    is one of them; None where there is no such input.
    """
    annotation = inspect.get_annotations(cls.run).get("return", "")
    names = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    module = vars(sys.modules[cls.__module__])
    types_ = []
    for word in names.split("|"):
        word = word.strip().strip("'\"").rpartition(".")[2]
        found = module.get(word, getattr(artifacts, word, None))
        if isinstance(found, type) and issubclass(found, Artifact):
            types_.append(found)
    if len(types_) == 1 and types_[0] not in (artifacts.Artifact, artifacts.Rows):
        return types_[0]
    return next((type(i) for i in inputs if isinstance(i, tuple(types_))), None)


def makes_model(stage: Stage) -> bool:
    """Whether what a stage makes is a model."""
    made = makes(type(stage), records.consumed(stage))
    return made is not None and issubclass(made, Model)


# -- the file ------------------------------------------------------------------------------------


def _tree(path: Path, overrides: Sequence[str], problems: list[Problem]) -> Node:
    """The recipe's tree with overrides applied; raises where there is none."""
    name = os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"This file cannot be read: {error.strerror}."
        raise RecipeError([Problem(name, "", message)]) from None
    except UnicodeDecodeError as error:
        message = f"This file is no UTF-8 text (byte {error.start}). Save it as UTF-8."
        raise RecipeError([Problem(name, "", message)]) from None
    root = yaml.load(text, name, problems)
    if root is None:
        raise RecipeError(problems)
    if not isinstance(root.value, dict):
        fact = "is empty" if root.value is None else f"holds {show(root.value)}"
        message = f'This file {fact}. A recipe is a block with "stages:" and mostly "base:".'
        raise RecipeError([*problems, Problem(root.place, "", message)])
    for setting in overrides:
        keys = setting.partition("=")[0].strip().split(".")
        stages = root.get("stages")
        if keys[0] == "stages" and len(keys) > 2 and stages and stages.get(keys[1]) is None:
            hint = nearest(keys[1], stages.value if isinstance(stages.value, dict) else ())
            message = f'There is no stage "{keys[1]}".{hint}'
            problems.append(Problem(f"--set {'.'.join(keys)}", "", message))
        else:
            root = yaml.override(root, setting, problems)
    return root


def _in_order(problems: list[Problem]) -> list[Problem]:
    """Each problem once, in the order of the file's lines."""
    for i, problem in enumerate(problems):
        if problem.place.removeprefix("--set ").startswith(problem.path):
            problems[i] = Problem(problem.place, "", problem.message)  # the place says it
    once = {(problem.place, problem.message): problem for problem in reversed(problems)}

    def line(problem: Problem) -> tuple[int, int]:
        numbers = re.search(r":(\d+):(\d+)$", problem.place)
        return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)

    return sorted(reversed(once.values()), key=line)


# -- the stages ----------------------------------------------------------------------------------


class _Reading:
    """Reads a recipe's blocks, top to bottom."""

    def __init__(self, root: Node, reader: Reader, path: Path, again: Sequence[str]) -> None:
        self.root = root
        self.reader = reader
        self.path = path
        self.name = shelf.called(path)
        self.again = again
        self.contents = records.Contents(reader.store)
        self.seed = 42
        self.blocks: dict[str, Node] = {}
        """Every stage's settings, with the defaults of its kind."""
        self.unsure: set[str] = set()
        """What hangs on a variable that is not set: stages, and `base`."""
        self.attempts: dict[str, int] = {}
        if (file := reader.store / self.name / ATTEMPTS).is_file():
            self.attempts = artifacts.read_json(file)
        folder = reader.store / self.name
        self.keeps = path.parent.resolve() != folder.resolve()
        """Whether commits are kept: `align eval` writes its recipes there, and asks every time."""
        if self.keeps:
            reader.kept = hub.kept(folder / COMMITS)

    def stages(self, overrides: list[str]) -> dict[str, Planned]:
        """The whole recipe; `overrides` are only noted, they are in the tree."""
        assert isinstance(self.root.value, dict)
        for key, node in self.root.value.items():
            if key not in KEYS:
                message = f'"{key}" is no key of a recipe.{self._meant(key, node)}'
                self.reader.problem(node.key, (), message)
        self._seed()
        blocks = self._blocks()
        self.reader.later = list(blocks)
        model = self.root.get("base")
        if model is not None and model.value is not None:
            read = base(self.reader, model, ("base",))
            self.reader.has_base = True
            if self._hangs(model):
                self.unsure.add("base")
            if read is not BAD:
                self.reader.base = records.external(read, Model)
                self.reader.base.name = "base"
        defaults = self._defaults(blocks)
        for stage in self.again:
            if stage in blocks:
                self.attempts[stage] = self.attempts.get(stage, 0) + 1
            else:
                message = f"There is no such stage.{nearest(stage, blocks)}"
                self.reader.problem(f"--again {stage}", (), message)
        for name, block in blocks.items():
            kind = Path(str(_use(name, block).value)).stem
            settings = Node(block.value or {}, block.place, block.key)
            self.blocks[name] = yaml.overlay(defaults.get(kind), settings)
        planned = {}
        for name, block in self.blocks.items():
            made, type_ = self._stage(name, block)
            if made is not None:
                made.record["overrides"] = overrides
                planned[name] = made
            self.reader.made[name] = None if made is None else made.artifact
            self.reader.types[name] = type_
        return planned

    def _seed(self) -> None:
        node = self.root.get("seed")
        if node is None:
            return
        if type(node.value) is int and 0 <= node.value < 2**32:
            self.seed = node.value
        else:
            message = f'"seed" must be a whole number from 0, not {show(node.value)}.'
            self.reader.problem(node.place, (), message)

    def _blocks(self) -> dict[str, Node]:
        """The stages' blocks by name; a stage without settings is an empty block."""
        node = self.root.get("stages")
        if node is None or not isinstance(node.value, dict) or not node.value:
            place = self.root.place if node is None else node.place
            fact = "is missing" if node is None else "is empty"
            if node is not None and node.value not in (None, {}):
                fact = f"must be a block of named stages, not {show(node.value)}"
            self.reader.problem(place, (), f'"stages" {fact}.')
            return {}
        blocks = {}
        for name, block in node.value.items():
            path = ("stages", name)
            if not _NAME.fullmatch(name) or name == "base":
                fact = "is the recipe's base model" if name == "base" else "is no name for a stage"
                message = f'"{name}" {fact}. Use letters, digits, "_" and "-", a letter first.'
                self.reader.problem(block.key, ("stages",), message)
            elif block.value is not None and not isinstance(block.value, dict):
                message = f"A stage is a block with keys, not {show(block.value)}."
                self.reader.problem(block.place, path, message)
            else:
                blocks[name] = block
                continue
            self.reader.made[name] = None
            self.reader.types[name] = None
        return blocks

    def _defaults(self, stages: dict[str, Node]) -> dict[str, Node]:
        """The blocks of `defaults:` by kind."""
        node = self.root.get("defaults")
        if node is None or node.value is None:
            return {}
        if not isinstance(node.value, dict):
            message = f'"defaults" is a block by kind of stage, not {show(node.value)}.'
            self.reader.problem(node.place, (), message)
            return {}
        uses = [_use(name, block).value for name, block in stages.items()]
        kinds = {*shelf.kinds(), *(Path(str(use)).stem for use in uses)}
        for kind, block in node.value.items():
            if kind not in kinds:
                message = f'"{kind}" is no kind of stage.{nearest(kind, kinds)}'
                self.reader.problem(block.key, ("defaults",), message)
            elif not isinstance(block.value, dict) and block.value is not None:
                message = f'"{kind}" is a block of settings, not {show(block.value)}.'
                self.reader.problem(block.place, ("defaults",), message)
        return {k: block for k, block in node.value.items() if isinstance(block.value, dict)}

    def _class(self, name: str, block: Node) -> tuple[str, Any]:
        """(kind, class or BAD) of a stage: what its `use` says, else its name."""
        use = _use(name, block)
        path, word = ("stages", name), use.value
        if isinstance(word, str) and word.endswith(".py"):
            return Path(word).stem, self.reader.load(use, Stage, path)
        kinds = shelf.kinds()
        if word in kinds:
            return str(word), shelf.load(shelf.STAGES / f"{word}.py", Stage)
        hint = nearest(str(word), kinds) or f" Kinds are: {', '.join(kinds)}."
        if block.get("use") is None:
            hint = f' Say which kind with "use:".{hint}'
        return "", self.reader.problem(use.place, path, f"{show(word)} is no kind of stage.{hint}")

    def _stage(self, name: str, block: Node) -> tuple[Planned | None, type[Artifact] | None]:
        """Read one stage: what is planned, and what it makes as far as that is known."""
        reader, path = self.reader, ("stages", name)
        kind, cls = self._class(name, block)
        if cls is BAD:
            return None, None
        assert isinstance(block.value, dict)
        values = {key: node for key, node in block.value.items() if key != "use"}
        if "launch" in cls.model_fields and (launch := self.root.get("launch")) is not None:
            values.setdefault("launch", launch)
        values.setdefault("seed", Node(self.seed, block.place, block.key))
        block = Node(values, block.place, block.key)
        given = {
            key: self._tasks((*path, key))
            for key, field in cls.model_fields.items()
            if key not in values and any(isinstance(mark, RecipeTasks) for mark in field.metadata)
        }
        stage = reader.block(cls, block, path, given)
        inputs = () if stage is BAD else records.inputs(stage)
        if stage is BAD:
            return None, makes(cls)
        made = stage.makes() or makes(cls, records.consumed(stage))
        if made is None:
            annotation = inspect.get_annotations(cls.run).get("return")
            message = f"What it makes is not clear: run() is annotated with {annotation!r}."
            reader.problem(block.key, path, message)
            return None, None
        if self._hangs(block) or self.unsure & {one.name for one in records.consumed(stage)}:
            self.unsure.add(name)
        else:
            self._check(stage, made, block, path)
        attempt = self.attempts.get(name, 0)
        try:
            key = records.key(stage, kind, attempt, self.contents)
        except OSError as error:
            reader.problem(block.key, path, f'"{error.filename}": {error.strerror}.')
            return None, made
        artifact = made(reader.store / key, stage=stage)
        artifact.name = name
        file = shelf.source(cls)
        record = {
            "name": name,
            "recipe": self.name,
            "recipe_file": shelf.name(self.path),
            "kind": kind,
            "use": kind if file.parent == shelf.STAGES else shelf.name(file),
            "makes": made.__name__,
            "settings": records.dump(stage),
            "seed": stage.seed,
            "attempt": attempt,
            "key": key,
            "inputs": [each.key for each in inputs],
        }
        return Planned(name, kind, stage, artifact, inputs, record), made

    def _tasks(self, path: tuple[str, ...]) -> list[Task]:
        """The tasks of the recipe's `evaluate` stages, for their items alone.

        What is wrong with one is said where it stands.
        """
        ahead = Ahead(**{**vars(self.reader), "problems": [], "not_checked": {}})
        found: list[Task] = []
        for name, block in self.blocks.items():
            kind, cls = self._class(name, block)
            tasks = block.get("tasks")
            if kind != "evaluate" or cls is BAD or tasks is None:
                continue
            for node in tasks.value if isinstance(tasks.value, list) else [tasks]:
                task = ahead.value(Annotation(blocks=(Task,)), node, path)
                if isinstance(task, Task):
                    # how it is asked must not make the data anew
                    found.append(task.model_copy(update={"generation": {}, "samples": 1}))
                elif not ahead.problems:  # else it is said where the task stands
                    fact = "the items of a task are made after this stage and not compared with it"
                    self.reader.unchecked(path, fact)
                ahead.problems.clear()
        return found

    def _meant(self, key: str, node: Node) -> str:
        """What a word that is no key of a recipe may have been meant for."""
        stages = self.root.get("stages")
        if stages is not None and isinstance(stages.value, dict) and key in stages.value:
            return f' Did you mean "stages.{key}"?'
        if node.get("use") is not None:
            return ' Stages stand under "stages:".'
        return nearest(key, KEYS)

    def _hangs(self, node: Node) -> bool:
        """Whether a value in a block hangs on a variable that is not set: its file is not there."""
        return any(below.place in self.reader.unset for _, below in node.walk())

    def _check(
        self, stage: Stage, made: type[Artifact], block: Node, path: tuple[str, ...]
    ) -> None:
        """What the stage itself knows to be wrong, and data that it cannot take."""
        unreadable = glance.unreadable(stage, made, self.reader.strict)
        try:
            for key, message in (*stage.check(), *unreadable):
                node = block
                for part in key.split("."):
                    node = _below(node, part)
                self.reader.problem(node.place, (*path, *key.split(".")), message)
        except StageFailed as failure:
            self.reader.problem(block.key, path, str(failure))
            return
        settings = dict(stage)
        if "launch" not in settings or any(launch.problems(settings["launch"])):
            return
        if lack := launch.lack(settings):
            self.reader.unchecked((*path, "launch"), lack)


def _use(name: str, block: Node) -> Node:
    """What says which kind a stage is: its `use`, else its name."""
    return block.get("use") or Node(name, block.key, block.key)


def _below(node: Node, part: str) -> Node:
    """The node under a key or an index, or the node itself."""
    if isinstance(node.value, list) and part.isdecimal() and int(part) < len(node.value):
        return node.value[int(part)]
    return node.get(part) or node
