"""YAML 1.2 as a tree that knows where everything stands.

`1e-5` is a number and `no` is a word, duplicate keys are errors, anchors and merge keys work.
On the tree: `--set`, `${env:NAME}` and laying a block over its defaults. A value keeps the place it
was written at through all of these, so that an error found much later still points at its line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from align import credentials
from align.errors import Problem

MAX_DEPTH = 40
MAX_NODES = 100_000
"""Larger than any recipe; smaller than what a chain of aliases can grow to."""

_TAG = "tag:yaml.org,2002:"
_VARIABLE = re.compile(r"\$\{env:([A-Za-z_]\w*)(?::-([^}]*))?\}")
_DOLLAR = re.compile(r"\$\{[^}]*\}?")
_SECRET_NAME = re.compile(
    r"(?i)((?<!pad_)(?<!eos_)(?<!bos_)token|secrets?|password|passwd|credentials?|api_?keys?)$"
)
_SECRET_KEY = re.compile(
    r"(?i)^(token|(hub|hf|auth|access|api|bearer|use_auth|push_to_hub)_token|(\w+_)?api_?key"
    r"|(\w+_)?(secret|password|passwd|credentials?))$"
)


@dataclass(frozen=True)
class Node:
    """A value of a recipe and where it stands.

    `place` is where the value begins, `key` where the key that names it begins (for an item of a
    list: the same). `plain` is true for a word written without quotes.
    """

    value: None | bool | int | float | str | list[Node] | dict[str, Node]
    place: str
    key: str
    plain: bool = False

    def python(self) -> Any:
        """The value without places: what any YAML loader returns."""
        if isinstance(self.value, dict):
            return {key: node.python() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.python() for node in self.value]
        return self.value

    def get(self, key: str) -> Node | None:
        """The node under a key, or None where there is none or this is no mapping."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def walk(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Node]]:
        """This node and everything below it, each with its path."""
        yield path, self
        if isinstance(self.value, dict):
            for key, node in self.value.items():
                yield from node.walk((*path, key))
        elif isinstance(self.value, list):
            for i, node in enumerate(self.value):
                yield from node.walk((*path, str(i)))


# -- reading -------------------------------------------------------------------------------------


def load(text: str, name: str, problems: list[Problem]) -> Node | None:
    """The tree of a YAML text; None where it cannot be read at all. `name` stands in places."""
    parser = YAML(typ="safe", pure=True)
    parser.max_depth = MAX_DEPTH
    parser.composer.warn_double_anchors = False  # YAML 1.2 allows it: the last one counts
    try:
        root = parser.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        fact = " ".join(part for part in (error.context, error.problem) if part)
        problems.append(Problem(place, "", f"This is not YAML: {fact}."))
        return None
    except YAMLError as error:
        fact = " ".join(str(error).split("\n")[0].split())
        problems.append(Problem(name, "", f"This is not YAML: {fact}."))
        return None
    except ValueError as error:  # ruamel on a malformed %YAML directive or \x escape
        problems.append(Problem(name, "", f"This is not YAML: {error}."))
        return None
    if root is None:
        return Node(None, f"{name}:1:1", f"{name}:1:1")
    reader = _Reader(name, problems)
    tree = reader.node(root, ())
    return None if reader.endless else tree


