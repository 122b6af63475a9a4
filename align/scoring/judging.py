"""Verdicts of a model that judges: in one form, asked for once, kept by what was asked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.generation.endpoint import Client, Refused, Server, ask_all
from align.settings import Dialog, Reward

MOST = 1024
"""Tokens of a verdict, its reason included."""

AGAIN = "That is not the JSON object that was asked for. Reply with it and nothing else."


class JudgeServer(Server):
    """A server whose model judges."""

    model: str
    """The name the judge is served under."""


@dataclass(frozen=True)
class Form:
    """What a verdict looks like: a JSON object with a `reason` and this key."""

    key: str
    schema: dict[str, Any]
    """JSON schema of the key's value."""

    valid: Callable[[Any], bool]
    """Whether a value is one; servers that know no schema may say anything."""

    def read(self, text: str) -> Any:
        """The value in what a judge said; None: there is none, or perhaps a second one.

        What it thought may come first, in `<think>`. The object may stand in a code fence with a
        few words around it.
        """
        text = re.sub(r"\A\s*<think>.*?</think>", "", text, flags=re.DOTALL).strip()
        fenced = re.match(r"([^{]*?)```\w*\s*", text)
        try:
            said, end = _STRICT.raw_decode(text, fenced.end() if fenced else 0)
        except (ValueError, RecursionError):  # "[[[[…" is nested too deeply
            return None
        rest = text[end:].strip()
        second = self._hints(fenced[1] + rest.removeprefix("```")) if fenced else rest
        value = said.get(self.key) if isinstance(said, dict) and not second else None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return value if self.valid(value) else None

    def _hints(self, words: str) -> bool:
        """Whether words beside a verdict may hold another one, or an unfinished thought."""
        named = [re.escape(word) for word in (self.key, *self.schema.get("enum", ()))]
        return re.search("|".join([r'[\d{<`"\[]', *named]), words, re.IGNORECASE) is not None

    def asked(self) -> dict[str, Any]:
        """`response_format`: the reason comes first, so that the verdict can follow from it."""
        schema = {
            "type": "object",
            "properties": {"reason": {"type": "string"}, self.key: self.schema},
            "required": ["reason", self.key],
            "additionalProperties": False,
        }
        inner = {"name": "verdict", "strict": True, "schema": schema}
        return {"type": "json_schema", "json_schema": inner}


def reach(reward: Reward, columns: Iterable[str]) -> None:
    """Ask a judge that is served about itself, before anything is drawn for it to judge.

    Args:
        reward: what will grade; one that is not served needs no such thing.
        columns: the names of the columns that it will be given.

    Raises:
        StageFailed: it cannot be reached, or is none to be trusted (see `reward/judge.py`).
    """
    if isinstance(reward, Server):
        nothing: dict[str, list[Any]] = {name: [] for name in columns}
        reward(**{**nothing, "prompts": [], "completions": []})


def fence(*parts: str) -> str:
    """The line that a text is put between, so that it cannot pretend to have ended.

    It is a hash of the text itself (and what else is asked), so it is the same in every run and
    verdicts can be kept; a text that contains its own hash cannot be written.
    """
    return "=== " + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24] + " ==="


class Judge:
    """A server that is asked for verdicts, at temperature 0.

    A verdict lies in `cache` under a hash of the server's URL, the model's name and all that was
    asked: the same question is not asked again, and the directory may be deleted.
    """

    def __init__(self, server: Server, model: str, form: Form, cache: Path) -> None:
        self.server = server
        self.model = model
        self.form = form
        self.cache = cache
        self._by_schema = True
        """Whether the server takes a schema for its answers."""

        self.refusal = ""
        """What the server said when it last refused a question."""

    def verdicts(self, dialogs: Sequence[Dialog], *, kept: bool = True) -> list[Any]:
        """One verdict a dialog; None where the judge gave none, or the dialog was refused.

        Args:
            dialogs: what is asked.
            kept: whether what the judge said before is taken, and not asked again.

        Raises:
            StageFailed: the server cannot be asked (see `Client.post`).
        """
        files = [self._file(dialog) for dialog in dialogs]
        once = dict(zip(files, dialogs, strict=True))
        found = {file: _kept(file, self.form) if kept else None for file in once}
        missing = [file for file, verdict in found.items() if verdict is None]

        def asks(client: Client) -> list[Coroutine[Any, Any, Any]]:
            return [self._ask(client, file, once[file]) for file in missing]

        if missing:
            for i, verdict in ask_all(self.server, asks):
                found[missing[i]] = verdict
        return [found[file] for file in files]

    async def _ask(self, client: Client, file: Path, dialog: Dialog) -> Any:
        """A verdict, which is kept at once; a judge that forgets the form is reminded of it."""
        try:
            said = await self._said(client, dialog)
            if self.form.read(said) is None:
                answer = {"role": "assistant", "content": said}
                said = await self._said(client, [*dialog, answer, _user(AGAIN)])
        except Refused as refusal:
            self.refusal = str(refusal)
            return None
        verdict = self.form.read(said)
        if verdict is not None:
            _keep(file, {"said": said, "dialog": dialog})
        return verdict

    async def _said(self, client: Client, dialog: Dialog) -> str:
        body = {"model": self.model, "messages": dialog, "temperature": 0, "max_tokens": MOST}
        if self._by_schema:
            try:
                by_schema = {**body, "response_format": self.form.asked()}
                return await client.post("/chat/completions", by_schema, _content)
            except Refused:
                said = await client.post("/chat/completions", body, _content)
                self._by_schema = False  # it was the schema, not the dialog
                return said
        return await client.post("/chat/completions", body, _content)

    def _file(self, dialog: Dialog) -> Path:
        asked = [self.server.url, self.model, self.form.asked(), dialog]
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.json"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without a key that comes twice, of which `json` takes the last."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
    return found


_STRICT = json.JSONDecoder(object_pairs_hook=_once)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _content(reply: Any) -> str:
    content = reply["choices"][0]["message"]["content"]
    return "" if content is None else str(content)


def _kept(file: Path, form: Form) -> Any:
    if not file.is_file():
        return None
    try:
        return form.read(json.loads(file.read_text(encoding="utf-8"))["said"])
    except (ValueError, KeyError):  # a cache may be damaged: it is asked again
        return None


def _keep(file: Path, note: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(note, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, file)
