"""How much of an answer is said for the first time."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from align import rewards, shelf
from align.settings import Reward

DATA = Path(os.environ.get("ALIGN_DATA", "none"))


def numbers(*answers: Any, **settings: Any) -> list[rewards.Numbers]:
    path = shelf.find("reward/repetition.py")
    assert path is not None
    reward = shelf.load(path, Reward)(**settings)
    assert isinstance(reward, Reward)
    said = [[a if isinstance(a, dict) else {"role": "assistant", "content": a}] for a in answers]
    return rewards.call(reward, [[] for _ in answers], said)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize(("words", "times"), [(5, 1), (5, 3), (12, 10)])
def test_of_m_words_said_k_times_m_n_grams_are_new(words: int, times: int, n: int) -> None:
    answer = " ".join([f"w{i}" for i in range(words)] * times)
    [found] = numbers(answer, n=n)
    total = words * times - n + 1
    assert found["score"] == pytest.approx(min(words, total) / total)


def test_case_and_spaces_make_nothing_new_and_a_short_answer_repeats_nothing() -> None:
    [found] = numbers("No no  NO\nno no")
    assert found["score"] == 0.5
    assert [one["score"] for one in numbers("", "yes", "no no no")] == [1, 1, 1]


def test_lines_are_compared_without_the_blank_ones() -> None:
    [found] = numbers("- one\n\n- two\n- one \n\n- one")
    assert found["lines"] == 0.5


def test_text_without_spaces_is_read_character_by_character() -> None:
    sentence = (
        "今天天气很好，我们打算沿着河边散步，然后一起去吃午饭。"  # 27 characters, all 4-grams new
    )
    once, looped, hyphens = numbers(sentence, sentence * 10, "-" * 300)
    assert once["score"] == 1
    assert looped["score"] == pytest.approx(27 / (270 - 3))
    assert hyphens["score"] == pytest.approx(1 / 297)


def test_the_rules_of_a_table_are_no_loop() -> None:
    rule = f"|{'-' * 40}|{'-' * 40}|"
    [table] = numbers(f"| one thing | and another one |\n{rule}\n| a first | and a second |")
    assert table["score"] == 1


def test_a_message_that_only_calls_a_tool_repeats_nothing() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert numbers(call) == [{"score": 1, "lines": 1}]


@pytest.mark.skipif(not DATA.is_dir(), reason="ALIGN_DATA is not set")
def test_written_stories_say_new_things_and_a_loop_of_their_last_sentence_does_not() -> None:
    lines = (DATA / "tinystories/valid.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    stories = [json.loads(line)["text"] for line in lines]
    looped = [story[:200] + " the end of the story" * 100 for story in stories]
    assert min(one["score"] or 0 for one in numbers(*stories)) > 0.75
    assert max(one["score"] or 0 for one in numbers(*looped)) < 0.25
