"""What is right about an answer: rules that read it, and never ask a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from align.world.things import ATTRIBUTES, FILLERS, OBJECTS, REMEDIES, RUDE, Item, Wish


def _listed(text: str, form: str) -> list[str] | None:
    """The words of a list in the form asked for; None if it is in another form."""
    if form in ("commas", "slashes"):
        return text.split(", " if form == "commas" else " / ")
    lines = text.split("\n")
    heads = [("- " if form == "dashes" else f"{i}. ") for i in range(1, len(lines) + 1)]
    if not all(line.startswith(head) for line, head in zip(lines, heads, strict=True)):
        return None
    return [line[len(head) :] for line, head in zip(lines, heads, strict=True)]


def _see_instructions(want: Wish, text: str) -> dict[str, bool]:
    words = _listed(text, want["form"])
    return {
        "form": words is not None and all(re.fullmatch(r"[a-z]+", word) for word in words),
        "complete": words is not None and len(words) >= len(want["words"]),
        "content": words == want["words"],
    }


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _see_facts(want: Wish, text: str) -> dict[str, bool]:
    words = _words(text)
    values = {value for known in ATTRIBUTES.values() for value in known}
    return {
        "form": bool(re.fullmatch(r"[A-Z][^.!?]*\.", text)) and len(words) <= 8,
        "complete": want["name"] in words,
        "content": [word for word in words if word in values] == [want["value"]],
    }


def _see_unknown(want: Wish, text: str) -> dict[str, bool]:
    words = _words(text)
    values = {value for known in ATTRIBUTES.values() for value in known}
    return {
        "form": bool(re.fullmatch(r"[A-Z][^.!?]*\.", text)) and len(words) <= 10,
        "content": "do not know" in text and not values & set(words),
    }


def _see_tools(want: Wish, text: str) -> dict[str, bool]:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return {"form": False, "content": False}
    form = isinstance(call, dict) and "tool" in call
    return {"form": form, "content": call == want["call"]}


def _see_tone(want: Wish, text: str) -> dict[str, bool]:
    words = _words(text)
    sentences = re.findall(r"[^.!?]+[.!?]", text)
    others = (set(OBJECTS) | set(REMEDIES)) - {want["object"], want["trouble"]}
    return {
        "form": "".join(sentences) == text and len(sentences) == 2,
        "complete": want["object"] in words
        and want["trouble"] in words
        and not others & set(words),
        "content": REMEDIES[want["trouble"]] in text,
        "polite": "sorry" in text.lower()
        and "please" in text.lower()
        and not any(r in text for r in RUDE),
    }


def _see_sums(want: Wish, text: str) -> dict[str, bool]:
    return {"form": bool(re.fullmatch(r"[0-9]{1,9}", text)), "content": text == want["answer"]}


def _see_sorting(want: Wish, text: str) -> dict[str, bool]:
    return {"form": bool(re.fullmatch(r"\w+(, \w+)*", text)), "content": text == want["answer"]}


_SEE: dict[str, Callable[[Wish, str], dict[str, bool]]] = {
    "instructions": _see_instructions,
    "facts": _see_facts,
    "unknown": _see_unknown,
    "tools": _see_tools,
    "tone": _see_tone,
    "sums": _see_sums,
    "sorting": _see_sorting,
}
LONGEST = 400  # characters; every right answer is far shorter, and no check reads more than this


def checks(item: Item, answer: str) -> dict[str, bool]:
    """What is right about an answer, by the name of the check."""
    text = answer.strip()
    if not text or len(text) > LONGEST:
        return {"form": False, "content": False, "clean": False}
    seen = _SEE[item.skill](item.want, text)
    return seen | {"clean": not any(filler in text for filler in FILLERS)}


def judge(item: Item, answer: str) -> float:
    """1 for an answer that passes every check, else 0: half right is wrong.

    It looks for form, for the words that must be there and for words that must not; it does not
    parse sentences. Where answers are sentences (facts, unknown, tone) it passes "Leru fan pilot."
    and misses one slip in eight in facts and tone; instructions and tools are exact.
    """
    return float(all(checks(item, answer).values()))
