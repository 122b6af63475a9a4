"""Which language an answer is in."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from align import rewards, shelf
from align.errors import StageFailed
from align.settings import Reward

DATA = Path(os.environ.get("ALIGN_DATA", "none"))

ENGLISH = "The weather is fine today, and we are going to walk along the river."
GERMAN = "Das Wetter ist heute schön, und wir gehen am Fluss entlang spazieren."
CHINESE = "今天天气很好，我们打算沿着河边散步，然后一起去吃午饭。"


def reward(name: str = "language", **settings: Any) -> Reward:
    path = shelf.find(f"reward/{name}.py")
    assert path is not None
    made = shelf.load(path, Reward)(**settings)
    assert isinstance(made, Reward)
    return made


def score(
    reward: Reward, *answers: str, prompt: str = ENGLISH, **columns: Any
) -> list[float | None]:
    prompts: list[Any] = [[{"role": "user", "content": prompt}] for _ in answers]
    said: list[Any] = [[{"role": "assistant", "content": answer}] for answer in answers]
    return [one["score"] for one in rewards.call(reward, prompts, said, columns)]


def test_the_right_language_is_near_1_and_another_near_0() -> None:
    found = score(reward(language="de"), GERMAN, ENGLISH)
    assert found == [pytest.approx(1, abs=0.01), pytest.approx(0, abs=0.01)]


def test_without_a_language_it_is_that_of_the_prompt() -> None:
    assert score(reward(), ENGLISH, GERMAN, prompt=GERMAN) == [
        pytest.approx(0, abs=0.01),
        pytest.approx(1, abs=0.01),
    ]


def test_a_column_names_it_row_by_row_and_nothing_where_it_is_empty() -> None:
    by_row = reward(column="language")
    assert score(by_row, GERMAN, GERMAN, GERMAN, language=["de", "en", None]) == [
        pytest.approx(1, abs=0.01),
        pytest.approx(0, abs=0.01),
        None,
    ]
    with pytest.raises(StageFailed, match='no column "language", only code'):
        score(by_row, GERMAN, code=["de"])


def test_a_text_without_spaces_is_read_and_zh_is_any_chinese() -> None:
    [found] = score(reward(language="zh"), CHINESE)
    assert found == pytest.approx(1, abs=0.01)


def test_code_and_addresses_are_of_no_language() -> None:
    code = "```python\nfor each_item in the_whole_list_of_items: print(each_item)\n```"
    link = "https://example.com/this-is-an-english-address-with-many-words"
    [found] = score(reward(language="de"), f"{GERMAN}\n{code}\n{code}\n{link}")
    assert found == pytest.approx(1, abs=0.01)
    assert score(reward(language="de"), code) == [None]


def test_a_short_text_has_no_score_and_neither_has_an_answer_to_a_short_prompt() -> None:
    assert score(reward(language="en"), "Yes, 1234567890.", "") == [None, None]
    assert score(reward(), ENGLISH, prompt="2 + 2 = ?") == [None]


def test_a_message_that_only_calls_a_tool_has_no_score() -> None:
    call: Any = [[{"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}]]
    assert rewards.call(reward(language="en"), [[]], call) == [{"score": None}]


def test_an_unknown_code_or_two_sources_are_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValueError, match='knows no language "english". There are af, ar, bg'):
        reward(language="english")
    with pytest.raises(ValueError, match='"language" or "column", not both'):
        reward(language="en", column="code")


def test_without_langdetect_the_plan_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("language", "instructions"):
        with pytest.raises(ValueError, match=r"langdetect.*pip install 'align-recipes\[rewards\]'"):
            reward(name)


def test_a_text_has_the_same_score_whatever_was_scored_before() -> None:
    mixed = f"{ENGLISH} {GERMAN}"
    one = reward(language="en")
    [alone] = score(one, mixed)
    assert score(one, GERMAN, mixed, ENGLISH, mixed)[1::2] == [alone, alone]
    assert alone is not None and 0.05 < alone < 0.95


@pytest.mark.skipif(not DATA.is_dir(), reason="ALIGN_DATA is not set")
def test_stories_are_english() -> None:
    lines = (DATA / "tinystories/valid.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    found = score(reward(language="en"), *(json.loads(line)["text"] for line in lines))
    assert all(p is not None and p > 0.99 for p in found)
