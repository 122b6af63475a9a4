"""Whether an answer has a form."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr, field_validator, model_validator

from align.errors import StageFailed
from align.extras import need
from align.rewards import text
from align.settings import Dialog, Reward
from align.verifiers.schemas import checker, parse
from align.verifiers.toolcalls import valid

_BLOCK = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


class Format(Reward):
    """1 where an answer has a form, else 0: one of `pattern`, `json_schema` and `tool_call`.

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

    _agrees: Callable[[Any], bool] | None = PrivateAttr(None)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
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
                self._agrees = checker(schema)
            except (OSError, ValueError) as error:
                raise ValueError(f"json_schema is no JSON schema: {error}") from None
        return self

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        """1 or 0 per answer."""
        if self.tool_call is not None:
            tools = columns.get("tools") or [None] * len(prompts)
            rows = zip(prompts, completions, tools, strict=True)
            return [self._calls(*row, self.tool_call) for row in rows]
        if self._agrees is not None:
            return [float(self._is_json(text(one).strip())) for one in completions]
        found = re.compile(self.pattern or "")
        test = found.fullmatch if self.whole else found.search
        return [float(test(text(one).strip()) is not None) for one in completions]

    def _is_json(self, said: str) -> bool:
        block = None if self.whole else _BLOCK.search(said)
        try:
            value = parse(block[1] if block else said)
        except ValueError:
            return False
        assert self._agrees is not None
        return self._agrees(value)

    def _calls(self, prompt: Dialog, answer: Dialog, tools: Any, form: str) -> float | None:
        if tools in (None, [], "", "[]"):
            return None
        listed = tools if isinstance(tools, str) else json.dumps(tools)
        try:
            return float(valid(answer, listed, form, self.whole))
        except ValueError as error:
            raise StageFailed(
                f'reward/format.py: the tools of the prompt "{text(prompt)[:60]}…" cannot be '
                f"read: {error}."
            ) from None
