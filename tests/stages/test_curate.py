"""Duplicates, near-duplicates and benchmark questions leave the data, whatever its order."""

import json
import os
import random
import re
import signal
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipe_world import HEAD, world
from scipy.stats import binom

from align import overlap, recipe, shelf
from align.artifacts import Conversations, Model, Preferences, Prompts, Text
from align.curation import contamination, flow, minhash, words
from align.curation.contamination import RUN, Questions, question
from align.curation.hashes import content
from align.curation.heuristics import Bounds, Length
from align.curation.lines import Lines
from align.curation.looking import encoded
from align.curation.near import Near
from align.curation.pii import Pii
from align.data import Source
from align.errors import RecipeError, StageFailed
from align.out import Out
from align.settings import Task
from align.stages.curate import _RULES, Curate
from align.stages.sft import Sft

__all__ = ["world"]

Row = dict[str, Any]
Write = Callable[[str, list[Row]], Path]

DATA = pytest.mark.skipif(
    "ALIGN_DATA" not in os.environ, reason="ALIGN_DATA names no folder with data"
)

NAMES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Quiz(Task):
    """Questions that a test wrote."""

    ask = "answer"
    questions: list[str]

    def items(self) -> Iterator[Row]:
        for i, text in enumerate(self.questions):
            yield {"id": str(i), "prompt": text}


@pytest.fixture
def curate(tmp_path: Path, write_rows: Write) -> Callable[..., "Curated"]:
    """Curate rows, a file for each list of them."""
    calls = iter(range(100))

    def made(*sources: list[Row], rows: str | None = "text", **rules: Any) -> Curated:
        path = tmp_path / f"curate-{next(calls)}"
        path.mkdir()
        files = [write_rows(f"{path.name}-{i}.jsonl", part) for i, part in enumerate(sources)]
        out = Out(path, tmp_path / ".cache")
        stage = Curate(data=[Source(path=str(f)) for f in files], rows=rows, **rules)
        return Curated(stage.run(out), out)

    return made


class Curated:
    """What a stage made, and what it counted."""

    def __init__(self, made: Any, out: Out) -> None:
        self.made, self.path = made, out.path
        self.rows = list(made.rows())
        self.counts = {name: count["n"] for name, count in out.counts.items()}
        lines = (out.path / "removed.jsonl").read_text().splitlines()
        self.removed = [json.loads(line) for line in lines]
        self.metrics = json.loads((out.path / "metrics.json").read_text())

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows]


def texts(*said: str) -> list[Row]:
    return [{"id": name, "text": text} for name, text in zip(NAMES, said, strict=False)]


def asked(text: str, answer: str = "Yes.", role: str = "user") -> list[Row]:
    return [{"role": role, "content": text}, {"role": "assistant", "content": answer}]


# -- what it makes -------------------------------------------------------------------------------


def test_every_type_of_rows_stays_what_it_is(curate: Callable[..., Curated]) -> None:
    dialog = asked("Why?")
    pair = {"prompt": dialog[:1], "chosen": dialog[1:], "rejected": asked("", "No.")[1:]}
    known = {
        "text": (Text, {"text": "A story."}),
        "prompts": (Prompts, {"prompt": dialog[:1], "answer": 7}),
        "conversations": (Conversations, {"messages": dialog, "tools": [{"name": "f"}]}),
        "preferences": (Preferences, {**pair, "chosen_score": 2.0, "rejected_score": 1.0}),
    }
    for rows, (type_, row) in known.items():
        made = curate([{"id": "a", **row}, {"id": "b", **row}], rows=rows)
        [kept] = made.rows
        assert type(made.made) is type_
        assert {key: value for key, value in kept.items() if key not in ("id", "source")} == row
        assert kept["source"].endswith(".jsonl")
        assert made.counts == {"read": 2, "kept": 1, "dropped.exact": 1}


@pytest.mark.parametrize(
    "beside",
    [
        {"chosen": "Red ann@pears.io!!!", "rejected": "no", "text": 5},
        {"ranked": ["a", "b ann@pears.io"], "also_rejected": None},
        {"chosen": asked("Say.", "Ask ann@pears.io!!!"), "rejected": asked("Say.", "No.")},
        {"prompt": asked("Say.")[:1], "chosen": asked("", "ann@pears.io")[1:], "rejected": []},
    ],
)
def test_columns_beside_a_prompt_are_no_dialogs(
    beside: Row, curate: Callable[..., Curated]
) -> None:
    rows = [{"prompt": "Say.", "score": 1, **beside}, {"prompt": "Say.", "score": 0}]
    rules = {"emoji": {}, "pii": {}, "near": {}, "lines": {}, "phrases": {}}
    made = curate(rows, rows="prompts", **rules)
    kept, metrics = made.rows[0], made.metrics
    assert (len(made.rows), metrics["read"]["words"], metrics["kept"]["words"]) == (1, 2, 1)
    assert made.removed[0]["reason"] == "exact" and made.removed[0]["said"] == [["user", "Say."]]
    changed = json.loads(json.dumps(beside).replace("ann@pears.io", "<EMAIL_1>"))
    assert {name: kept[name] for name in beside} == changed


