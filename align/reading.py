"""YAML blocks to settings: every value read as its field's annotation says.

A field typed as an artifact reads a bare word as an earlier stage; a field marked `Library` is
checked against the library's source; rewards and tasks are files; everything else is pydantic's.
All problems of a recipe are collected here, each with its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from align import options, outside, shelf
from align.annotations import Annotation, artifact_name, described, fits
from align.artifacts import Artifact, Model
from align.data import Source
from align.errors import Problem, RecipeError
from align.models import Base
from align.options import nearest
from align.outside import BAD
from align.records import external, is_path
from align.settings import Reward, Settings, Stage, Task
from align.types import ANY, Type
from align.yaml import Node, Unset, show


@dataclass
class Reader:
    """Reads the blocks of one recipe, stage after stage."""

    store: Path
    unset: dict[str, Unset]
    strict: bool
    """Whether what cannot be checked is a problem: `run` says yes, `plan` no."""

    later: list[str] = field(default_factory=list)
    """The names of all stages of the recipe, in order."""

    has_base: bool = False
    base: Model | None = None
    """The recipe's base; None where there is none or it could not be read."""

    made: dict[str, Artifact | None] = field(default_factory=dict)
    """What the stages read so far make; None where a stage could not be read."""

    types: dict[str, type[Artifact] | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    not_checked: dict[str, list[str]] = field(default_factory=dict)
    """What cannot be checked, and where it stands."""

    resolved: dict[str, str] = field(default_factory=dict)
    """What names of the hub mean: commits, by `hub.reference`."""

    kept: dict[str, str] = field(default_factory=dict)
    """What they meant when the recipe ran first."""

    silent: str = ""
    """Why the hub is not asked any more: it did not answer once."""

    told: list[str] = field(default_factory=list)
    """Sentences about names of the hub, for whoever runs the recipe."""

    def wrong(self, node: Node, path: tuple[str, ...], fact: str) -> Any:
        """Note that the value at a path is wrong; the fact goes on after the quoted key."""
        end = len(path) - 1
        while end > 0 and path[end].isdecimal():
            end -= 1
        return self.problem(node.place, path[:end], f'"{".".join(path[end:])}" {fact}')

    def problem(self, place: str, path: Sequence[str], message: str) -> Any:
        """Note a problem; returns BAD."""
        self.problems.append(Problem(place, ".".join(path), message))
        return BAD

    def unchecked(self, path: Sequence[str], fact: str) -> None:
        """Note what cannot be checked now; a `strict` reader has refused it or will see."""
        where = self.not_checked.setdefault(fact, [])
        if not self.strict and ".".join(path) not in where:
            where.append(".".join(path))

    # -- blocks ----------------------------------------------------------------------------------

    def block(
        self,
        cls: type[Settings],
        node: Node,
        path: tuple[str, ...],
        given: dict[str, Any] | None = None,
    ) -> Any:
        """An instance of a class from a YAML block, or BAD. `given` are values read already."""
        assert isinstance(node.value, dict)
        given = given or {}
        values = {name: value for name, value in given.items() if value is not BAD}
        bad = given.keys() - values.keys()
        for name, child in node.value.items():
            if name in given:
                continue
            known = cls.model_fields.get(name)
            if known is None:
                hint = nearest(name, cls.model_fields)
                what = _what(cls)
                self.problem(child.key, path, f'"{name}" is no key of {what}.{hint}')
                bad.add("")
                continue
            annotation = Annotation.of(known.annotation, known.metadata)
            if child.value == [] and known.is_required():
                self.wrong(child, (*path, name), "is an empty list.")
                bad.add(name)
                continue
            value = self.value(annotation, child, (*path, name))
            if value is BAD:
                bad.add(name)
            else:
                values[name] = value
        for name, known in cls.model_fields.items():
            if isinstance(known.default, Source) and name not in node.value:
                written = _written(known.default.model_dump(exclude_defaults=True), node)
                value = outside.source(self, written, (*path, name), ())
                if value is BAD:
                    bad.add(name)
                else:
                    values[name] = value
        try:
            made = cls.model_validate(values)
        except pydantic.ValidationError as error:
            self._explain(cls, error, node, path, bad)
            return BAD
        return BAD if bad else made

    def _explain(
        self,
        cls: type[Settings],
        error: pydantic.ValidationError,
        node: Node,
        path: tuple[str, ...],
        bad: set[str],
    ) -> None:
        """pydantic's errors in the user's words, one for each value."""
        by_field: dict[str, list[Any]] = {}
        for found in error.errors():
            by_field.setdefault(str(found["loc"][0]) if found["loc"] else "", []).append(found)
        for name, errors in by_field.items():
            if name in bad or (not name and bad):
                continue
            child = node.get(name)
            if not name:
                self.problem(node.key, path, _sentence(errors[0]["msg"]))
            elif child is None:
                message = f'"{name}" is missing: {_what(cls)} needs it.'
                self.problem(node.key, path, message)
            else:
                known = cls.model_fields[name]
                type_ = described(known.annotation)
                place, label, message = _wrong(name, child, type_, errors)
                self.problem(place, path, f'"{label}" {message}' if label else message)

    # -- values ----------------------------------------------------------------------------------

    def value(self, annotation: Annotation, node: Node, path: tuple[str, ...]) -> Any:
        """One value, as its annotation says, or BAD."""
        if node.place in self.unset and not (
            annotation.artifacts or Source in annotation.blocks or Path in annotation.plain
        ):
            return self._unset(node)
        if node.value is None or not annotation.special:
            return self._python(node)
        if annotation.library is not None and not isinstance(node.value, (str, list)):
            found = list(options.check(annotation.library, node))
            for place, message in found:
                self.problem(place, path, message)
            return BAD if found else self._python(node)
        if isinstance(node.value, list) and annotation.items is not None:
            inner = Annotation.of(annotation.items)
            return _all(
                [self.value(inner, item, (*path, str(i))) for i, item in enumerate(node.value)]
            )
        if isinstance(node.value, dict):
            return self._mapping(annotation, node, path)
        single = bool(annotation.artifacts or annotation.blocks)
        if annotation.items is not None and not single and not isinstance(node.value, list):
            if not Annotation.of(annotation.items).special:
                return self._python(node)
            return _all([self.value(Annotation.of(annotation.items), node, path)])
        if isinstance(node.value, str):
            return self._word(annotation, node, path)
        if single and not annotation.plain:
            return self.wrong(node, path, _needs(annotation, node))
        return self._python(node)

    def _python(self, node: Node) -> Any:
        """The value as it is, unless a variable in it is not set."""
        found = [below for _, below in node.walk() if below.place in self.unset]
        return _all([self._unset(below) for below in found]) if found else node.python()

    def _unset(self, node: Node) -> Any:
        self.problems.append(self.unset[node.place].problem())
        return BAD

    def _mapping(self, annotation: Annotation, node: Node, path: tuple[str, ...]) -> Any:
        plugin = next((cls for cls in annotation.blocks if cls in (Reward, Task)), None)
        if plugin is not None:
            return self._plugin(plugin, node, path)
        if Source in annotation.blocks:
            return outside.source(self, node, path, annotation.artifacts)
        models = [cls for cls in annotation.artifacts if issubclass(cls, Model)]
        if models:
            return outside.model(self, node, path, models)
        if annotation.blocks:
            assert isinstance(node.value, dict)
            keys = node.value.keys()
            fits = [len(keys & cls.model_fields.keys()) for cls in annotation.blocks]
            if max(fits) or annotation.values is None:
                return self.block(annotation.blocks[fits.index(max(fits))], node, path)
        if annotation.values is not None:
            assert isinstance(node.value, dict)
            inner = Annotation.of(annotation.values)
            read = {k: self.value(inner, v, (*path, k)) for k, v in node.value.items()}
            return BAD if any(value is BAD for value in read.values()) else read
        if annotation.items is not None:
            return _all([self.value(Annotation.of(annotation.items), node, path)])
        return self.wrong(node, path, _needs(annotation, node))

    # -- words -----------------------------------------------------------------------------------

    def _word(self, annotation: Annotation, node: Node, path: tuple[str, ...]) -> Any:
        """A word in a field that holds an artifact, data, a reward, a task or a file."""
        word = str(node.value)
        plugin = next((cls for cls in annotation.blocks if cls in (Reward, Task)), None)
        if plugin is not None:
            return self._plugin(plugin, node, path)
        if annotation.artifacts or Source in annotation.blocks:
            if word in self.later or (word == "base" and (self.has_base or not is_path(word))):
                return self.stage(node, path, annotation.artifacts)
            if Source in annotation.blocks and (
                is_path(word) or word.count("/") == 1 or node.place in self.unset
            ):
                return outside.source(self, node, path, annotation.artifacts)
            models = [cls for cls in annotation.artifacts if issubclass(cls, Model)]
            if models and (is_path(word) or word.count("/") == 1):
                return outside.model(self, node, path, models)
            return node.python() if str in annotation.plain else self.unknown(node, path)
        if Path in annotation.plain:
            return self.file(node, path)
        return node.python()

    def unknown(self, node: Node, path: tuple[str, ...]) -> Any:
        """A word that is no stage, no path and no hub id."""
        word = str(node.value)
        if word.count("/") > 1 or word == "":
            fact = (
                f"names {show(word)}: no file is called that, and hub ids have exactly one slash."
            )
        else:
            fact = f'names "{word}", which is no earlier stage.' + nearest(word, self.made)
            if not self.made:
                fact = f'names "{word}", but there is no earlier stage: this is the first.'
        return self.wrong(node, path, fact)

    def stage(self, node: Node, path: tuple[str, ...], wanted: Sequence[type[Artifact]]) -> Any:
        """What an earlier stage makes, if it is what is wanted."""
        word = str(node.value)
        here = path[1] if path[0] == "stages" else ""
        if word == "base" and word not in self.later:
            if not self.has_base:
                return self.wrong(node, path, 'says base, but the recipe has no "base:".')
            got: type[Artifact] | None = Model
            artifact: Artifact | None = self.base
        elif word in self.made:
            got, artifact = self.types[word], self.made[word]
        else:
            fact = "this stage itself" if word == here else "a later stage. Move it up"
            return self.wrong(node, path, f'names "{word}", which is {fact}.')
        if got is not None and not fits(got, wanted):
            needs = " or ".join(map(artifact_name, wanted)) or "data"
            is_ = "is" if artifact is not None and artifact is self.base else "makes"
            return self.wrong(
                node, path, f'needs {needs}, but "{word}" {is_} {artifact_name(got)}.'
            )
        return BAD if artifact is None else artifact

    def file(self, node: Node, path: tuple[str, ...]) -> Any:
        """A file or a directory on this machine."""
        if node.place in self.unset:
            return self.unset_path(node, path) or Path(str(node.value))
        found = shelf.find(str(node.value))
        if found is None:
            return self.wrong(node, path, f"names {show(node.value)}, and there is no such file.")
        return found

    def unset_path(self, node: Node, path: tuple[str, ...]) -> Any:
        """A path behind an unset variable: a problem for `run`, for `plan` something to mention."""
        unset = self.unset[node.place]
        if self.strict:
            return self._unset(node)
        self.unchecked(path, f"the variable {unset.name} is not set")
        return None

    def _plugin(self, base: type[Settings], node: Node, path: tuple[str, ...]) -> Any:
        """A reward or a task: a path, or a block with `use:` and its settings."""
        use = node.get("use") if isinstance(node.value, dict) else node
        what = "reward/ is a reward" if base is Reward else "eval/ is a task"
        if use is None:
            message = f'"use" is missing: which file in {what}?'
            return self.problem(node.key, path, message)
        cls = self.load(use, base, path)
        if cls is BAD:
            return BAD
        value = node.value if isinstance(node.value, dict) else {}
        rest = {key: child for key, child in value.items() if key != "use"}
        return self.block(cls, Node(rest, node.place, node.key), path)

    def load(self, use: Node, base: type[Settings], path: tuple[str, ...]) -> Any:
        """The class of a file that a recipe names, or BAD."""
        word = use.value
        shelf_name = {Reward: "reward", Task: "eval"}.get(base, "recipes")
        if not isinstance(word, str) or not word.endswith(".py"):
            message = f'"use" must be the path of a Python file, not {show(word)}.'
            return self.problem(use.place, path, message)
        file = shelf.find(word)
        if file is None or not file.is_file():
            near = [*Path(word).parent.glob("*.py"), *Path(shelf_name).glob("*.py")]
            shelved = (shelf.SHELF / shelf_name).glob("*.py")
            known = [file.as_posix() for file in near] + [f"{shelf_name}/{p.name}" for p in shelved]
            message = f'There is no file "{word}" here or on the shelf.{nearest(word, known)}'
            return self.problem(use.place, path, message)
        try:
            return shelf.load(file, base)
        except RecipeError as error:
            for problem in error.problems:
                self.problem(use.place, path, f"{problem.place}: {problem.message}")
            return BAD


class Ahead(Reader):
    """Reads tasks of stages that are still to come, for their items alone.

    A model of the recipe (a judge) has no part in them, and any may stand in its place: so that who
    needs the items does not hang on who made the judge.
    """

    def stage(self, node: Node, path: tuple[str, ...], wanted: Sequence[type[Artifact]]) -> Any:
        """Something in place of a model; rows that are made already; BAD for those made later."""
        for cls in wanted:
            if issubclass(cls, Model):
                return external(Base(path="any/model"), cls)
        artifact = self.made.get(str(node.value))
        return BAD if artifact is None else artifact


def _written(value: Any, at: Node) -> Node:
    """A value that a class has by default, as if it stood in the recipe."""
    if isinstance(value, dict):
        value = {name: _written(inner, at) for name, inner in value.items()}
    elif isinstance(value, list):
        value = [_written(inner, at) for inner in value]
    return Node(value, at.place, at.key)


# -- words for messages --------------------------------------------------------------------------


def _needs(annotation: Annotation, node: Node) -> str:
    wanted = " or ".join(map(artifact_name, annotation.artifacts)) or "a block"
    return f"needs {wanted}, not {show(node.value)}."


def _wrong(name: str, node: Node, type_: Type, found: list[Any]) -> tuple[str, str, str]:
    """(place, label, message) of what pydantic says about one field."""
    bounds = [error for error in found if not error["type"].endswith(_TYPE_ERRORS)]
    error = (bounds or found)[0]
    label, value = name, node
    for part in error["loc"][1:]:
        below = value.value
        if isinstance(below, list) and isinstance(part, int) and part < len(below):
            value, label = below[part], f"{label}.{part}"
            type_ = type_.item or ANY
        elif isinstance(below, dict) and part in below:
            value, label, type_ = below[part], f"{label}.{part}", ANY
    if error["type"] in ("value_error", "assertion_error"):
        return value.place, "", _sentence(error["msg"])
    if error in bounds or "any" in type_.kinds:
        fact = error["msg"].replace("Input should be", "must be").replace("Input should", "must")
        fact = fact[:1].lower() + fact[1:]
        return value.place, label, f"{fact}, not {show(value.value)}."
    hint = nearest(value.value, type_.words) if isinstance(value.value, str) else ""
    if value.value is True and "dict" in type_.kinds:
        key = label.split(".")[-1]
        hint = f' For its defaults write "{key}: {{}}".'
    return value.place, label, f"must be {type_}, not {show(value.value)}.{hint}"


_TYPE_ERRORS = (
    *("_type", "_parsing", "literal_error", "int_from_float", "is_instance_of"),
    *("missing", "extra_forbidden"),  # a mapping is not the block that might stand there
)


def _sentence(message: str) -> str:
    """A message of a validator, without pydantic's prefix, with a full stop."""
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ").strip()
    return message if message.endswith((".", "?")) else message + "."


def _what(cls: type[Settings]) -> str:
    """What a class is called in a message: its file's name, for a stage, reward or task."""
    if issubclass(cls, Stage):
        return shelf.source(cls).stem
    if issubclass(cls, (Reward, Task)):
        return shelf.name(shelf.source(cls))
    names = {"Source": "a data source", "Base": "a model", "Endpoint": "an endpoint"}
    return names.get(cls.__name__, cls.__name__.lower())


def _all(values: list[Any]) -> Any:
    """The values, or BAD where one of them is."""
    return BAD if any(value is BAD for value in values) else values
