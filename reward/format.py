"""Whether an answer has a form."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr, field_validator, model_validator

from align.errors import StageFailed
from align.extras import need
from align.rewards import text
from align.settings import Dialog, Reward
from align.verifiers.cores import cores
from align.verifiers.killable import Lost, Pool
from align.verifiers.schemas import checker, parse
from align.verifiers.toolcalls import checkers

LIMIT = 1.0
"""Seconds for one answer."""

FIRST: dict[str, tuple[Any, ...]] = {
    "align.verifiers.patterns:found": ("", "", False),
    "align.verifiers.schemas:fits": ("{}", "{}"),
    "align.verifiers.toolcalls:valid": ([], "[]", "hermes", False),
}
"""What checks each form, and a first call of it."""

_BLOCK = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


class Format(Reward):
    """1 where an answer has a form, else 0: one of `pattern`, `json_schema` and `tool_call`.

    There are patterns, in schemas too, that take years for some answers. The check runs in a
    process that is killed after a second: such an answer gets 0, and 1 in the detail `timed_out`.

    A schema and the tools need `pip install 'align-recipes[rewards]'`.
    """

    pattern: str | None = None
    """A regular expression that is found in it. Python's `re`; `(?s)`, `(?i)` … at its beginning
    are flags."""

    json_schema: Path | dict[str, Any] | None = None
    """A JSON schema, as a file or here: the first block of code is JSON that agrees with it, or the
    whole answer where there is no block."""

    tool_call: Literal["hermes", "llama3_json", "pythonic"] | None = None
    """It calls one or more of the tools in the prompts' column `tools`, in the form of this parser
    of vLLM's, with all arguments that are required, none that is unknown, and each of its type.
    None where a prompt has no tools."""

    whole: bool = False
    """Whether nothing may stand beside what is looked for, blank space apart."""

    _schema: str | None = PrivateAttr(None)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _one_form(self) -> "Format":
        given = [self.pattern, self.json_schema, self.tool_call]
        if sum(one is not None for one in given) != 1:
            raise ValueError("Give one of pattern, json_schema and tool_call.")
        if self.pattern is None:
            need("jsonschema", "rewards")
        if self.json_schema is not None:
            try:
                schema = self.json_schema
                if isinstance(schema, Path):
                    schema = parse(schema.read_text(encoding="utf-8"))
                checker(schema)
                self._schema = json.dumps(schema)
            except (OSError, TypeError, ValueError) as error:
                raise ValueError(f"json_schema is no JSON schema: {error}") from None
        return self

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[dict[str, float | None]]:
        """1, 0 or None per answer, and whether its time was over."""
        asked: list[tuple[Any, ...] | None]
        if self.tool_call is not None:
            target = "align.verifiers.toolcalls:valid"
            if "tools" not in columns:
                raise StageFailed(
                    'reward/format.py: the prompts have no column "tools", only '
                    f'{", ".join(columns) or "none"}. Make it: columns: {{tools: "{{…}}"}}.'
                )
            listed = map(_listed, prompts, columns["tools"])
            asked = [
                None if tools is None else (one, tools, self.tool_call, self.whole)
                for one, tools in zip(completions, listed, strict=True)
            ]
        elif self._schema is not None:
            target = "align.verifiers.schemas:fits"
            asked = [(self._schema, self._json(text(one).strip())) for one in completions]
        else:
            target = "align.verifiers.patterns:found"
            asked = [(self.pattern, text(one).strip(), self.whole) for one in completions]
        found = iter(_pool(target).map(one for one in asked if one is not None))
        return [
            {"score": None, "timed_out": None} if one is None else _numbers(next(found))
            for one in asked
        ]

    def _json(self, said: str) -> str:
        block = None if self.whole else _BLOCK.search(said)
        return block[1] if block else said


@cache
def _pool(target: str) -> Pool:
    """The processes of a form: one set for all rewards."""
    return Pool(target, LIMIT, FIRST[target], min(cores(), 8))


def _listed(prompt: Dialog, tools: Any) -> str | None:
    """A prompt's tools as JSON that can be read; None: there are none."""
    if tools in (None, [], "", "[]"):
        return None
    listed = tools if isinstance(tools, str) else json.dumps(tools)
    try:
        checkers(listed)
    except ValueError as error:
        raise ValueError(
            f'The tools of the prompt "{text(prompt)[:60]}…" cannot be read: {error}.'
        ) from None
    return listed


def _numbers(result: Any) -> dict[str, float | None]:
    if isinstance(result, Lost):
        return {"score": 0.0, "timed_out": float(result.timed_out)}
    return {"score": float(result), "timed_out": 0.0}
