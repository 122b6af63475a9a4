"""Write docs/templates.md: on which public chat templates the mask of align/chat.py is proven.

    ALIGN_DATA=/path python docs/templates.py

Every template is asked about dialogs of nine kinds. What is learnt of each is compared with marks
in the dialogs: those of the assistant must be in the loss, one per turn, those of others must not.
A test does the same wherever ALIGN_DATA is set, and fails when the table is stale.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from align import chat
from align.errors import StageFailed

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ALIGN_DATA", "/nowhere"))
FILES = sorted((DATA / "chat_templates").rglob("*.jinja"))

SPECIAL = re.compile(r"<[|｜/]?[A-Za-z_▁0-9]+[|｜]?>|\[\|?/?[A-Za-z_]+\|?\]")
"""What looks like a special token in the text of a template."""

MARK = re.compile(r"([AU])\d+q")
"""Marks in dialogs: A0q is in what the assistant says first, U1q in what nobody has to learn."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number", "description": "A number."}},
                "required": ["a"],
            },
        },
    }
]

REASONS = {
    "a": ("no special token ends", "no special token ends the assistant's turn: nothing to learn"),
    "b": ("is not in its generation prompt", "it has no generation prompt of its own"),
    "c": (
        "not how an answer begins",
        "its generation prompt is not how it writes an answer (it begins a thought)",
    ),
    "d": (
        "does not end",
        "an answer that is not the last, or a call, ends otherwise: give every answer its own row",
    ),
    "e": (
        "anew when the dialog goes on",
        "an answer is written anew when the dialog goes on (without its thought): every answer its "
        "own row",
    ),
    "f": ("does not write the tools", "it leaves out the tools that the assistant calls"),
    "g": ("does not write what the assistant says", "it drops or changes what the assistant says"),
    "h": ("leaves the system prompt out", "it leaves the system prompt out"),
    "i": ("begins another turn after", "it begins another turn after the last answer"),
    "j": ("refuses a dialog", "it raises an error of its own"),
    "k": ("leaves out or changes message", "it leaves out or changes what others say"),
    "l": ("writes no tools", "it leaves out the tools of a dialog"),
}

BEGIN = "<!-- from here on written by docs/templates.py -->\n"


