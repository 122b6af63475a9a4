"""Real sets, whole, and docs/data.md: its counts and its example rows."""

import gzip
import importlib.util
import json
import os
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from align import data
from align.artifacts import Conversations, Preferences, Prompts
from align.data import Source
from align.forms import FORMS, recognise

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ALIGN_DATA", "/nowhere"))
TREES = DATA / "open_assistant_en100" / "en_100_tree.jsonl"
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")

real = pytest.mark.skipif(not DATA.is_dir(), reason="ALIGN_DATA is not set")
Row = dict[str, Any]


@real
def test_the_counts_of_the_page_are_what_is_read() -> None:
    spec = importlib.util.spec_from_file_location("counted", ROOT / "docs" / "data.py")
    assert spec is not None and spec.loader is not None
    counted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(counted)
    assert counted.page(PAGE) == PAGE, "run `python docs/data.py`"


@pytest.mark.parametrize("name", FORMS)
def test_the_rows_of_the_page_are_of_the_form_that_it_says(
    name: str, write_rows: Callable[[str, list[Row]], Path]
) -> None:
    found = re.findall(rf"^```json {name}\n(.*?)^```", PAGE, re.M | re.S)
    rows = [json.loads(line) for block in found for line in block.splitlines()]
    assert rows
    for row in rows:
        for kind in FORMS[name].makes:
            plain = kind is Prompts and isinstance(row.get("prompt"), str)
            assert recognise(row, kind, "the page").name == ("prompts" if plain else name)
    for kind in FORMS[name].makes:
        path = str(write_rows("a.jsonl", rows))
        assert list(data.read(Source(path=path, format=name), kind, None))


def messages() -> dict[str, Row]:
    """The messages of the trees by id, each with the ids of its `parents`."""
    found: dict[str, Row] = {}

    def walk(message: Row, parents: list[str]) -> None:
        found[message["message_id"]] = {**message, "parents": parents}
        for reply in message["replies"]:
            walk(reply, [*parents, message["message_id"]])

    for line in TREES.read_text(encoding="utf-8").splitlines():
        walk(json.loads(line)["prompt"], [])
    return found


@real
def test_rankings_of_trees_are_the_ranks_that_people_gave() -> None:
    known = messages()
    ranks = {
        (message["parents"][-1], message["text"]): message["rank"]
        for message in known.values()
        if message.get("rank") is not None
    }
    pairs = 0
    for row in data.read(Source(path=str(TREES)), Preferences, None):
        asked = known[row["id"]]
        texts = [known[name]["text"] for name in asked["parents"]] + [asked["text"]]
        assert [message["content"] for message in row["prompt"]] == texts
        answers = row["ranked"] if "ranked" in row else [row["chosen"], row["rejected"]]
        order = [ranks[row["id"], answer[0]["content"]] for answer in answers]
        assert order == sorted(set(order)) and len(order) > 1
        pairs += len(order) * (len(order) - 1) // 2
    human = [
        message
        for message in known.values()
        if message.get("rank") is not None
        and not any(known[name]["synthetic"] for name in message["parents"])
        and not message["synthetic"]
    ]
    assert pairs == sum(
        one["parents"][-1] == other["parents"][-1] and one["rank"] != other["rank"]
        for one, other in combinations(human, 2)
    )


@real
def test_a_set_that_is_split_by_tree_shares_no_prompt() -> None:
    """All rows of a tree ask the same, so that `without` leaves out whole trees."""
    source = Source(path=str(TREES), split="train[50:]")
    first = Source(path=str(TREES), split="train[:60]", without=[source])
    known = messages()
    rows = list(data.read(first, Conversations, None))
    roots = {(known[row["id"]]["parents"] or [row["id"]])[0] for row in rows}
    assert len(roots) == 50


@real
def test_human_assistant_dialogs_are_cut_where_the_speakers_change() -> None:
    file = DATA / "hh_rlhf_harmless_test" / "harmless-base.test.jsonl.gz"
    made = data.read(Source(path=str(file)), Preferences, None)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        raw = [json.loads(line) for line in lines]
    texts = {re.sub(r"\s+", "", row[side]) for row in raw for side in ("chosen", "rejected")}
    for row in made:
        for side in ("chosen", "rejected"):
            said = "".join(
                f"{'Human' if message['role'] == 'user' else 'Assistant'}:{message['content']}"
                for message in row["prompt"] + row[side]
            )
            assert re.sub(r"\s+", "", said) in texts
