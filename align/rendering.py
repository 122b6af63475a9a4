"""Dialogs as text, by the model's own chat template.

Whoever trains, draws, scores or evaluates renders with `render`, so that a prompt is the same
everywhere, and the same tomorrow.
"""

from __future__ import annotations

import json
import re
from datetime import date
from functools import lru_cache
from typing import Any

from align.errors import StageFailed
from align.settings import Dialog


class Refused(StageFailed):
    """A template refuses one dialog, or its turns cannot be told apart; others may be fine.

    `drop` is the reason under which such a row is left out and counted; None: it cannot be.
    """

    def __init__(self, message: str, drop: str | None = None) -> None:
        super().__init__(message)
        self.drop = drop


TODAY = date(2024, 7, 26)
"""What templates that write today's date write: the date that Llama 3.1's has where it knows none.

With the real one, every day would have other prompts, and none those of the training.
"""

NO_TEMPLATE = (
    "The tokenizer of {} has no chat template. "
    "Name one: base: {{chat_template: chatml}}, or a jinja file."
)


def render(tokenizer: Any, messages: Dialog, *, prompt: bool = False, tools: Any = None) -> str:
    """The text of a dialog; with `prompt`, up to where the assistant's next turn begins.

    Raises:
        StageFailed: there is no template, or it leaves the tools out.
        Refused: it refuses the dialog, or leaves the system prompt out.
    """
    import jinja2

    if tokenizer.chat_template is None:
        raise StageFailed(NO_TEMPLATE.format(tokenizer.name_or_path))
    tools = json.loads(tools) if isinstance(tools, str) else tools
    if tools and "tools" not in str(tokenizer.chat_template):
        raise StageFailed(
            f"The chat template of {tokenizer.name_or_path} writes no tools, and a dialog has "
            "some. Name one that does: base: {chat_template: llama-3.1}, or leave them out (in "
            "eval/bfcl.py: calls: prompt)."
        )
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            add_generation_prompt=prompt,
            tokenize=False,
            chat_template=dated(tokenizer.get_chat_template(tools=tools or None)),
        )
    except (jinja2.TemplateError, TypeError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise Refused(
            f"The chat template of {tokenizer.name_or_path} refuses a dialog of {roles}: {error}. "
            "Change those rows, or name another template: base: {chat_template: …}."
        ) from None
    assert isinstance(text, str)
    asked = messages[0].get("content") if messages and messages[0]["role"] == "system" else None
    if isinstance(asked, str) and asked.strip() not in text:
        raise Refused(
            f"The chat template of {tokenizer.name_or_path} leaves the system prompt out. Name one "
            "that writes it: base: {chat_template: …}, or move it into the first question."
        )
    return text


@lru_cache(maxsize=16)
def dated(template: str) -> str:
    """A template with `TODAY` where it asks for today's date, so that it writes the same tomorrow.

    Raises:
        StageFailed: it makes the date's format up while it writes.
    """
    fixed = re.sub(
        r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""",
        lambda asked: json.dumps(TODAY.strftime(asked[2])),
        template,
    )
    if "strftime_now(" in fixed:
        raise StageFailed(
            "The chat template writes today's date in a form of its own, so that every day would "
            "have other prompts. Write a date into a copy: base: {chat_template: mine.jinja}."
        )
    return fixed