def test_what_is_removed_is_kept_with_its_reason_and_counted_by_source(
    curate: Callable[..., Curated], capsys: pytest.CaptureFixture[str]
) -> None:
    made = curate(texts("One two.", "Three.", "One  two."), texts("Three.", "Four five six."))
    assert len(made.rows) == 3 and len(made.removed) == 2
    assert [row["reason"] for row in made.removed] == ["exact", "exact"]
    assert made.removed[0]["said"] == [["text", made.removed[0]["said"][0][1]]]
    assert {row["facts"]["repeats"] for row in made.removed} <= set(made.ids)
    assert made.metrics["read"] == {"rows": 5, "words": 9}
    assert made.metrics["kept"] == {"rows": 3, "words": 6}
    assert [one["read"]["rows"] for one in made.metrics["sources"]] == [3, 2]
    assert sum(one["dropped"].get("exact", 0) for one in made.metrics["sources"]) == 2
    assert len({row["id"] for row in [*made.rows, *made.removed]}) == 5
    said = capsys.readouterr().err
    assert "exact: 2 rows removed." in said and "Kept 3 of 5 rows, 6 of 9 words." in said


def test_a_second_stage_keeps_what_the_first_has_said_of_rows(tmp_path: Path) -> None:
    dialog = asked("Why?")
    known = {
        Text: {"text": "A story."},
        Prompts: {"prompt": dialog[:1]},
        Conversations: {"messages": dialog},
        Preferences: {"prompt": dialog[:1], "chosen": dialog[1:], "rejected": asked("", "No.")[1:]},
    }
    for number, (type_, row) in enumerate(known.items()):
        first, again = (tmp_path / f"{number}-{name}" for name in ("first", "again"))
        (first / "data").mkdir(parents=True)
        again.mkdir()
        row = {"id": "a", **row, "source": "hh", "quality": 0.5, "difficulty": 2.0}
        (first / "data" / "rows.jsonl").write_text(json.dumps({**row, "other": 1}))
        [kept] = Curate(data=[type_(first)]).run(Out(again, tmp_path / ".cache")).rows()
        assert kept == (row if type_ is not Prompts else {**row, "other": 1})


def test_what_cannot_be_read_and_what_is_changed_is_said(
    curate: Callable[..., Curated], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "Who?", "completion": text} for text in ("ann@lee.org, bo@lee.org", "", " ")]
    curate(rows, rows="conversations", pii={}, decontaminate=[])
    said = capsys.readouterr().err
    assert "» Left out while reading: no_answer 2.\n» Changed: email 2.\n» exact: 0 rows" in said


