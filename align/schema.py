"""The JSON schema of recipes, for editors: written from the classes and the installed libraries.

It says less than `align plan` (no wiring, no files, nothing required, since `defaults:` may hold
it) and never more: what `plan` accepts, the schema accepts.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

from align import shelf
from align.annotations import Annotation, described
from align.data import Source
from align.models import Base
from align.options import OWNED
from align.settings import Library, Reward, Settings, Stage, Task
from align.signatures import model_types, options
from align.types import Type

Schema = dict[str, Any]

VARIABLE = r"\$\{env:"
"""Any value may hang on a variable, and then it is a word."""

_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "none": "null"}
_TYPES |= {"list": "array", "dict": "object", "false": "boolean", "str": "string"}


def schema() -> Schema:
    """The whole schema, with the project's stages, rewards and tasks as they are on disk."""
    return _Writer().schema()


def shipped() -> list[str]:
    """The Python files on the shelf, as recipes name them."""
    files = [file for name in ("recipes", "reward", "eval") for file in _files(name)]
    return sorted(file.relative_to(shelf.SHELF).as_posix() for file in files)


def _files(folder: str) -> list[Path]:
    found = sorted((shelf.SHELF / folder).rglob("*.py"))
    return [file for file in found if not file.name.startswith("_")]


class _Writer:
    """Collects the definitions that the schema refers to."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self.classes: dict[str, type[Settings]] = {}  # what the definitions are of

    def schema(self) -> Schema:
        kinds = {kind: self.block(_stage(kind), kind) for kind in shelf.kinds()}
        for folder, base in (("reward", Reward), ("eval", Task)):
            self.definitions[base.__name__] = self.plugins(folder, base)
        any_stage = {
            "type": ["object", "null"],
            "properties": {"use": {"anyOf": [{"enum": list(kinds)}, {"pattern": r"\.py$"}]}},
            "allOf": [_when("use", kind, ref) for kind, ref in kinds.items()],
        }
        self.definitions["stage"] = any_stage
        by_name = {
            kind: {"if": {"required": ["use"]}, "then": _ref("stage"), "else": ref}
            for kind, ref in kinds.items()
        }
        launch = {"type": ["object", "string", "null"]}
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "align recipe",
            "type": "object",
            "additionalProperties": False,
            "required": ["stages"],
            "properties": {
                "base": {
                    "description": "The model everything starts from.",
                    "anyOf": [{"type": ["string", "null"]}, self.block(Base, "base model")],
                },
                "seed": {"description": "Every random choice derives from it.", **_type("integer")},
                "defaults": {
                    "description": "Settings by kind of stage; a stage's own value wins.",
                    "type": ["object", "null"],
                    "properties": kinds,
                },
                "launch": {"description": "How training stages are spread.", **launch},
                "stages": {
                    "description": "The stages by name, in order.",
                    "type": "object",
                    "properties": by_name,
                    "additionalProperties": {**_ref("stage"), "required": ["use"]},
                },
            },
            "$defs": dict(sorted(self.definitions.items())),
            "x-shipped": shipped(),
        }

    def plugins(self, folder: str, base: type[Settings]) -> Schema:
        """A reward or a task: the path of one, or a block with `use` and its settings."""
        cases, files = [], []
        for file in _files(folder):
            name = file.relative_to(shelf.SHELF).as_posix()
            files.append(name)
            cases.append(_when("use", name, self.block(shelf.load(file, base), name)))
        use = {"anyOf": [{"enum": files}, {"type": "string", "pattern": r"\.py$"}]}
        block = {"type": "object", "required": ["use"], "properties": {"use": use}}
        return {"anyOf": [use, {**block, "allOf": cases} if cases else block]}

    def block(self, cls: type[Settings], name: str) -> Schema:
        """A reference to a class's keys."""
        if name not in self.definitions:
            self.definitions[name] = {}  # classes may hold each other
            self.classes[name] = cls
            documents = _documents(cls)
            properties: dict[str, Schema] = {}
            if issubclass(cls, (Stage, Reward, Task)):
                properties["use"] = {"type": "string"}
            for key, field in cls.model_fields.items():
                annotation = Annotation.of(field.annotation, field.metadata)
                about = {"description": documents[key]} if documents.get(key) else {}
                properties[key] = {**about, **self.value(annotation, field.annotation, name)}
            self.definitions[name] = {
                "description": inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0],
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": properties,
            }
        return _ref(name)

    def value(self, annotation: Annotation, raw: Any, owner: str) -> Schema:
        """A value as its annotation says."""
        if not annotation.special:
            return _of_type(described(raw))
        choices: list[Schema] = []
        nullable = type(None) in annotation.plain
        if annotation.artifacts or Source in annotation.blocks or Path in annotation.plain:
            choices.append({"type": "string"})
        for cls in annotation.blocks:
            name = {Source: "data source", Base: "base model"}.get(cls, cls.__name__)
            if self.classes.get(name, cls) is not cls:  # two files may each have a `Gate`
                name = f"{name} of {owner}"
            choices.append(_ref(name) if cls in (Reward, Task) else self.block(cls, name))
        if annotation.library is not None:
            choices.append(self.library(annotation.library, owner))
        if any(cls.__name__ in ("Model", "RewardModel") for cls in annotation.artifacts):
            choices.append(self.block(Base, "base model"))
        if annotation.items is not None:
            inner = self.value(Annotation.of(annotation.items), annotation.items, owner)
            choices += [{"type": "array", "items": inner}, inner]
        if annotation.values is not None and annotation.library is None:
            inner = self.value(Annotation.of(annotation.values), annotation.values, owner)
            choices.append({"type": "object", "additionalProperties": inner})
        plain = [member for member in annotation.plain if member not in (type(None), Path)]
        choices += [_of_type(described(member)) for member in plain]
        choices += [{"type": "null"}] if nullable else []
        return choices[0] if len(choices) == 1 else {"anyOf": choices}

    def library(self, library: Library, owner: str) -> Schema:
        """A library's options, less those that the stage owns."""
        name = library.target.rpartition(":")[2]
        if name == "AutoConfig":
            kinds = {"model_type": {"enum": sorted(model_types())}}
            return {"type": "object", "required": ["model_type"], "properties": kinds}
        known = options(library.target)
        keys = [key for key in known if key not in library.owned and key not in OWNED]
        properties = {key: _of_type(known[key].type) for key in keys}
        block = {"type": "object", "additionalProperties": False, "properties": properties}
        if self.definitions.setdefault(name, block) != block:
            name = f"{name} of {owner}"
            self.definitions[name] = block
        return _ref(name)