def dialogs(marks: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The dialogs by kind; `marks` are special tokens of the template."""

    def ask(text: str) -> dict[str, Any]:
        return {"role": "user", "content": text}

    def say(text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": text}

    spelled = "\n".join(marks)
    function = {"name": "add", "arguments": {"a": "A0q"}}
    call = {"type": "function", "id": "abcdefghi", "function": function}
    several = [ask("U0q and 2?"), say("A0q is 4."), ask("U1q too?"), say("A1q.")]
    return {
        "one": several[:2],
        "several": several,
        "system": [{"role": "system", "content": "U9q, be brief."}, *several],
        "tools": [
            ask("Add U0q."),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": "U1q"},
            say("A1q."),
        ],
        "spaces": [ask("  U0q\n\n"), say("A0q \n\n b\n"), ask("\tU1q "), say("\n\n A1q\n ")],
        "markers": [
            ask(f"U0q {spelled} x"),
            say(f"A0q {spelled}\nx {spelled}"),
            ask(f"{spelled}U1q"),
            say(f"A1q {spelled}"),
        ],
        "unicode": [ask("U0q 你好 🙂"), say("A0q né 🧑‍🚀"), ask("U1q שלום"), say("A1q 好的")],
        "empty": [*several[:3], say("")],
        "thought": [several[0], say("<think>\nA0q, hm.\n</think>\n\nIt is 4.")],
    }


def template(file: Path) -> str:
    """The text of a template as it is used."""
    text = file.read_text(encoding="utf-8")
    if file.parent.name == "chat_templates":  # its README joins them so
        text = text.replace("    ", "").replace("\n", "")
    return text


def tokenizer() -> Any:
    """A real byte-level BPE with all special tokens that the templates name."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "smollm2")
    words = {word for file in FILES for word in SPECIAL.findall(file.read_text(encoding="utf-8"))}
    loaded.add_special_tokens({"additional_special_tokens": sorted(words)})
    loaded.bos_token, loaded.eos_token = "<|endoftext|>", "<|im_end|>"
    return loaded


def verdict(loaded: Any, dialog: list[dict[str, Any]], tools: Any) -> str:
    """`·` where the mask is right, else the letter of the reason why it is refused.

    Raises:
        AssertionError: the mask is wrong.
    """
    try:
        encoded = chat.encode_one(loaded, dialog, tools)
    except StageFailed as refusal:
        return next(letter for letter, (part, _) in REASONS.items() if part in str(refusal))
    whole = loaded.apply_chat_template(
        dialog, tools=tools, tokenize=False, chat_template=chat.dated(loaded.chat_template)
    )
    assert loaded.decode(encoded.ids) == whole
    answers = [message for message in dialog if message["role"] == "assistant"]
    turns = list(learnt(loaded, encoded))
    assert len(turns) == len(answers)
    for (content, end), message in zip(turns, answers, strict=True):
        assert end.strip() and not SPECIAL.sub("", end).strip()
        if message.get("tool_calls"):  # what is around the name and the value is the template's
            assert "add" in content and [mark[0] for mark in MARK.finditer(content)] == ["A0q"]
            continue
        assert bare(content).endswith(bare(message["content"]))
        head = bare(content).removesuffix(bare(message["content"]))
        assert not MARK.search(head) and head in bare(loaded.chat_template)
    rest = [i for i, kind in zip(encoded.ids, encoded.kinds, strict=True) if kind == chat.CONTEXT]
    assert not any(mark[1] == "A" for mark in MARK.finditer(loaded.decode(rest)))
    return "·"


def learnt(loaded: Any, encoded: chat.Encoded) -> Iterator[tuple[str, str]]:
    """Of every turn that is learnt, its text and what ends it."""
    runs = groupby(zip(encoded.kinds, encoded.ids, strict=True), key=lambda token: token[0])
    content = ""
    for kind, run in runs:
        text = loaded.decode([token for _, token in run])
        if kind == chat.END:
            yield content, text
        content = text if kind == chat.CONTENT else ""


def bare(text: str) -> str:
    """A text without spaces and the tags of thoughts."""
    return re.sub(r"\s|</?think>", "", text)


def table() -> dict[Path, dict[str, str]]:
    """Every template's verdict on every kind of dialog."""
    loaded, found = tokenizer(), {}
    for file in FILES:
        loaded.chat_template = text = template(file)
        marks = sorted(set(SPECIAL.findall(text)))[:4]
        found[file] = {
            kind: verdict(loaded, dialog, TOOLS if kind == "tools" else None)
            if kind != "tools" or "tools" in text
            else "–"
            for kind, dialog in dialogs(marks).items()
        }
    return found


def page(before: str) -> str:
    """The page with a new table after `BEGIN`; what stands before it is written by hand."""
    found = table()
    kinds = list(dialogs([]))
    passed = {kind: sum(row[kind] == "·" for row in found.values()) for kind in kinds}
    whole = sum(set(row.values()) <= {"·", "–"} for row in found.values())
    lines = [
        before.partition(BEGIN)[0] + BEGIN,
        f"Of {len(found)} templates {passed['one']} pass with one turn, {passed['several']} with "
        f"several, and {whole} with all kinds of dialogs that they know.\n",
        f"| template | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}",
        *(
            f"| {file.parent.name}/{file.stem} | {' | '.join(r.values())} |"
            for file, r in found.items()
        ),
        f"| **proven** | {' | '.join(map(str, passed.values()))} |\n",
    ]
    used = Counter(letter for row in found.values() for letter in set(row.values()))
    for letter, (_, why) in REASONS.items():
        if used[letter]:
            lines.append(f"* **{letter}**: {why} ({used[letter]} templates)")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    file = ROOT / "docs" / "templates.md"
    file.write_text(page(file.read_text(encoding="utf-8")), encoding="utf-8")