class _Reader:
    """Turns ruamel's nodes into ours and collects what is wrong with them."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.name = name
        self.problems = problems
        self.endless = False
        self.open: set[int] = set()
        self.count = 0

    def place(self, node: Any) -> str:
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def problem(self, node: Any, path: tuple[str, ...], message: str) -> None:
        self.problems.append(Problem(self.place(node), ".".join(path), message))

    def node(self, node: Any, path: tuple[str, ...]) -> Node:
        place = self.place(node)
        self.count += 1
        if id(node) in self.open:
            self.problem(node, path, "This anchor contains itself. Write the value out.")
            self.endless = True
            return Node(None, place, place)
        if self.count > MAX_NODES:
            if self.count == MAX_NODES + 1:
                self.problem(node, path, f"The aliases grow to more than {MAX_NODES} values.")
                self.endless = True
            return Node(None, place, place)
        self.open.add(id(node))
        value: Any
        if isinstance(node, ScalarNode):
            value = self.scalar(node, path)
        elif isinstance(node, SequenceNode):
            self.tag(node, path, "seq")
            value = [self.node(item, (*path, str(i))) for i, item in enumerate(node.value)]
        else:
            assert isinstance(node, MappingNode)
            self.tag(node, path, "map")
            value = self.mapping(node, path)
        self.open.discard(id(node))
        return Node(value, place, place, isinstance(node, ScalarNode) and not node.style)

    def tag(self, node: Any, path: tuple[str, ...], wanted: str) -> None:
        if str(node.tag) != _TAG + wanted:
            tag = str(node.tag).replace(_TAG, "!!")
            self.problem(node, path, f"Recipes have no tags: remove {tag}.")

    def scalar(self, node: Any, path: tuple[str, ...]) -> None | bool | int | float | str:
        tag, text = str(node.tag).removeprefix(_TAG), node.value
        try:
            if tag == "null":
                return None
            if tag == "bool":
                return {"true": True, "false": False}[text.lower()]
            if tag == "int":
                return int(text.replace("_", ""), 0 if re.match(r"[-+]?0[xob]", text) else 10)
            if tag == "float":
                return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            self.problem(node, path, f'"{text}" cannot be read as {tag}. Put it in quotes.')
            return str(text)
        if tag not in ("str", "timestamp", "merge", "value"):
            self.tag(node, path, "str")
        return str(text)

    def mapping(self, node: Any, path: tuple[str, ...]) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            if str(key.tag) == _TAG + "merge":
                for name, child in self.merge(value, path).items():
                    merged.setdefault(name, child)
                continue
            if not isinstance(key, ScalarNode) or str(key.tag) == _TAG + "null":
                self.problem(key, path, "A key must be a word.")
                continue
            name = str(key.value)
            if name in own:
                first = own[name].key.removeprefix(self.name + ":").split(":")[0]
                self.problem(key, path, f'"{name}" is already set in line {first}. Keep one.')
                continue
            child = replace(self.node(value, (*path, name)), key=self.place(key))
            empty = isinstance(value, ScalarNode) and not value.value and not value.style
            own[name] = replace(child, place=child.key) if empty else child
        return {**merged, **own}

    def merge(self, node: Any, path: tuple[str, ...]) -> dict[str, Node]:
        blocks = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Node] = {}
        for block in blocks:
            if not isinstance(block, MappingNode):
                self.problem(block, path, 'After "<<:" comes a block (*name) or a list of blocks.')
                continue
            value = self.node(block, path).value
            assert isinstance(value, dict) or value is None
            for name, child in (value or {}).items():
                merged.setdefault(name, child)
        return merged


# -- changing ------------------------------------------------------------------------------------


def overlay(under: Node | None, over: Node) -> Node:
    """`over` laid on `under`: mappings are merged key by key, anything else is replaced.

    A block that names something else (another `use`, `path` or `stage`) replaces it whole: the rest
    of the other block was not meant for it.
    """
    if under is None or not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return over
    ours, theirs = (
        {key: node.value for key, node in block.items() if key in ("use", "path", "stage")}
        for block in (over.value, under.value)
    )
    if ours and theirs and ours != theirs:
        return over
    value = dict(under.value)
    for key, node in over.value.items():
        value[key] = overlay(under.value.get(key), node)
    return replace(over, value=value)


def override(root: Node, setting: str, problems: list[Problem]) -> Node:
    """The tree with one `--set a.b.c=VALUE` applied; VALUE is YAML.

    A number selects in a list: `a.0.b`, or `a[0].b`.
    """
    path, separator, text = setting.partition("=")
    keys = re.sub(r"\[([0-9]+)\]", r".\1", path.strip()).split(".")
    place = f"--set {path.strip()}"
    if not separator or not all(keys):
        problems.append(Problem(f"--set {setting}", "", "Write it as --set a.b.c=VALUE."))
        return root
    found: list[Problem] = []
    value = load(text, place, found)
    problems += [Problem(place, "", problem.message) for problem in found]
    if value is None or found:
        return root
    return _put(root, keys, 0, _at(value, place), place, problems)


def _at(node: Node, place: str) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _at(child, place) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_at(child, place) for child in value]
    return replace(node, value=value, place=place, key=place)


def _put(
    node: Node, keys: list[str], i: int, new: Node, place: str, problems: list[Problem]
) -> Node:
    if i == len(keys):
        return replace(new, key=node.key) if node.key.startswith("--set") else new
    key, value = keys[i], node.value
    if isinstance(value, list):
        if not key.isdecimal() or int(key) >= len(value):
            which = f"0 to {len(value) - 1}" if value else "none: it is empty"
            parent = ".".join(keys[:i])
            message = f'"{parent}" is a list; its items are {which}, not "{key}".'
            problems.append(Problem(place, "", message))
            return node
        items = list(value)
        items[int(key)] = _put(items[int(key)], keys, i + 1, new, place, problems)
        return replace(node, value=items)
    if value is not None and not isinstance(value, dict):
        parent = ".".join(keys[:i])
        message = f'"{parent}" is {show(value)}, not a block with keys.'
        problems.append(Problem(place, "", message))
        return node
    empty = Node(None, place, place)
    children = dict(value or {})
    children[key] = _put(children.get(key, empty), keys, i + 1, new, place, problems)
    return replace(node, value=children)


# -- variables and secrets -----------------------------------------------------------------------


@dataclass(frozen=True)
class Unset:
    """A variable that a value needs and that is not set."""

    name: str
    path: tuple[str, ...]
    place: str

    def problem(self) -> Problem:
        """What is said where the value cannot do without it."""
        message = (
            f"The variable {self.name} is not set. Set it, or give a default: "
            f"${{env:{self.name}:-value}}."
        )
        return Problem(self.place, ".".join(self.path), message)


def interpolate(root: Node, problems: list[Problem]) -> tuple[Node, dict[str, Unset]]:
    """Put the values of `${env:NAME}` and `${env:NAME:-default}` in place; `$${` is a plain `${`.

    Returns the tree and what could not be filled in, by place: such values keep their text.
    """
    unset: dict[str, Unset] = {}

    def fill(node: Node, path: tuple[str, ...]) -> Node:
        value = node.value
        if isinstance(value, dict):
            return replace(node, value={k: fill(v, (*path, k)) for k, v in value.items()})
        if isinstance(value, list):
            return replace(node, value=[fill(v, (*path, str(i))) for i, v in enumerate(value)])
        if not isinstance(value, str) or "${" not in value:
            return node

        def one(match: re.Match[str]) -> str:
            name, default = match.groups()
            if _SECRET_NAME.search(name):
                message = (
                    f"{name} looks like a secret, and a recipe's values are saved beside what it "
                    "makes. Libraries read such variables themselves: leave it out."
                )
                problems.append(Problem(node.place, ".".join(path), message))
                return ""
            if os.environ.get(name):
                return os.environ[name]
            if default is not None:
                return str(default)
            unset[node.place] = Unset(name, path, node.place)
            return match.group()

        parts = value.split("$${")
        for part in parts:
            for found in _DOLLAR.finditer(part):
                if not _VARIABLE.fullmatch(found.group()):
                    message = (
                        f'"{found.group()}" is not known. Write ${{env:NAME}} or '
                        "${env:NAME:-default}; for a plain ${ write $${."
                    )
                    problems.append(Problem(node.place, ".".join(path), message))
        filled = "${".join(_VARIABLE.sub(one, part) for part in parts)
        if node.plain and _VARIABLE.fullmatch(value) and node.place not in unset:
            read = load(filled, node.place, [])  # ${env:N} alone is a number if N is one
            if read is not None and not isinstance(read.value, (dict, list)):
                return replace(node, value=read.value)
        return replace(node, value=filled)

    return fill(root, ()), unset


def secrets(root: Node) -> Iterator[Problem]:
    """Every key that asks for a credential and every value that looks like one."""
    for path, node in root.walk():
        if node.value is not None and path and _SECRET_KEY.match(path[-1]):
            remedy = (
                "Name the environment variable that holds it instead: api_key_env: NAME."
                if path[-1] == "api_key"
                else "Log in (`hf auth login`) or set HF_TOKEN instead."
            )
            fact = f'"{path[-1]}" is a secret, and a recipe is saved beside everything it makes.'
            yield Problem(node.key, ".".join(path[:-1]), f"{fact} {remedy}")
        elif isinstance(node.value, str):
            for _, _, what in credentials.found(node.value):
                message = f"This looks like {what}. Remove it here, and revoke it if it was shared."
                yield Problem(node.place, ".".join(path), message)


def show(value: Any) -> str:
    """A value as a message quotes it, short."""
    if isinstance(value, dict):
        return "a block"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    return str(value)
