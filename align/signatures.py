"""What a library's classes and functions take, read from their installed source.

Nothing is imported: the source is parsed with `ast`, which takes milliseconds where importing takes
seconds, and which also works for classes that swallow unknown names (`GenerationConfig`).

Understood are functions, classes with an `__init__`, dataclasses with their bases wherever they are
defined, `kwargs.pop("name", default)`, enums, `Literal`, and the types that docstrings give where
annotations are missing. A type that is not understood accepts anything.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from align.types import ANY, Type

_SIMPLE = {
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
    "string": "str",
    "None": "none",
    "NoneType": "none",
    "dict": "dict",
    "Dict": "dict",
    "Mapping": "dict",
    "PathLike": "str",
    "Path": "str",
}
_LISTS = {"list", "List", "Sequence", "Iterable", "tuple", "Tuple", "set", "Set"}


# -- source --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Module:
    name: str
    package: str
    tree: ast.Module

    @property
    def definitions(self) -> dict[str, ast.ClassDef | ast.FunctionDef]:
        """Top-level classes and functions; of an overloaded function the last one."""
        kinds = (ast.ClassDef, ast.FunctionDef)
        return {node.name: node for node in self.tree.body if isinstance(node, kinds)}

    def origin(self, name: str) -> tuple[str, str] | None:
        """The (module, name) a name was imported from."""
        for node in _imports(self.tree.body):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    base = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
                    module = ".".join([*base, node.module or ""]) if node.level else node.module
                    return str(module).strip("."), alias.name
        return None


def _imports(body: Iterable[ast.stmt]) -> Iterator[ast.ImportFrom]:
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _imports([*node.body, *node.orelse])


@cache
def _module(name: str) -> _Module | None:
    """The parsed source of a module; only the top package is looked up, nothing is imported."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        files = [Path(spec.origin)] if spec.origin else []
    else:
        roots = [Path(root).joinpath(*rest) for root in spec.submodule_search_locations or ()]
        files = [file for root in roots for file in (root.with_suffix(".py"), root / "__init__.py")]
    for file in files:
        if file.suffix == ".py" and file.is_file():
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            return _Module(name, package, ast.parse(file.read_text(encoding="utf-8")))
    return None


@cache
def _find(module: str, name: str) -> tuple[_Module, ast.ClassDef | ast.FunctionDef] | None:
    """Where a class or function is defined, through any number of re-exports."""
    found = _module(module)
    if found is None:
        return None
    if name in found.definitions:
        return found, found.definitions[name]
    origin = found.origin(name)
    return _find(*origin) if origin and origin != (module, name) else None


# -- options -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One option. Its type is worked out when asked for: most options of a library never are."""

    where: _Module
    name: str
    annotation: ast.expr | None
    default: ast.expr | None = None
    docstring: str = ""
    nullable: bool = False

    @cached_property
    def type(self) -> Type:
        """What the option accepts."""
        pattern = rf"^\s*{self.name} ?\(([^)\n]*(?:\([^)\n]*\)[^)\n]*)?)\)\s*:"
        if self.annotation is not None:
            type_ = _narrowed(_type(self.where, self.annotation), self.default)
        elif words := re.search(pattern, self.docstring, re.MULTILINE):
            type_ = _from_words(self.where, words[1])  # "top_k (`int`, *optional*):"
        else:
            type_ = _of_default(self.default)
        return type_ | Type(frozenset({"none"})) if self.nullable else type_


@cache
def options(target: str) -> dict[str, Option]:
    """The options of a `module:Class` or `module:function`, by name.

    Raises:
        LookupError: the library is not installed, or has no such class or function any more.
    """
    module, _, name = target.partition(":")
    found = _find(module, name)
    if found is None:
        top = module.partition(".")[0]
        raise LookupError(f"{name} is not in the installed {top}. Install the pinned version.")
    where, node = found
    if isinstance(node, ast.FunctionDef):
        return _arguments(where, node, ast.get_docstring(node) or "")
    return _of_class(where, node)


def _of_class(where: _Module, node: ast.ClassDef) -> dict[str, Option]:
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            text = ast.get_docstring(node) or ""
            return _arguments(where, member, text) | _popped(where, member, text)
    names: dict[str, Option] = {}
    for base in reversed(node.bases):
        found = _find(where.name, base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef):
            names |= _of_class(found[0], found[1])
    for member in node.body:
        if not isinstance(member, ast.AnnAssign) or not isinstance(member.target, ast.Name):
            continue
        name = member.target.id
        if not _settable(member.value):
            names.pop(name, None)
        elif not name.startswith("_") and "ClassVar" not in ast.dump(member.annotation):
            names[name] = Option(where, name, member.annotation, member.value)
    return names


