"""JSON that a model wrote, and JSON schemas it must agree with: offline, whatever it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NoReturn


def parse(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or none of the standard's (`NaN`), or nested too deeply to read.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("this is nested too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def checker(schema: Any) -> Callable[[Any], bool]:
    """Tells which values agree with a JSON schema (of the draft its `$schema` names, else 2020-12).

    Raises:
        ValueError: it is no JSON schema, or refers to what is not in it.
    """
    import jsonschema  # type: ignore[import-untyped]
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from None
    nothing: Registry[Any] = Registry()  # jsonschema's own would ask the network
    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    for reference in _references(schema):
        try:
            nothing.resolver_with_root(root).lookup(reference)
        except Unresolvable:
            raise ValueError(f'its "$ref": "{reference}" is not in it') from None
    validator = kind(schema, registry=nothing)

    def agrees(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except RecursionError:  # deeper than this reads; no schema asks for that
            return False

    return agrees


def fits(schema: str, said: str) -> bool:
    """Whether a text is JSON that agrees with a schema.

    The schema may have patterns, and a pattern may never come back: call this through `killable`.
    """
    try:
        value = parse(said)
    except ValueError:
        return False
    return _checker(schema)(value)


@lru_cache(16)  # the same for all answers
def _checker(schema: str) -> Callable[[Any], bool]:
    return checker(json.loads(schema))


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    below = schema.values() if isinstance(schema, dict) else schema
    for part in below if isinstance(schema, (dict, list)) else ():
        yield from _references(part)
