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
from align.settings import Dialog, Message


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
    "Name one: base: {{chat_template: plain}}, which any tokenizer can, or a jinja file."
)

SYSTEM = ("system", "developer")
"""The roles of a system prompt; gpt-oss has both."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""A message's keys for what was thought before it is said; few templates write them."""


def render(tokenizer: Any, messages: Dialog, *, prompt: bool = False, tools: Any = None) -> str:
    """The text of a dialog; with `prompt`, up to where the assistant's next turn begins.

    Raises:
        StageFailed: there is no template.
        Refused: it refuses the dialog, leaves its tools out, or leaves out or changes what is said.
    """
    import jinja2

    if tokenizer.chat_template is None:
        raise StageFailed(NO_TEMPLATE.format(tokenizer.name_or_path))
    tools = json.loads(tools) if isinstance(tools, str) else tools
    template = dated(_chosen(tokenizer, tools))
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            add_generation_prompt=prompt,
            tokenize=False,
            chat_template=template,
        )
        named = [str(tool.get("function", tool).get("name", "")) for tool in tools or ()]
    except (jinja2.TemplateError, *_FAILURES) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise Refused(
            f"The chat template of {tokenizer.name_or_path} refuses a dialog of {roles}: {error}. "
            "Change those rows, or name another template: base: {chat_template: …}."
        ) from None
    assert isinstance(text, str)
    if not all(name in text for name in named):
        raise Refused(
            f"The chat template of {tokenizer.name_or_path} writes no tools, and a dialog has "
            "some. Name one that does: base: {chat_template: llama-3.1}, or leave them out (in "
            "eval/bfcl.py: calls: prompt)."
        )
    if (lost := _lost(messages, text)) is not None:
        raise Refused(
            f"The chat template of {tokenizer.name_or_path} {_about(messages[lost], lost)}"
        )
    return text


_FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""A template is a program: what comes of its filters and methods where a row is odd."""


def _chosen(tokenizer: Any, tools: Any) -> str:
    """The template, of several the one for dialogs with tools or without."""
    try:
        return str(tokenizer.get_chat_template(tools=tools or None))
    except ValueError:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise StageFailed(
            f"The tokenizer of {tokenizer.name_or_path} has several chat templates ({names}), and "
            "none is the default. Write one into a file: base: {chat_template: mine.jinja}."
        ) from None


def _lost(messages: Dialog, text: str) -> int | None:
    """Which message does not stand in a text after those before it; None: all of them do.

    Spaces around a message may go, and thoughts before an answer. A system prompt stands anywhere
    (Mistral's in the last question), and a result of a tool may be written as JSON.
    """
    at = 0
    for i, message in enumerate(messages):
        role, said = message["role"], message.get("content")
        if not isinstance(said, str):
            continue
        said = (said.rpartition("</think>")[2] if role == "assistant" else said).strip()
        if role in SYSTEM:
            if said not in text:
                return i
            continue
        if (found := text.find(said, at)) < 0:
            said = json.dumps(said, ensure_ascii=False)[1:-1]
            if (found := text.find(said, at)) < 0:
                return i
        at = found + len(said)
    return None


def _about(message: Message, place: int) -> str:
    """What a template does with a message that is lost, and what helps."""
    role, other = message["role"], "base: {chat_template: …}"
    if role == "system" and place == 0:
        return (
            f"leaves the system prompt out. Name one that writes it: {other}, or move it into the "
            "first question."
        )
    if role == "assistant" and message.get("tool_calls"):
        return (
            f"does not write what the assistant says beside its calls (message {place + 1}). Name "
            "one that does: base: {chat_template: chatml}, or leave that text out of the rows."
        )
    if role == "assistant":
        fact = f"does not write what the assistant says as it is (message {place + 1})"
        return f"{fact}. Name another one: {other}."
    fact = f"leaves out or changes message {place + 1}, of the role {role}"
    remedy = "" if role == "user" else ", or give the message the role user"
    return f"{fact}. Name one that writes it as it is: {other}{remedy}."


def missing(message: Message, written: str, head: str, whole: bool = True) -> str | None:
    """What of a turn is not as the message has it in what a template writes; None: all of it is.

    Its content must be there, all of it and nothing else. Spaces around it may come and go, and
    the tags of what was thought. A turn with more keys (thoughts) must end with its content, one
    that need not be `whole` must end as it does, and one with calls must have them, too. `head` is
    what the template writes after the generation prompt.
    """
    if lost := uncalled(message, written):
        return lost
    content = message.get("content")
    if not isinstance(content, str):
        return None
    said, meant = _bare(written), _bare(content)
    if message.get("tool_calls"):
        return None if meant in said else "what the assistant says beside its calls"
    more = set(message) - {"role", "content", "weight"}
    after = said.removeprefix(_bare(head)).strip()
    if meant in (said, after) or (more and said.endswith(meant)):
        return None
    if not whole and said and meant.endswith(said[-20:]):
        return None
    return "what the assistant says as it is"


def uncalled(message: Message, written: str) -> str | None:
    """What of a message's calls of tools a template does not write; None: it has all of them.

    The names must be there, and of the arguments every word of ASCII: templates write these as
    JSON, as Python or with tags.

    Raises:
        Refused: they are no calls.
    """
    try:
        calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
        names = [str(call["name"]) for call in calls]
        words = {word for call in calls for word in _words(call.get("arguments"))}
    except (AttributeError, KeyError, TypeError):
        raise Refused(
            f"A message's `tool_calls` are {message['tool_calls']!r:.80}, and should be a list of "
            '{"function": {"name": "add", "arguments": {"a": 1}}}. Correct those rows.'
        ) from None
    if not all(name in written for name in names):
        return "the tools that the assistant calls"
    written = written.lower()
    # as sets: a search for each word of a file that a call writes takes time in its square
    there = {*_WORD.findall(written), *_WORD.findall(_ESCAPE.sub(" ", written))}
    if all(word in written for word in words - there):
        return None
    return "the arguments of a tool's call"


_WORD = re.compile("[a-z0-9]+")
_ESCAPE = re.compile(r"\\+(?:u[0-9a-f]{4}|[a-z])?")
"""What JSON writes for ends of lines and the like, once or in a string of a string."""


def _words(value: Any) -> list[str]:
    """The words of ASCII in a value of JSON."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return [word for each in value for word in _words(each)]
    return [] if value is None else _WORD.findall(str(value).lower())


def _bare(text: str) -> str:
    return re.sub(r"\s*</?think>\s*", "", text).strip()


def unwritten(tokenizer: Any, messages: Dialog, first: int, tools: Any = None) -> int:
    """Of how many messages from `first` on a template leaves out what was thought (`THOUGHTS`)."""
    thoughts = [
        [text.strip() for key in THOUGHTS if isinstance(text := message.get(key), str) and text]
        for message in messages[first:]
    ]
    if not any(thoughts):
        return 0
    text = render(tokenizer, messages, tools=tools)
    return sum(bool(each) and not any(one in text for one in each) for each in thoughts)


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