def test_rows_stay_in_their_order_in_many_lots(
    curate: Callable[..., Curated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "LOT", 3)
    rows = [{"id": str(i), "text": f"number {i % 20}", "score": float(i)} for i in range(40)]
    made = curate(rows)
    kept, gone = [row["text"] for row in made.rows], [row["said"][0][1] for row in made.removed]
    assert sorted(kept) == sorted(f"number {i}" for i in range(20))
    places = {row["id"]: i for i, row in enumerate(rows)}
    assert made.ids == sorted(made.ids, key=places.__getitem__) and len(gone) == 20
    removed = [row["id"] for row in made.removed]
    assert removed == sorted(removed, key=places.__getitem__)


def test_what_each_rule_removes_lies_in_the_order_of_the_rows(
    curate: Callable[..., Curated],
) -> None:
    rows = texts("I'm sorry.", "no", "I'm sorry!", "no no", "I'm sorry?", "Well, well, well.")
    made = curate(rows, length={"characters": {"at_least": 6}}, phrases={"at_most": 0.1})
    assert [(row["id"], row["reason"]) for row in made.removed] == [
        *(("one", "phrases"), ("two", "length"), ("three", "phrases")),
        *(("four", "length"), ("five", "phrases")),
    ]


def test_rows_are_not_read_far_ahead(
    curate: Callable[..., Curated], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    waits: list[int] = []
    taken = flow._taken

    def lots(*given: Any) -> Iterator[Any]:
        for lot in words.lots(*given):
            read.append(lot)
            yield lot

    def counted(lot: Any, out: Out) -> Any:
        waits.append(len(read))
        return taken(lot, out)

    monkeypatch.setattr(words, "LOT", 1)
    monkeypatch.setattr(flow, "lots", lots)
    monkeypatch.setattr(flow, "_taken", counted)
    monkeypatch.setattr(flow, "cores", lambda: 1)
    assert len(curate([{"text": f"number {i}"} for i in range(20)]).rows) == 20
    assert waits[0] == flow.AHEAD + 1


def test_long_rows_are_looked_at_in_small_lots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CHARACTERS", 10)
    found = [*words.lots(["a" * 6, "b" * 5, "c" * 20, "d"], lambda text: [text])]
    assert [[len(text) for text in lot] for lot in found] == [[6, 5], [20], [1]]


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [3, 1 << 17])
def test_words_are_those_of_a_regular_expression(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "PIECE", piece)
    known = [
        "Don't STOP, Çelik!",
        "",
        " \u0645\u0631\u062d\u0628\u0627 x_1 １２ ²",
        "İΑΣ \ud800 \u00e9",
        "...",
        "stop",
    ]
    read = words.Texts(known)
    each = [re.findall(r"\w+", text.lower()) for text in known]
    flat = [word for found in each for word in found]
    assert read.lengths.tolist() == [len(found) for found in each]
    assert read.run(0, len(flat)).split(" ") == flat
    numbers = dict(zip(flat, read.numbers.tolist(), strict=True))
    assert len(set(numbers.values())) == len(numbers) == len(set(flat))
    assert [numbers[word] for word in flat] == read.numbers.tolist()


@pytest.mark.parametrize("piece", [1, 1 << 17])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("人工智能,2024年 of AI模型", "人 工 智 能 2024 年 of ai 模 型"),
        ("カナーabc漢d", "カ ナ ー abc 漢 d"),
        ("ที่นี่ ๒๔", "ที่ นี่ ๒๔"),
        ("한국어 문장", "한국어 문장"),
        ("e\u0301te\u0301 prob\u200blem\u00ad s", "\u00e9t\u00e9 problem s"),
    ],
)
def test_letters_of_scripts_without_spaces_are_words_and_what_is_not_seen_is_nothing(
    text: str, found: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "PIECE", piece)
    read = words.Texts([text])
    assert read.run(0, 99) == found
    assert read.key(0) == words.Texts([found]).key(0)


def test_runs_end_with_their_text_and_are_equal_where_their_words_are() -> None:
    read = words.Texts(["a b c d", "x", "b c d", "", "c b d"])
    found, places = words.runs(read.numbers, read.lengths, 3)
    assert [read.run(place, 3) for place in places] == ["a b c", "b c d", "b c d", "c b d"]
    assert found[1] == found[2] and len(set(found.tolist())) == 3
    assert read.key(0) != read.key(2) and read.key(2) == words.Texts(["B, c; D"]).key(0)


# -- exact ---------------------------------------------------------------------------------------