def _settable(value: ast.expr | None) -> bool:
    """False for a dataclass field that says `init=False`."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return not any(word.arg == "init" and _literal(word.value) is False for word in keywords)


def _arguments(where: _Module, node: ast.FunctionDef, docstring: str) -> dict[str, Option]:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [
        *zip(positional, defaults, strict=True),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    names = {}
    for argument, default in pairs:
        if argument.arg in ("self", "cls") or argument.arg.startswith("_"):
            continue
        name, none = argument.arg, isinstance(default, ast.Constant) and default.value is None
        names[name] = Option(where, name, argument.annotation, default, docstring, none)
    return names


def _popped(where: _Module, init: ast.FunctionDef, docstring: str) -> dict[str, Option]:
    """Names an `__init__` takes out of its `**kwargs`."""
    names: dict[str, Option] = {}
    if init.args.kwarg is None:
        return names
    pop = f"{init.args.kwarg.arg}.pop"
    for node in ast.walk(init):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == pop:
            name = _literal(node.args[0])
            if isinstance(name, str) and not name.startswith("_"):
                names[name] = Option(where, name, None, docstring=docstring, nullable=True)
    return names


def _narrowed(type_: Type, value: ast.expr | None) -> Type:
    """A field's type with the words of its metadata's `choices`, which argparse would enforce."""
    for node in ast.walk(value) if value is not None else ():
        if isinstance(node, ast.Dict):
            for key, choices in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "choices":
                    words = _literal(choices)
                    if isinstance(words, list) and all(isinstance(word, str) for word in words):
                        return Type(type_.kinds - {"str"}, tuple(words), type_.item)
    return type_


def _of_default(default: ast.expr | None) -> Type:
    value = _literal(default) if default is not None else None
    if isinstance(value, (bool, int, float, str)):
        return Type(frozenset({type(value).__name__}))
    return ANY


def _literal(node: ast.expr) -> Any:
    """A constant or a list of constants; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    return None


def _from_words(where: _Module, words: str) -> Type:
    words = re.split(r",\s*\*optional\*|,\s*defaults", words)[0].replace("`", "")
    parts = []
    for word in re.split(r"\s+or\s+", words.strip()):
        try:
            parts.append(_type(where, ast.parse(word, mode="eval").body))
        except SyntaxError:
            return ANY
    return _union(parts)


def _type(where: _Module, node: ast.expr) -> Type:
    """What an annotation accepts."""
    if isinstance(node, ast.Constant):
        if node.value is None:
            return Type(frozenset({"none"}))
        if isinstance(node.value, str):
            try:
                return _type(where, ast.parse(node.value, mode="eval").body)
            except SyntaxError:
                return ANY
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_type(where, node.left), _type(where, node.right)])
    name = node.id if isinstance(node, ast.Name) else ""
    name = node.attr if isinstance(node, ast.Attribute) else name
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value).rpartition(".")[2]
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer == "Literal":
            return _of_literals([_literal(item) for item in inner])
        if outer == "Optional":
            return _union([_type(where, inner[0]), Type(frozenset({"none"}))])
        if outer == "Union":
            return _union([_type(where, item) for item in inner])
        if outer == "Annotated":
            return _type(where, inner[0])
        if outer in _LISTS:
            item = _type(where, inner[0]) if outer not in ("tuple", "Tuple") else None
            return Type(frozenset({"list"}), item=item)
        name = outer
    if name in _SIMPLE:
        return Type(frozenset({_SIMPLE[name]}))
    if name in _LISTS:
        return Type(frozenset({"list"}))
    found = _find(where.name, name) if name else None
    if found and isinstance(found[1], ast.ClassDef):
        return _of_enum(found[1])
    return ANY


def _union(parts: list[Type]) -> Type:
    """Any of several types. `SomeEnum | str` means the enum's words: libraries insist on them."""
    result = parts[0]
    for part in parts[1:]:
        result |= part
    if any(part.words and "str" not in part.kinds for part in parts):
        result = Type(result.kinds - {"str"}, result.words, result.item)
    return result


def _of_literals(values: list[Any]) -> Type:
    words = tuple(value for value in values if isinstance(value, str))
    if any("[" in word for word in words):  # peft's "pissa_niter_[number of iters]"
        return ANY
    kinds = {"none" if v is None else "false" if v is False else type(v).__name__ for v in values}
    return Type(frozenset(kinds - {"str"}), words)


def _of_enum(node: ast.ClassDef) -> Type:
    if not any("Enum" in ast.unparse(base) for base in node.bases):
        return ANY
    values = [_literal(member.value) for member in node.body if isinstance(member, ast.Assign)]
    words = tuple(value for value in values if isinstance(value, str))
    return Type(frozenset(), words) if words else ANY


# -- model configurations ------------------------------------------------------------------------


@cache
def model_types() -> dict[str, str]:
    """Every `model_type` that transformers knows, with its configuration's `module:Class`."""
    mapping: dict[str, str] = {}
    auto = _module("transformers.models.auto.auto_mappings")
    for node in auto.tree.body if auto else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONFIG_MAPPING_NAMES":
            for pair in ast.walk(node.value):
                if isinstance(pair, ast.Tuple) and len(pair.elts) == 2:
                    model_type, name = map(_literal, pair.elts)
                    folder = str(model_type).replace("-", "_")
                    path = f"transformers.models.{folder}.configuration_{folder}"
                    mapping[str(model_type)] = f"{path}:{name}"
    return mapping
