"""Pieces of a model card, as Markdown that the hub shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from io import StringIO

from ruamel.yaml import YAML


def code(word: object) -> str:
    """A name in a line of text."""
    return f"`{str(word).replace('`', chr(39))}`"


def plain(text: object) -> str:
    """Words of a person or a file, that they are no markup."""
    return re.sub(r"([\\`*_<>#|\[\]])", r"\\\1", " ".join(str(text).split()))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table; the columns of `numbers` are aligned to the right."""
    right = set(numbers)
    ruler = ["--:" if i in right else "---" for i in range(len(heads))]
    lines = [heads, ruler, *rows]
    return "\n".join(f"| {' | '.join(_cells(line))} |" for line in lines)


def folded(summary: str, body: str) -> str:
    """What is shown when it is clicked."""
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def fenced(text: str, language: str = "") -> str:
    """Text as it is."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def yaml(value: object) -> str:
    """A value as YAML, its keys in their order."""
    writer, stream = YAML(typ="safe", pure=True), StringIO()
    writer.default_flow_style, writer.allow_unicode, writer.width = False, True, 96
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(value, stream)
    return stream.getvalue()


def _cells(line: Sequence[str]) -> list[str]:
    """Cells whose bars are no borders."""
    return [re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line]
