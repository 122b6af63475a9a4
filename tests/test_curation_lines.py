"""Lines that many rows have in common are taken out."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from align.curation.lines import Lines, normalised
from align.out import Out

FOOTER = "Let me know if there is anything else that I can do for you."


def document(text: str, name: str = "a") -> dict[str, Any]:
    return {"id": name, "text": text}


def conversation(answer: str, name: str = "a", question: str = "Well?") -> dict[str, Any]:
    asked = {"role": "user", "content": question}
    return {"id": name, "messages": [asked, {"role": "assistant", "content": answer}]}


def sifted(rule: Lines, rows: list[dict[str, Any]], path: Path) -> tuple[list[Any], Out]:
    out = Out(path, path)
    return list(rule.sift(lambda: iter(rows), out)), out


def answers(found: list[Any]) -> list[str]:
    return [row["messages"][-1]["content"] for row, why in found if why is None]


def test_a_line_goes_from_all_rows_once_it_stands_in_more_than_so_many(tmp_path: Path) -> None:
    for n in (6, 7):
        rows = [conversation(f"Answer {'abcdefg'[i]}.\n\n{FOOTER}", str(i)) for i in range(n)]
        found, out = sifted(Lines(), rows, tmp_path)
        assert all(FOOTER in answer for answer in answers(found)) is (n == 6)
        if n == 7:
            assert answers(found) == [f"Answer {letter}." for letter in "abcdefg"]
            assert out.counts["changed.lines"]["n"] == 7


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    assert sifted(Lines(), [], tmp_path)[0] == []


def test_a_row_counts_a_line_once(tmp_path: Path) -> None:
    song = "\n".join([FOOTER] * 20)
    found, out = sifted(Lines(), [conversation(song, str(i)) for i in range(6)], tmp_path)
    assert answers(found) == [song] * 6
    assert not out.counts


def test_lines_are_compared_as_ccnet_does() -> None:
    assert normalised("  Très BIEN: 12.5 % – «Ça va?»\u200b ") == "tres bien 000 ca va"
    assert normalised("Ｆｕｌｌ ١٢") == "full 00"
    assert normalised("x = 1") != normalised("x + 1")
    assert normalised("---") == ""


def test_numbers_and_punctuation_do_not_tell_lines_apart(tmp_path: Path) -> None:
    rows = [document(f"Only here: {chr(97 + i)}.\nPage {i} of 9!\nHome", str(i)) for i in range(9)]
    found, _ = sifted(Lines(), rows, tmp_path)
    assert [row["text"] for row, _ in found] == [f"Only here: {chr(97 + i)}." for i in range(9)]


def test_short_lines_stay_in_answers_and_what_was_asked_stays(tmp_path: Path) -> None:
    rows = [conversation(f"Yes, of course.\nIt is {i * 'i'}.", str(i), FOOTER) for i in range(9)]
    found, _ = sifted(Lines(), rows, tmp_path)
    assert [row for row, _ in found] == rows


def test_code_is_left_alone_and_its_lines_do_not_count(tmp_path: Path) -> None:
    code = f"```\n{FOOTER}\n\n\n{FOOTER}\n```"
    rows = [conversation(f"{i * 'x'}\n{code}\n{code}", str(i)) for i in range(9)]
    found, _ = sifted(Lines(), rows, tmp_path)
    assert [row for row, _ in found] == rows


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("    x = 1\n{0}\n\n\ny\n", "    x = 1\n\n\ny\n"),
        ("a\n\n{0}\n\n\nb\n\n\nc", "a\n\nb\n\n\nc"),
        ("{0}\n\na\n\n{0}\n{0}\n", "a"),
    ],
)
def test_what_is_beside_the_lines_stays_as_it_is(tmp_path: Path, text: str, left: str) -> None:
    rows = [conversation(text.format(FOOTER), str(i)) for i in range(7)]
    found, _ = sifted(Lines(), rows, tmp_path)
    assert answers(found) == [left] * 7


def test_a_row_that_loses_an_answer_is_removed_with_the_line(tmp_path: Path) -> None:
    rows = [conversation(f"{FOOTER}\n\n{FOOTER.upper()}", str(i)) for i in range(7)]
    found, _ = sifted(Lines(), rows, tmp_path)
    assert {(why.reason, why.facts["line"]) for _, why in found} == {("lines", FOOTER)}
    assert [row for row, _ in found] == rows  # as they came: that is what is shown


def test_both_answers_of_preferences_lose_it(tmp_path: Path) -> None:
    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": f"{text}\n{FOOTER}"}]

    prompt = [{"role": "user", "content": "Well?"}]
    rows = [
        {"id": str(i), "prompt": prompt, "chosen": said(f"c{i}"), "rejected": said(f"r{i}")}
        for i in range(7)
    ]
    found, _ = sifted(Lines(), rows, tmp_path)
    [row, _] = found[3]
    assert [row[key][0]["content"] for key in ("chosen", "rejected")] == ["c3", "r3"]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_counts_are_those_of_a_dictionary_whatever_the_chunk_and_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("align.curation.lines.CHUNK", chunk)
    draw = random.Random(0)
    words = [f"line {chr(97 + i) * 3}" for i in range(20)]
    rows = [document("\n".join(draw.sample(words, 6)), str(i)) for i in range(25)]
    times = {line: sum(line in row["text"].split("\n") for row in rows) for line in words}
    expected = {
        row["id"]: "\n".join(line for line in row["text"].split("\n") if times[line] <= 7)
        for row in rows
    }
    draw.shuffle(rows)
    found, _ = sifted(Lines(more_than=7), rows, tmp_path)
    assert {row["id"]: row["text"] for row, why in found if why is None} == {
        name: text for name, text in expected.items() if text
    }
    assert 0 < len([text for text in expected.values() if text]) < 25
    assert os.listdir(tmp_path) == []
