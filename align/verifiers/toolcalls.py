"""Calls of tools in an answer: read in the form a chat template teaches, held against the tools.

The forms are called as vLLM calls its parsers of them: `hermes` is `<tool_call>{"name": …,
"arguments": {…}}</tool_call>`, `llama3_json` is `{"name": …, "parameters": {…}}`, and `pythonic` is
`[f(x=1), g(y="z")]`.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from align.rewards import text
from align.settings import Dialog
from align.verifiers.schemas import checker, parse

Call = tuple[str, Any]
"""A tool's name, and its arguments."""

_HERMES = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def calls(answer: Dialog, form: str, whole: bool) -> list[Call]:
    """The calls of an answer, one or more: those of `tool_calls`, where a server read them already.

    Args:
        answer: the messages.
        form: how the calls are written where they are text: one of the above.
        whole: no text may stand beside calls of `hermes`; beside the others none may ever.

    Raises:
        ValueError: it calls nothing, or what it says is not of the form.
    """
    parsed = [one for message in answer for one in message.get("tool_calls") or ()]
    if parsed:
        return [_structured(one) for one in parsed]
    said = text(answer).strip()
    if form == "pythonic":
        return _pythonic(said)
    return _hermes(said, whole) if form == "hermes" else _llama(said)


def _structured(one: Any) -> Call:
    block = one.get("function", one) if isinstance(one, dict) else one
    if isinstance(block, dict) and isinstance(block.get("arguments"), str):
        block = {**block, "arguments": parse(block["arguments"] or "{}")}
    return _call(block, "arguments")


def _call(block: Any, arguments: str) -> Call:
    if not isinstance(block, dict) or not isinstance(block.get("name"), str):
        raise ValueError("one has no name")
    return block["name"], block.get(arguments)


def _hermes(said: str, whole: bool) -> list[Call]:
    found = _HERMES.findall(said)
    beside = _HERMES.sub("", said)
    if not found or "tool_call>" in beside or (whole and beside.strip()):
        raise ValueError("there is no <tool_call>…</tool_call>, or something beside it")
    return [_call(parse(block), "arguments") for block in found]


def _llama(said: str) -> list[Call]:
    blocks = said.removeprefix("<|python_tag|>")
    return [_call(block, "parameters") for block in _separated(blocks)]


def _separated(said: str) -> list[Any]:
    """The JSON values of a text, which `;` separates."""
    try:
        return [parse(said)]
    except ValueError:
        return [parse(part) for part in re.split(r"(?<=\})\s*;\s*(?=\{)", said)]


def _pythonic(said: str) -> list[Call]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of "\d" in the model's strings
            tree = ast.parse(said, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            raise ValueError("it is no list of calls")
        return [_python_call(node) for node in tree.elts]
    except (SyntaxError, MemoryError, RecursionError) as error:  # all three: it is too deep
        raise ValueError(f"it is no Python: {error}") from None


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or not all(one.arg for one in node.keywords):
        raise ValueError("it is no list of calls with named arguments")
    try:
        values = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
        return ast.unparse(node.func), json.loads(json.dumps(values, allow_nan=False))
    except TypeError:  # a set, bytes, a complex number, a list as a key
        raise ValueError("an argument is nothing that JSON has") from None


# -- tools ---------------------------------------------------------------------------------------


@lru_cache(256)  # the same for all answers to a prompt
def checkers(tools: str) -> dict[str, Callable[[Any], bool]]:
    """By the name of each tool, which arguments it takes: none that its schema does not have.

    Args:
        tools: a JSON list of tools, as `{"type": "function", "function": {"name": …}}` or flat.

    Raises:
        ValueError: a tool has no name, or parameters that are no JSON schema.
    """
    found = {}
    for tool in parse(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name, parameters = _call(function, "parameters")
        try:
            given = dict(parameters or {})
            found[name] = checker({"type": "object", "additionalProperties": False, **given})
        except (TypeError, ValueError) as error:
            raise ValueError(f'the parameters of "{name}" are no JSON schema: {error}') from None
    return found


def valid(answer: Dialog, tools: str, form: str, whole: bool) -> bool:
    """Whether an answer is one or more calls of these tools; see `calls` and `checkers`."""
    known = checkers(tools)
    try:
        made = calls(answer, form, whole)
    except ValueError:
        return False
    return all(name in known and known[name](arguments) for name, arguments in made)