def test_rows_are_equal_up_to_white_space_and_forms_of_characters_and_no_further() -> None:
    """What tools are there, and what is called, is said, too."""
    row = {"id": "a", "messages": asked("Ça va?")}
    same = {"id": "b", "messages": asked(unicodedata.normalize("NFD", " Ça\n va? "))}
    assert content(row) == content(same)
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}
    other = {**call, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    different = [
        row,
        {"messages": asked("ça va?")},
        {"messages": asked("Ça va?", role="system")},
        {**row, "tools": [{"name": "f"}]},
        {"messages": [row["messages"][0], call]},
        {"messages": [row["messages"][0], other]},
        {"prompt": row["messages"][:1], "chosen": asked("", "A")[1:], "rejected": asked("")[1:]},
        {"prompt": row["messages"][:1], "chosen": asked("")[1:], "rejected": asked("", "A")[1:]},
    ]
    assert len({content(one) for one in different}) == len(different)


def test_tools_and_arguments_are_the_same_however_they_are_written() -> None:
    tools = [{"name": "f", "parameters": {"a": 1}}, {"name": "g"}]
    other = json.dumps([tools[1], {"parameters": {"a": 1}, "name": "f"}])

    def calling(arguments: Any) -> list[Row]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return [{"role": "assistant", "content": None, "tool_calls": [call]}]

    given = ({"a": "x  y", "b": 1}, {"b": 1, "a": "x y"}, '{"b":1,"a":"x y"}', '{"a": "y", "b": 1}')
    held = [content({"messages": calling(one), "tools": tools}) for one in given]
    assert held[0] == held[1] == held[2] != held[3]
    assert content({"messages": calling(given[1]), "tools": other}) == held[0]
    assert content({"messages": calling("no json")}) != content({"messages": calling("no, json")})


@pytest.mark.parametrize("depth", [500, 990, 100_000])
def test_arguments_are_as_deep_as_they_like(depth: int) -> None:
    call = {"name": "f", "arguments": "[" * depth + "]" * depth}
    row = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert content(row) == content(json.loads(json.dumps(row)))


def test_of_equal_rows_the_one_with_the_highest_score_stays(
    curate: Callable[..., Curated],
) -> None:
    prompt = [{"role": "user", "content": "Why?"}]
    rows = [{"id": str(score), "prompt": prompt, "score": score} for score in (1, 3, 2)]
    made = curate([*rows, {"id": "none", "prompt": prompt}], rows="prompts")
    assert made.ids == ["3"]


def test_exact_can_be_left_out(curate: Callable[..., Curated]) -> None:
    assert curate(texts("One.", "One."), exact=False).ids == ["one", "two"]


def test_half_a_character_of_an_earlier_stage_comes_through() -> None:
    row = {"text": "half \ud800"}
    assert json.loads(encoded(row)) == row
    assert content(row) != content({"text": "half \ud801"})


# -- near ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("similarity", "published"), [(0.7, 0.5645), (0.75, 0.7716), (0.8, 0.9235), (0.85, 0.9884)]
)
def test_the_probability_to_meet_is_that_of_fineweb(similarity: float, published: float) -> None:
    """14 bands of 8 hashes, as in arXiv 2406.17557, figure 5."""
    assert minhash.meeting(similarity, 14, 8) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_are_the_longest_in_which_near_rows_surely_meet(similarity: float) -> None:
    count, rows = minhash.bands(similarity)
    assert count * rows <= minhash.HASHES
    assert minhash.meeting(similarity, count, rows) >= minhash.SURE
    longer = minhash.meeting(similarity, minhash.HASHES // (rows + 1), rows + 1)
    assert rows == minhash.HASHES or longer < minhash.SURE


@pytest.mark.parametrize("similarity", [0.4, 0.6, 0.75, 0.9])
def test_rows_meet_in_a_band_as_often_as_the_closed_form_says(similarity: float) -> None:
    """Sets of 400 runs, of which as many are shared as makes this Jaccard similarity."""
    pairs, size, shape = 600, 400, (12, 4)
    shared = round(2 * size * similarity / (1 + similarity))
    exactly = shared / (2 * size - shared)
    runs = np.random.default_rng(5).integers(0, 2**64, (pairs, 2 * size - shared), np.uint64)
    counts = np.full(pairs, size)
    one = minhash.sketch(runs[:, :size].ravel(), counts, shape)
    other = minhash.sketch(runs[:, size - shared :].ravel(), counts, shape)
    met = int((one == other).any(axis=1).sum())
    low, high = binom.interval(0.999, pairs, minhash.meeting(exactly, *shape))
    assert low <= met <= high
    assert (minhash.sketch(runs[:, :size][:, ::-1].ravel(), counts, shape) == one).all()


def story(number: int, words_: int = 60) -> list[str]:
    return [f"word{number}x{i}" for i in range(words_)]


def copies(number: int, changed: int) -> list[str]:
    """A story with another last word, and more of them."""
    told = story(number)
    return [" ".join([*told[: 60 - i], *("other",) * i]) for i in range(changed + 1)]


def test_near_rows_are_one_group_and_others_are_left_alone(curate: Callable[..., Curated]) -> None:
    """Of 56 runs of five words, one of which differs with the last word, 55 of 57 are shared."""
    far = " ".join([*story(1)[:45], *story(2)[:15]])  # 41 of 71 runs
    made = curate(texts(*copies(1, 2), far, *copies(3, 0)), near=Near())
    assert len(made.rows) == 3 and {"four", "five"} <= set(made.ids)
    for row in made.removed:
        assert row["reason"] == "near" and row["facts"]["repeats"] in made.ids
        assert row["facts"]["similarity"] in (round(55 / 57, 3), round(54 / 58, 3))


def test_a_row_that_a_rule_removes_is_nobodys_original(curate: Callable[..., Curated]) -> None:
    told = " ".join(story(1))
    rows = [{"id": "a", "prompt": told}, {"id": "b", "prompt": f"{told} more", "score": 9.0}]
    short = {"characters": {"at_most": len(told)}}
    assert curate(rows, rows="prompts", near=Near()).ids == ["b"]
    assert curate(rows, rows="prompts", near=Near(), length=short).ids == ["a"]


def test_a_chain_of_near_rows_is_one_group(curate: Callable[..., Curated]) -> None:
    """Each shares 56 of 64 runs with the next, and the first and the last share 24."""
    told = story(1, 100)
    made = curate(texts(*(" ".join(told[4 * i : 4 * i + 64]) for i in range(10))), near=Near())
    assert len(made.rows) == 1
    assert min(row["facts"]["similarity"] for row in made.removed) < 0.8


def test_a_long_system_message_makes_no_rows_near(curate: Callable[..., Curated]) -> None:
    system = {"role": "system", "content": " ".join(story(1))}
    rows = [{"messages": [system, *asked(f"Question {i}?")]} for i in range(5)]
    assert len(curate(rows, rows="conversations", near=Near()).rows) == 5


def called(number: int, asked_: str = "Please do what I asked for about it now") -> Row:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": f"a{number} b c"}}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"id": str(number), "messages": [{"role": "user", "content": asked_}, answer]}


def test_rows_with_other_calls_tools_or_thoughts_are_not_near(
    curate: Callable[..., Curated],
) -> None:
    calls = [called(i) for i in range(9)]
    made = curate([*calls, {**calls[0], "id": "again"}], rows="conversations", near=Near())
    assert len(made.rows) == 9
    assert made.removed[0]["said"][1] == ["call", 'f {"x": "a0 b c"}']
    same = " ".join(story(1))
    tools = [[{"name": name, "description": " ".join(story(2, 200))}] for name in "fgh"]
    of = [{"messages": asked(f"{same} {i}"), "tools": tools[i % 3]} for i in range(6)]
    assert len(curate(of, rows="conversations", near=Near()).rows) == 3
    apart = [{"messages": asked(f"Question {i}?"), "tools": tools[0]} for i in range(5)]
    assert len(curate(apart, rows="conversations", near=Near()).rows) == 5
    written = [{"messages": of[0]["messages"], "tools": json.dumps(tools[0])}, of[3]]
    assert len(curate(written, rows="conversations", near=Near()).rows) == 1
    for key in ("reasoning_content", "thinking"):
        thought = [{"messages": asked("Why?", "So.")} for _ in range(4)]
        for i, row in enumerate(thought):
            row["messages"][1][key] = " ".join(story(i))
        assert len(curate(thought, rows="conversations", near=Near()).rows) == 4


def test_a_pair_that_is_not_near_is_compared_once() -> None:
    """In all bands, and a row's runs are read once for the rows around it."""
    told = np.arange(100, dtype=np.uint64)
    sets = [np.sort(np.append(told, np.uint64(1000) + i * 40 + told[:30])) for i in range(12)]
    read: list[int] = []

    def runs_of(row: int) -> Any:
        read.append(row)
        return sets[row]

    bands_ = iter([np.zeros(12, np.uint64)] * 20)
    firsts, _ = minhash.groups(bands_, np.arange(12), runs_of, 0.8)
    assert firsts.tolist() == [*range(12)] and sorted(read) == [*range(12)]


def test_near_rows_are_found_in_a_crowd_that_shares_a_template(
    curate: Callable[..., Curated],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """96 of 124 runs are the template's, and five more are shared by the two of a pair."""
    monkeypatch.setattr(minhash, "WINDOW", 1)
    told = [[*story(0, 100), *story(i, 14)] for i in range(1, 301)]
    told += [[*row[:105], *story(300 + i, 9)] for i, row in enumerate(told[:40], 1)]
    made = curate([{"text": " ".join(row)} for row in told], near=Near())
    assert made.counts["dropped.near"] == 40 and made.counts["near.crowded"] > 300
    assert "rows are in crowds, as those of one template." in capsys.readouterr().err
    monkeypatch.undo()
    assert "near.crowded" not in curate(noisy(0), near=Near()).counts


def test_who_shares_a_run_is_found_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a crowd takes 64 bytes, and rows of one run are in one part."""
    monkeypatch.setattr(minhash, "CHUNK", 2)
    runs = np.arange(1, 30, dtype=np.uint64) << np.uint64(40)
    rows = [runs[i : i + 12] for i in range(10)]
    keys = minhash._rarest(np.arange(10), rows.__getitem__)
    assert keys.dtype == np.uint64 and len(keys) <= 80 and keys.base is not None
    found = {tuple(members.tolist()) for members in minhash._having(keys)}
    assert {(0, 1), (8, 9)} <= found and all(len(members) > 1 for members in found)


def test_chinese_rows_that_differ_in_a_character_are_near(curate: Callable[..., Curated]) -> None:
    told = "".join(chr(0x4E00 + 7 * i) for i in range(60))
    made = curate(texts(told, f"{told[:-1]}吗", told[::-1]), near=Near())
    assert len(made.rows) == 2 and "three" in made.ids


def test_of_prompts_alone(curate: Callable[..., Curated]) -> None:
    answers = [" ".join(story(i)) for i in range(3)]
    rows = [{"messages": asked("What is it?", answer)} for answer in answers]
    rows.append({"messages": [*asked("What is it?", answers[0]), *asked("And now?")]})
    assert len(curate(rows, rows="conversations", near=Near()).rows) == 3
    assert len(curate(rows, rows="conversations", near=Near(of="prompt")).rows) == 2


def test_short_rows_are_near_only_where_they_have_the_same_words(
    curate: Callable[..., Curated],
) -> None:
    made = curate(texts("Yes, it is.", "yes it IS", "No, it is.", "...", "!"), near=Near())
    assert len(made.rows) == 4 and {"three", "four", "five"} <= set(made.ids)


def noisy(seed: int) -> list[Row]:
    """Stories, near copies of them with random words changed, and copies."""
    random_ = random.Random(seed)
    rows = []
    for number in range(40):
        for _ in range(random_.choice([1, 1, 2, 5])):
            told = story(number)
            for _ in range(random_.choice([0, 0, 1, 2, 3])):
                told[random_.randrange(60)] = f"other{random_.random()}"
            rows.append(" ".join(told))
    return [{"id": str(i), "text": text} for i, text in enumerate(rows)]


def test_what_stays_hangs_neither_on_order_nor_on_lots_or_processes(
    curate: Callable[..., Curated], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = noisy(0)
    stay = curate(rows, near=Near())
    assert 40 <= len(stay.rows) < len(rows)
    assert {row["reason"] for row in stay.removed} == {"exact", "near"}
    for seed, cores, lot in ((1, 1, 1000), (2, 2, 7), (3, 3, 1)):
        monkeypatch.setattr(flow, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(words, "LOT", lot)
        random.Random(seed).shuffle(rows)
        again = curate(rows, near=Near())
        assert set(again.ids) == set(stay.ids)
        facts = {row["id"]: row["facts"] for row in stay.removed}
        assert {row["id"]: row["facts"] for row in again.removed} == facts
    assert curate(stay.rows, near=Near()).ids == stay.ids


# -- decontamination -----------------------------------------------------------------------------

LONG = " ".join(f"{name} of the {name}s" for name in NAMES)
"""40 words."""


@pytest.mark.parametrize(
    ("text", "overlap"),
    [
        (LONG.upper(), "exact"),
        (f"A question: {LONG} Answer:", "partial"),
        (" ".join(LONG.split()[:21]), "partial"),
        (" ".join(LONG.split()[:20]), None),  # half of it is not more than half
        ("What is the capital of Peru?", "exact"),
        ("So: what is the capital of Peru?", None),
    ],
)
def test_a_row_that_holds_a_question_is_removed(
    curate: Callable[..., Curated], text: str, overlap: str | None
) -> None:
    quiz = Quiz(questions=["Who?", LONG, "what is the capital of peru"])
    made = curate(texts(text, "Some other text."), decontaminate=[quiz])
    assert made.ids == (["two"] if overlap else ["one", "two"])
    for row in made.removed:
        assert row["reason"] == "contamination" and row["facts"]["overlap"] == overlap
        question = words.Texts([quiz.questions[int(row["facts"]["item"])]])
        gram = row["facts"]["gram"]
        assert gram in question.run(0, 99) and gram in words.Texts([text]).run(0, 99)
        assert len(gram.split()) == min(RUN, int(question.lengths[0]))


def test_with_no_share_a_run_of_eight_words_is_enough(curate: Callable[..., Curated]) -> None:
    rows = texts(" ".join(LONG.split()[3:11]), " ".join(LONG.split()[3:10]), "Peru")
    made = curate(rows, decontaminate=[Quiz(questions=[LONG])], shared=0)
    assert made.ids == ["two", "three"]


def test_what_stands_in_another_column_counts_as_the_evaluation_counts_it(
    curate: Callable[..., Curated],
) -> None:
    rows = [{"id": "a", "prompt": "Why?", "reference": LONG}, {"id": "b", "prompt": "How?"}]
    assert curate(rows, rows="prompts", decontaminate=[Quiz(questions=[LONG])]).ids == ["b"]


def test_runs_of_more_items_than_a_few_or_a_share_are_the_form_of_a_task() -> None:
    form = "what is the answer to this question about"

    def found(having: int, items: int) -> bool:
        asked = {str(i): f"{form} {' '.join(story(i, 12))}" for i in range(having)}
        asked |= {f"x{i}": f"question {i}" for i in range(items - having)}
        read = words.Texts([" ".join([form, *story(0, 4), "and something else"])])
        return bool(Questions({"quiz": asked}).find(read, [0]))

    assert [found(n, 20) for n in (10, 11)] == [True, False]
    assert [found(n, 4000) for n in (20, 21)] == [True, False]


def test_an_instruction_and_its_input_are_one_question() -> None:
    row = {"prompt": "Why?", "instruction": "Translate into French:", "input": "a cat"}
    assert "Translate into French: a cat" in [*contamination.texts(row)]


def shelf_task(name: str, **settings: Any) -> Task:
    path = shelf.find(f"eval/{name}.py")
    assert path is not None
    return shelf.load(path, Task).model_validate(settings)  # type: ignore[return-value]


@DATA
def test_planted_questions_of_real_benchmarks_are_found_and_the_evaluation_then_finds_none(
    curate: Callable[..., Curated], tmp_path: Path
) -> None:
    folder = Path(os.environ["ALIGN_DATA"])

    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    for file in (folder / "mmlu" / "test").glob("high_school_*"):
        (tmp_path / "mmlu" / "test" / file.name).symlink_to(file)

    def of(file: str) -> Source:
        return Source(path=str(folder / file))

    tasks = [
        shelf_task("gsm8k", data=of("gsm8k/test.jsonl")),
        shelf_task("mmlu", data=Source(path=str(tmp_path / "mmlu")), shots=0),
        shelf_task("arc_challenge", data=of("arc_challenge/arc_challenge_test.jsonl")),
        shelf_task("humaneval", data=of("humaneval/HumanEval.jsonl.gz")),
    ]
    lines = (folder / "gsm8k/train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][:2000]
    train = [
        {"id": str(i), "prompt": row["question"], "completion": row["answer"]}
        for i, row in enumerate(rows)
    ]
    planted = []
    items = {f"task{i}": list(task.items()) for i, task in enumerate(tasks)}
    for name, each in items.items():
        for item in each[5:160:8]:
            text = question(item)
            planted.append({"id": f"{name} {item['id']}", "prompt": text, "completion": "A."})
    made = curate(train + planted, rows="conversations", exact=False, decontaminate=tasks)
    removed = {row["id"]: row["facts"] for row in made.removed}
    assert {row["id"] for row in planted} <= removed.keys()
    assert len(removed) - len(planted) <= 5
    assert all(facts["gram"] for facts in removed.values())

    (made.path / "artifact.json").write_text("{}")
    base = Model(tmp_path / "base", spec={"base": {"path": "base"}, "quantization": None})
    trained = Model(tmp_path / "sft-1", stage=Sft(model=base, data=[made.made]))
    out = Out(tmp_path / "evaluate", tmp_path / "runs" / ".cache")
    out.path.mkdir()
    every = [(*one, task) for one, task in zip(items.items(), tasks, strict=True)]
    for entry in overlap.find([trained], [(name, task, of) for name, of, task in every], out):
        assert (entry["exact"], entry["partial"], entry["not_read"]) == (0, 0, {})


# -- with the other rules --------------------------------------------------------------------------


def test_a_row_that_lines_change_is_looked_at_again(curate: Callable[..., Curated]) -> None:
    """Without the line in its middle it is the question of a benchmark."""
    first, last = LONG.split()[:20], LONG.split()[20:]
    line = "a line that stands in every row of the data"
    rows = texts(
        " ".join([*first[:15]]) + f"\n{line}\n" + " ".join(first[15:] + last[:1]),
        *(f"{line}\nand {name} " + " ".join(story(i, 9)) for i, name in enumerate(NAMES[:7])),
    )
    quiz = Quiz(questions=[LONG])
    assert "one" in curate(rows, decontaminate=[quiz]).ids
    made = curate(rows, decontaminate=[quiz], lines=Lines())
    assert "one" not in made.ids and len(made.rows) == 7
    assert made.counts["dropped.contamination"] == 1 and made.counts["changed.lines"] == 8
    assert made.metrics["kept"]["words"] == sum(len(row["text"].split()) for row in made.rows)


def test_changes_come_before_what_is_compared_and_rules_before_what_repeats(
    curate: Callable[..., Curated],
) -> None:
    """Rows that differ in an address are equal; what a rule removes is nobody's copy."""
    rows = texts("Write to ann@pears.io now", "Write to bob@plums.io now", "Too short", "Too short")
    made = curate(rows, pii=Pii(), length=Length(words=Bounds(at_least=3)))
    assert [row["text"] for row in made.rows] == ["Write to <EMAIL_1> now"]
    assert made.counts == {
        "read": 4, "kept": 1, "changed.email": 2, "dropped.length": 2, "dropped.exact": 1
    }  # fmt: skip
    assert [row["reason"] for row in made.removed] == ["exact", "length", "length"]


def test_a_row_that_a_change_spoils_is_removed(
    curate: Callable[..., Curated], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a pair both answers may be equal then; of a ranking equal ones stay once."""

    def said(*texts_: str) -> list[list[Row]]:
        return [[{"role": "assistant", "content": text}] for text in texts_]

    def pair(chosen: str, rejected: str) -> Row:
        made = said(chosen, rejected)
        return {"prompt": asked("Well?")[:1], "chosen": made[0], "rejected": made[1]}

    footer = "\nLet me know if there is anything else that I can do for you."
    rows = [
        pair("Sure \N{GRINNING FACE}", "Sure"),
        pair("ann@pears.io", "Ann@pears.io"),
        {"prompt": asked("How?")[:1], "ranked": said("ann@pears.io", "Ann@pears.io", "No.")},
        *(pair(f"{name}{footer}", f"{name}{'.' * (name != 'one')}") for name in NAMES[:7]),
    ]
    rules = {"emoji": {"emojis": 0}, "pii": {}, "lines": {}}
    made = curate(rows, rows="preferences", decontaminate=[], **rules)
    assert [row["reason"] for row in made.removed] == ["equal_answers"] * 3
    assert made.rows[0]["chosen"] == said("<EMAIL_1>")[0] and "ranked" not in made.rows[0]
    assert made.counts["kept"] == 7
    log = capsys.readouterr().err
    assert "Left out" not in log and "equal_answers: 3 rows removed." in log


def test_words_read_are_those_before_any_change(curate: Callable[..., Curated]) -> None:
    line = "a line that stands in every row of the data"
    rows = texts(*(f"{line}\nann@pears.io {name} \N{GRINNING FACE}" for name in NAMES))
    made = curate(rows, pii={}, emoji={"emojis": 0}, lines={})
    assert made.metrics["read"]["words"] == 10 * 14 and made.metrics["kept"]["words"] == 10 * 2


# -- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": [{"path": "a.jsonl"}]}, "Say what the rows are. rows: conversations |"),
        (
            {"data": [Prompts(Path("p-1")), Text(Path("t-1"))]},
            "All rows are of one type, and here are prompts and text",
        ),
        ({"data": [Prompts(Path("p-1"))], "rows": "text"}, "here are prompts and text"),
        ({"data": []}, "at least 1"),
    ],
)
def test_rows_of_no_type_or_of_two_are_refused(settings: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        Curate.model_validate(settings)


def test_what_a_rule_is_not_for_is_said_in_the_plan() -> None:
    stage = Curate(data=[Source(path="a.jsonl", weight=2.0)], rows="text", near=Near(of="prompt"))
    assert [key for key, _ in stage.check()] == ["data.0", "near"]


def test_rules_apply_in_the_order_of_the_keys() -> None:
    """As `Curate` says; phrases come last, whose share is of the rows that stay."""
    keys = [key for key in Curate.model_fields if key in _RULES]
    assert keys == [*_RULES] and keys[-1] == "phrases"


def test_no_row_left_is_an_error(curate: Callable[..., Curated]) -> None:
    with pytest.raises(StageFailed, match=r"No row is left \(contamination: 2\)"):
        curate(texts("Who?", "who"), decontaminate=[Quiz(questions=["Who?"])])


def test_a_process_that_is_killed_is_said(
    curate: Callable[..., Curated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "_look", _die)
    with pytest.raises(StageFailed, match="was killed"):
        curate(texts("One."))


def _die(lot: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_run_left_behind_is_not_taken_over(
    curate: Callable[..., Curated], tmp_path: Path
) -> None:
    left = tmp_path / "curate-0" / "checkpoints" / "curate" / "rows-1"
    made = curate(texts("One."))
    left.write_text("rubbish")
    stage = Curate(data=[Source(path=str(tmp_path / "curate-0-0.jsonl"))], rows="text")
    stage.run(Out(made.path, tmp_path / ".cache"))
    assert [row["text"] for row in made.made.rows()] == ["One."] and not left.exists()


# -- in a recipe ---------------------------------------------------------------------------------

ASK = """
class Ask(Task):
    ask = "answer"
    data: Prompts | Source

    def items(self):
        yield {"id": "1", "prompt": "Who?"}
"""

CHAIN = """
base: {path: ./m, dtype: float32}
stages:
  asked: {use: curate, data: p.jsonl, rows: prompts, decontaminate: []}
  clean: {use: curate, data: d.jsonl, rows: conversations, near: {similarity: 0.9}}
  again: {use: curate, data: [clean]}
  sft: {use: my/tune.py, model: base, data: again}
  evaluate: {models: [sft], tasks: [{use: my/ask.py, data: asked}]}
"""


def test_a_recipe_makes_what_it_takes_without_its_own_questions(world: Path) -> None:
    """The task's prompts are an input, too, and not what the rows are."""
    Path("my/ask.py").write_text(HEAD + ASK)
    Path("p.jsonl").write_text('{"prompt": "Who?"}\n')
    Path("r.yaml").write_text(CHAIN)
    plan = recipe.read("r.yaml")
    made = {name: planned.record["makes"] for name, planned in plan.stages.items()}
    assert (made["asked"], made["clean"], made["again"]) == ("Prompts", *["Conversations"] * 2)
    clean = recipe.restore(plan.stages["clean"].record, plan.store)
    assert isinstance(clean, Curate) and clean.decontaminate is not None
    assert [type(task).__name__ for task in clean.decontaminate] == ["Ask"]
    assert plan.stages["asked"].stage.decontaminate == []  # type: ignore[attr-defined]


def test_a_rule_that_there_is_not_is_named(world: Path) -> None:
    Path("r.yaml").write_text(CHAIN.replace("near:", "nearr:").split("  sft:")[0])
    with pytest.raises(RecipeError, match='"nearr" is no key of curate.*Did you mean "near"'):
        recipe.read("r.yaml")
