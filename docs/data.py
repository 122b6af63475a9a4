"""Write the end of docs/data.md: what is read of public data sets, and what is dropped of each.

    ALIGN_DATA=/path python docs/data.py

A test does the same wherever ALIGN_DATA is set, and fails when the table is stale.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from align import data
from align.artifacts import Conversations, Preferences, Prompts, Rows, Text
from align.data import Source
from align.out import Out

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ALIGN_DATA", "/nowhere"))
BEGIN = "<!-- from here on written by docs/data.py -->\n"

GSM8K = {"columns": {"prompt": "{question}", "completion": "{answer}"}}
HH = "hh_rlhf_harmless_test/harmless-base.test.jsonl.gz"
TREES = "open_assistant_en100/en_100_tree.jsonl"
ULTRA = "ultrafeedback_1k"
RASCHKA = "raschka_instruct/instruction-data"

SETS: list[tuple[str, type[Rows], dict[str, Any]]] = [
    (HH, Preferences, {}),
    (HH, Conversations, {}),
    (HH, Prompts, {}),
    (f"{ULTRA}/train_clean.jsonl", Preferences, {}),
    (f"{ULTRA}/train_clean.jsonl", Conversations, {}),
    (f"{ULTRA}/eval_clean.jsonl", Preferences, {}),
    (TREES, Preferences, {}),
    (TREES, Conversations, {}),
    (TREES, Conversations, {"best": 1}),
    (TREES, Prompts, {}),
    ("open_assistant_en100/en_100_message.jsonl", Preferences, {}),
    ("gsm8k/train.jsonl", Conversations, GSM8K),
    ("gsm8k/test.jsonl", Conversations, GSM8K),
    (f"{RASCHKA}.json", Conversations, {}),
    (f"{RASCHKA}-with-preference.json", Preferences, {}),
    (f"{RASCHKA}-with-preference.json", Conversations, {}),
    ("ifeval/input_data.jsonl", Prompts, {}),
    ("tinystories/train.jsonl", Text, {}),
]


def counts(path: str, kind: type[Rows], keys: dict[str, Any]) -> tuple[int, int, dict[str, int]]:
    """Rows of the file, rows of that kind they became, and what was dropped."""
    source = Source(path=str(DATA / path), **keys)
    with TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        out = Out(Path(folder), Path(folder))
        read = sum(1 for _ in data.read(source, kind, out))
    lost = {name.removeprefix("dropped."): entry["n"] for name, entry in out.counts.items()}
    return sum(1 for _ in data.rows(source)), read, lost


def lines() -> Iterator[str]:
    """The table."""
    yield "| file | rows | asked for | read | dropped |"
    yield "|---|---|---|---|---|"
    for path, kind, keys in SETS:
        rows, read, lost = counts(path, kind, keys)
        told = ", ".join(f"{name} {n}" for name, n in sorted(lost.items())) or "nothing"
        key = ", `best: 1`" if "best" in keys else ""
        yield f"| {path} | {rows:,} | {kind.__name__}{key} | {read:,} | {told} |"


def page(written: str) -> str:
    """The page, with what this machine counts in place of what stands there."""
    head, _, _ = written.partition(BEGIN)
    return head + BEGIN + "\n" + "\n".join(lines()) + "\n"


if __name__ == "__main__":
    file = ROOT / "docs" / "data.md"
    file.write_text(page(file.read_text(encoding="utf-8")), encoding="utf-8")