def _stage(kind: str) -> type[Settings]:
    return shelf.load(shelf.STAGES / f"{kind}.py", Stage)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name.replace('~', '~0').replace('/', '~1').replace(' ', '%20')}"}


def _when(key: str, value: str, then: Schema) -> Schema:
    return {"if": {"required": [key], "properties": {key: {"const": value}}}, "then": then}


def _type(name: str) -> Schema:
    return {"type": [name, "string"], "pattern": VARIABLE}


def _of_type(type_: Type) -> Schema:
    """A type of `signatures` as JSON schema."""
    if "any" in type_.kinds:
        return {}
    names = sorted({_TYPES[kind] for kind in type_.kinds})
    result: Schema = {}
    if "str" in type_.kinds or not names:
        result = {"type": names} if names else {}
    else:
        result = {"type": sorted({*names, "string"}), "pattern": VARIABLE}
    if type_.words and "str" not in type_.kinds:
        result = {"anyOf": [{"enum": list(type_.words)}, {**_type("string"), **result}]}
    if type_.item is not None and (inner := _of_type(type_.item)):
        result["items"] = inner
    return result


def _documents(cls: type[Settings]) -> dict[str, str]:
    """What the strings under a class's fields say."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not (isinstance(owner, type) and issubclass(owner, Settings)) or owner is Settings:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found
