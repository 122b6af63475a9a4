"""The recipe that `align eval` writes and runs: models and tasks, without a chain around them."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align import named, records, shelf, yaml
from align.artifacts import Model
from align.asking.asked import name_of
from align.errors import Problem, RecipeError
from align.options import nearest
from align.recipe import Plan
from align.settings import Stage
from align.yaml import Node

LONGEST = 60
"""Letters of the name that is made of the names of models and tasks."""


def write(
    words: Sequence[str],
    settings: Sequence[str],
    chat_template: str | None,
    store: Path,
    command: Sequence[str],
) -> Path:
    """Write `runs/eval-<models>-<tasks>-<hash>/recipe.yaml` and return its path.

    The hash is of models, tasks and settings: another call has a directory of its own.

    Args:
        words: models (a stage's directory, a path, a hub id) and tasks (files that end in `.py`).
        settings: `TASK.KEY=VALUE` for a task, `KEY=VALUE` for the stage `evaluate`.
        chat_template: of the models; None: their own.
        store: where artifacts lie.
        command: what was typed, for the recipe's first line.

    Raises:
        RecipeError: there is no model or no task among the words, or a setting is none.
    """
    tasks = [word for word in words if word.endswith(".py")]
    models = [named.place(word, store) for word in words if not word.endswith(".py")]
    problems = [problem for word in models if (problem := _task_perhaps(word))]
    if not models or not tasks:
        message = "Name a model and a task: align eval runs/mine/dpo eval/gsm8k.py"
        problems.append(Problem("align eval", "", message))
    if problems:
        raise RecipeError(problems)
    block: dict[str, Any] = {"models": [_model(word, chat_template, store) for word in models]}
    block["tasks"] = [{"use": word} for word in tasks]
    tree = _node(block)
    for setting in settings:
        tree = yaml.override(tree, _placed(setting, tasks, problems), problems)
    if problems:
        raise RecipeError(problems)
    called = [*(named.called(word) for word in models), *(Path(task).stem for task in tasks)]
    name = re.sub(r"[^\w-]+", "-", "-".join(called))[:LONGEST].strip("-")
    asked = [[*map(_place, models)], [*map(_place, tasks)], [*settings], chat_template]
    path = store / f"eval-{name}-{records.digest(asked)[:6]}" / "recipe.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(tree.python(), command), encoding="utf-8")
    return path


def unlike(plan: Plan) -> Iterator[str]:
    """`dpo-2 is runs/other/dpo`, for models that are called otherwise than their directories."""
    for stage in plan.stages.values():
        for model in records.consumed(dict(stage.stage)["models"]):
            if isinstance(model, Model) and name_of(model) != model.path.name:
                yield f"{name_of(model)} is {model.path}"


def _place(word: str) -> str:
    """A file wherever it is named from; other words as they are."""
    return os.path.abspath(os.path.expanduser(word)) if records.is_path(word) else word


def _model(word: str, chat_template: str | None, store: Path) -> Any:
    """A model of the hub at the commit it is at now: the recipe's first run keeps no later call."""
    block = {"path": word}
    if not records.is_path(word) and word.count("/") == 1:
        block["revision"] = named.model(word, store).spec()["base"]["revision"]
    if chat_template is not None:
        block["chat_template"] = chat_template
    return block if len(block) > 1 else word


def _task_perhaps(word: str) -> Problem | None:
    """A word that names no model and is a task without its suffix."""
    name = f"eval/{word.removeprefix('eval/')}.py"
    if os.path.exists(word) or shelf.find(name) is None:
        return None
    return Problem(word, "", f'There is no such model. The task is called "{name}".')


def _placed(setting: str, tasks: Sequence[str], problems: list[Problem]) -> str:
    """`gsm8k.shots=8` as the place in the stage: `tasks.0.shots=8`."""
    first, dot, rest = setting.partition(".")
    names = [Path(task).stem for task in tasks]
    if not dot or "=" in first:
        return setting
    if first in names:
        return f"tasks.{names.index(first)}.{rest}"
    if first not in shelf.load(shelf.STAGES / "evaluate.py", Stage).model_fields:
        hint = nearest(first, names)
        message = f'"{first}" is none of the tasks that are asked: {", ".join(names)}.{hint}'
        problems.append(Problem(f"--set {setting}", "", message))
    return setting


def _node(value: Any) -> Node:
    if isinstance(value, dict):
        value = {name: _node(inner) for name, inner in value.items()}
    elif isinstance(value, list):
        value = [_node(inner) for inner in value]
    return Node(value, "align eval", "align eval")


def _text(block: dict[str, Any], command: Sequence[str]) -> str:
    """The recipe; what stands in JSON is YAML."""
    lines = [f"# {shlex.join(command)}", "stages:", "  evaluate:"]
    for key, value in block.items():
        if isinstance(value, list):
            items = (f"      - {json.dumps(item, ensure_ascii=False)}" for item in value)
            lines += [f"    {key}:", *items]
        else:
            lines.append(f"    {key}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
