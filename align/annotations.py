"""Annotations of settings, taken apart: what a field wants, and how a message says it."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from align.artifacts import Artifact, RewardModel
from align.settings import Library, Settings
from align.types import ANY, Type

_NAMES = {
    "Model": "a model",
    "RewardModel": "a reward model",
    "Report": "a report",
    "Scored": "scored samples",
}


@dataclass(frozen=True)
class Annotation:
    """A field's annotation, taken apart: `list[Conversations | Source] | None` and the like."""

    artifacts: tuple[type[Artifact], ...] = ()
    blocks: tuple[type[Settings], ...] = ()
    library: Library | None = None
    items: Any = None
    """The annotation of a list's items."""

    values: Any = None
    """The annotation of a mapping's values."""

    plain: tuple[Any, ...] = ()
    """What pydantic reads: `str`, `int`, `Literal[…]`, `None` …"""

    @classmethod
    def of(cls, annotation: Any, metadata: Sequence[Any] = ()) -> Annotation:
        """Take an annotation apart; `metadata` is what pydantic split off."""
        artifacts: list[type[Artifact]] = []
        blocks: list[type[Settings]] = []
        plain: list[Any] = []
        library = next((mark for mark in metadata if isinstance(mark, Library)), None)
        items = values = None
        for member in _members(annotation):
            origin, arguments = get_origin(member), get_args(member)
            if origin is Annotated:
                inner = cls.of(arguments[0], arguments[1:])
                library, items = library or inner.library, items or inner.items
                values, plain = values or inner.values, [*plain, *inner.plain]
                artifacts, blocks = [*artifacts, *inner.artifacts], [*blocks, *inner.blocks]
            elif isinstance(member, type) and issubclass(member, Artifact):
                artifacts.append(member)
            elif isinstance(member, type) and issubclass(member, Settings):
                blocks.append(member)
            elif origin in (list, tuple, Sequence) and arguments:
                items = arguments[0]
            elif origin is dict and len(arguments) == 2:
                values = arguments[1]
            else:
                plain.append(member)
        return cls(tuple(artifacts), tuple(blocks), library, items, values, tuple(plain))

    @property
    def special(self) -> bool:
        """Whether this module reads such a value, and not pydantic."""
        inner = [Annotation.of(a) for a in (self.items, self.values) if a is not None]
        return bool(
            self.artifacts
            or self.blocks
            or self.library
            or Path in self.plain
            or any(annotation.special for annotation in inner)
        )


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for part in get_args(annotation) for inner in _members(part)]
    return [annotation]


def artifact_name(cls: type[Artifact]) -> str:
    """What an artifact is called in a message: "a model", "preferences"."""
    return _NAMES.get(cls.__name__, cls.__name__.lower())


def fits(got: type[Artifact], wanted: Sequence[type[Artifact]]) -> bool:
    """Whether an artifact may stand where others are wanted; a reward model is no Model there."""
    if issubclass(got, RewardModel):
        return any(issubclass(cls, RewardModel) or cls is Artifact for cls in wanted)
    return any(issubclass(got, cls) for cls in wanted)


def described(annotation: Any) -> Type:
    """An annotation as the type a message speaks of."""
    simple = {int: "int", float: "float", bool: "bool", str: "str", Path: "str", type(None): "none"}
    result: Type | None = None
    for member in _members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if origin is Annotated:
            type_ = described(arguments[0])
        elif origin is Literal:
            words = tuple(value for value in arguments if isinstance(value, str))
            kinds = {type(v).__name__ for v in arguments if not isinstance(v, str)}
            type_ = Type(frozenset(kinds), words)
        elif origin in (list, tuple, Sequence) or member is list:
            type_ = Type(frozenset({"list"}), item=described(arguments[0]) if arguments else None)
        elif origin is dict or member is dict:
            type_ = Type(frozenset({"dict"}))
        elif member in simple:
            type_ = Type(frozenset({simple[member]}))
        elif isinstance(member, type) and issubclass(member, Settings):
            type_ = Type(frozenset({"dict"}))
        else:
            type_ = ANY
        result = type_ if result is None else result | type_
    assert result is not None
    return result
