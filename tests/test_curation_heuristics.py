"""Rules that go by what can be counted: length, repetition, emojis, phrases."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pydantic
import pytest
import regex

from align.curation import emojis
from align.curation.heuristics import Bounds, Emoji, Length, Phrases, Repetition
from align.curation.repetition import shares
from align.curation.rules import by_role, said
from align.out import Out

SONG = """The wheels on the bus go round and round,
round and round, round and round.
The wheels on the bus go round and round,
all through the town.

The wipers on the bus go swish swish swish,
swish swish swish, swish swish swish.
The wipers on the bus go swish swish swish,
all through the town.

The people on the bus go up and down,
up and down, up and down.
The people on the bus go up and down,
all through the town."""

STORY = """Once a fox met a crane at the river and asked it to dinner. The fox served soup on a flat
plate, which the crane with its long bill could not eat, while the fox licked the plate clean.

The next day the crane asked the fox to dinner. The crane served soup in a tall jar, which the fox
with its short nose could not eat, while the crane emptied the jar."""

DATATROVE = {
    SONG: [
        *(0.416667, 0.0, 0.394673, 0.0, 0.087167, 0.145278, 0.188862),
        *(0.324455, 0.138015, 0.167070, 0.193705, 0.234867, 0.0),
    ],
    STORY: [0.0, 0.0, 0.0, 0.0, 0.076705, 0.079545, 0.113636, 0.056818, 0.0, 0.0, 0.0, 0.0, 0.0],
}
"""What the functions of datatrove 0.10.1's GopherRepetitionFilter give, on words between spaces."""


def asked_and_said(answer: str, question: str = "Well?") -> list[tuple[str, str]]:
    return [("user", question), ("assistant", answer)]


def conversation(answer: str, **more: Any) -> dict[str, Any]:
    said = asked_and_said(answer)
    return {"id": "a", "messages": [{"role": r, "content": text} for r, text in said], **more}


# -- length --------------------------------------------------------------------------------------


def test_bounds_hold_at_both_ends() -> None:
    rule = Length(words=Bounds(at_least=3, at_most=5))
    kept = [n for n in range(8) if rule.look(asked_and_said(" ".join(["so"] * n))) is None]
    assert kept == [2, 3, 4]  # and one of the question


def test_every_answer_is_measured_and_no_question() -> None:
    said = [("user", "a " * 100), ("assistant", "a b"), ("user", "more"), ("assistant", "a b c")]
    assert Length(answer_words=Bounds(at_most=3)).look(said) is None
    why = Length(answer_words=Bounds(at_most=2)).look(said)
    assert why is not None
    assert (why.reason, why.facts) == ("length", {"answer_words": 3})
    assert Length(answer_characters=Bounds(at_least=4)).look(said) is not None
    assert Length(characters=Bounds(at_most=211)).look(said) is not None
    assert Length(characters=Bounds(at_most=212)).look(said) is None


# -- repetition ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SONG, STORY], ids=["song", "story"])
def test_shares_of_repetition_are_those_of_datatrove(text: str) -> None:
    found = shares(text)
    assert found is not None
    ours = [found.lines, found.paragraphs, found.line_characters, found.paragraph_characters]
    assert [*ours, *found.top_ngrams, *found.duplicate_ngrams] == pytest.approx(
        DATATROVE[text], abs=1e-6
    )


def test_a_paragraph_said_again_has_the_shares_that_follow() -> None:
    """60 different words of three letters, n times over."""
    paragraph = " ".join(f"w{i:02}" for i in range(60))
    for n in (1, 2, 5):
        text = "\n\n".join([paragraph] * n)
        found = shares(text)
        assert found is not None
        assert found.lines == found.paragraphs == (n - 1) / n
        assert found.line_characters == (n - 1) * len(paragraph) / len(text)
        top = [round(share * len(text)) for share in found.top_ngrams]
        assert top == ([0, 0, 0] if n == 1 else [7 * n, 11 * n, 15 * n])
    found = shares(f"{paragraph}\n\n{paragraph}")
    assert found is not None
    characters = [
        round(share * len(f"{paragraph}  {paragraph}")) for share in found.duplicate_ngrams
    ]
    assert characters == [3 * (60 - 60 % n) for n in range(5, 11)]  # whole runs of the second one


def test_a_row_that_repeats_itself_goes_with_the_rule_and_the_share() -> None:
    why = Repetition().look(asked_and_said(SONG))
    assert why is not None
    assert (why.reason, why.facts) == ("repetition", {"lines": 0.4167})
    assert Repetition().look(asked_and_said(STORY)) is None
    open_ = Repetition(lines=1, line_characters=1, top_ngrams=[1, 1, 1])
    found = open_.look(asked_and_said(SONG))
    assert found is not None and found.facts == {"duplicate_5_grams": 0.3245}


def test_what_was_asked_what_is_short_and_what_is_code_may_repeat() -> None:
    assert Repetition().look(asked_and_said("A bus.", question=SONG)) is None
    assert Repetition().look(asked_and_said("no no " * 24)) is None
    assert Repetition().look(asked_and_said("no no " * 25)) is not None
    assert Repetition().look(asked_and_said("no\n" * 50)) is not None
    code = "```\n" + "    return True\n" * 50 + "```"
    assert Repetition().look(asked_and_said(f"{STORY}\n{code}")) is None


def test_letters_of_scripts_without_spaces_are_counted_as_words() -> None:
    told = "".join(chr(0x4E00 + 7 * i) for i in range(60))
    assert Length(words=Bounds(at_least=60, at_most=61)).look([("text", f"{told}。")]) is None
    assert Length(words=Bounds(at_most=4)).look([("text", "“A café, so.”")]) is None
    assert Repetition().look(asked_and_said(told)) is None
    found = shares(f"{told}{told}")
    assert found is not None and found.top_ngrams == pytest.approx([4 / 120, 6 / 120, 8 / 120])
    assert found.duplicate_ngrams == pytest.approx([(60 - 60 % n) / 120 for n in range(5, 11)])


def test_of_a_text_of_megabytes_the_beginning_is_read() -> None:
    words = " ".join(f"word{i}" for i in range(20_000))
    assert shares(words + " no" * 3_000_000) == shares(words)


# -- emojis --------------------------------------------------------------------------------------


def test_pictures_are_those_of_unicode_but_for_the_signs_of_tables() -> None:
    default = regex.compile(r"\p{Emoji_Presentation}")
    pictures = {chr(c) for c in range(0x2000, 0x1FB00) if default.fullmatch(chr(c))}
    assert {one for one in pictures if not emojis.count(one)} == set("✅❌❎❓❔❕❗➕➖➗")
    others = "".join(regex.findall(r"[\p{L}\p{N}\p{P}]", "".join(map(chr, range(0x20, 0x1FB00)))))
    assert emojis.count(others) == 0


@pytest.mark.parametrize("one", ["👍🏽", "👨‍👩‍👧‍👦", "🇩🇪", "❤️", "🏳️‍🌈", "🤷‍♀️", "☀️"])
def test_a_picture_of_several_characters_is_one_and_goes_whole(one: str) -> None:
    assert emojis.count(f"Well {one} and {one}.") == 2
    assert emojis.fewer(f"Well {one} and {one}.", 0, 1, Counter()) == "Well and."


def test_emojis_after_the_first_and_exclamation_marks_in_a_row_are_taken_out() -> None:
    row = conversation("🎉 Yes!!! 😀😀 `a!!b` 😀\n😀 so it is!")
    changed, counts = Emoji(emojis=2).change(row)
    assert changed["messages"][1]["content"] == "🎉 Yes! 😀 `a!!b`\nso it is!"
    assert counts == {"emojis": 3, "exclamations": 2}
    assert Emoji(emojis=2).change(changed) == (changed, {})
    assert row["messages"][1]["content"].startswith("🎉 Yes!!!")


def test_what_was_asked_keeps_its_emojis_and_an_answer_is_never_emptied() -> None:
    row = conversation("😀")
    row["messages"][0]["content"] = "What is 😀😀😀😀😀!!!"
    assert Emoji(emojis=0).change(row) == (row, {})


def test_thoughts_are_answers_and_calls_are_none() -> None:
    row = conversation("Yes!!!")
    call = {"function": {"name": "f", "arguments": {"text": "So!!!", "n": [1, "No!!"]}}}
    row["messages"][1] |= {"reasoning_content": "Hm!!!", "thinking": 3, "tool_calls": [call]}
    changed, counts = Emoji().change(row)
    answer = changed["messages"][1]
    assert (answer["content"], answer["reasoning_content"]) == ("Yes!", "Hm!")
    assert answer["tool_calls"] == [call] and counts == {"exclamations": 4}


def test_what_is_no_call_is_left_alone() -> None:
    for calls in ("x", ["x"], [{"function": "f"}]):
        row = conversation("Yes.")
        row["messages"][1]["tool_calls"] = calls
        assert by_role(row, lambda _, text: text.upper())["messages"][1]["tool_calls"] == calls


def test_what_tools_are_called_with_can_be_changed_and_stays_json() -> None:
    row = conversation("Yes.")
    given = ({"a": ["x", 1, {"b": "y"}]}, '{"a":"x\\n"}', '{"n":  1}', "no json x", {})
    calls = [{"function": {"name": "x", "arguments": one}} for one in given]
    calls.append({"name": "x", "arguments": {"a": "x"}})
    row["messages"][1]["tool_calls"] = calls
    changed = by_role(row, lambda _, text: text.replace("x", "<X>"))["messages"][1]["tool_calls"]
    found = [call.get("function", call)["arguments"] for call in changed]
    assert found[0] == {"a": ["<X>", 1, {"b": "y"}]} and json.loads(found[1]) == {"a": "<X>\n"}
    assert found[2:] == ['{"n":  1}', "no json <X>", {}, {"a": "<X>"}]
    assert {call.get("function", call)["name"] for call in changed} == {"x"}


def test_a_turn_that_only_calls_tools_is_no_answer() -> None:
    rule = Length(answer_words=Bounds(at_least=1))
    call = {"name": "f", "arguments": {}}
    for empty in ("", " ", None):
        row = conversation("Yes.")
        calling = {"role": "assistant", "content": empty, "tool_calls": [call]}
        row["messages"].insert(1, calling)
        assert rule.look(said(row)) is None
        del calling["tool_calls"]
        assert (rule.look(said(row)) is None) == (empty is None)


def test_a_row_full_of_emojis_goes() -> None:
    said = asked_and_said("Yes 😀 no 😀")
    assert Emoji().look(said) is None
    assert Emoji(share=0.5).look(said) is None
    why = Emoji(share=0.4).look(said)
    assert why is not None and why.facts == {"emojis_per_word": 0.5}


# -- phrases -------------------------------------------------------------------------------------


def sifted(rule: Phrases, rows: list[dict[str, Any]], path: Path) -> list[str]:
    found = rule.sift(lambda: iter(rows), Out(path, path))
    return [row["id"] for row, why in found if why is None]


def test_a_phrase_keeps_its_share_of_what_stays(tmp_path: Path) -> None:
    sorry = [conversation(f"I’m SORRY, not {i}.", id=f"s{i}") for i in range(50)]
    rows = [conversation(f"It is {i}.", id=f"p{i}") for i in range(180)] + sorry
    rows += [conversation("I'm sorryful.", id="q"), conversation("So.", id="r")]
    rule = Phrases(at_most=0.1)
    kept = sifted(rule, rows, tmp_path)
    assert sifted(rule, [], tmp_path) == []
    assert sum(one.startswith("s") for one in kept) == 20  # 20 of 202 rows: the most below 10 %
    random.Random(0).shuffle(rows)
    assert set(sifted(rule, rows, tmp_path)) == set(kept)


def test_what_stays_hangs_on_no_name_of_a_file_and_on_no_apostrophe(tmp_path: Path) -> None:
    said = ["I’m sorry", "I'm sorry", "Yes", "Yes"]
    rows = [conversation(f"{said[i % 4]}, {i}.", id=str(i)) for i in range(200)]
    kept = [
        sifted(Phrases(phrases=[phrase], at_most=0.1), named, tmp_path)
        for phrase in ("I'm sorry", "i’m sorry")
        for named in (
            [{**row, "source": "one.jsonl"} for row in rows],
            [{**row, "source": "renamed.jsonl"} for row in rows],
            [{**row, "source": f"{i // 100}.jsonl"} for i, row in enumerate(rows)],
        )
    ]
    assert len(kept[0]) == 111 and kept == [kept[0]] * 6


def test_several_phrases_each_keep_theirs(tmp_path: Path) -> None:
    says = ["I apologize, but no.", "I'm sorry.", "I'm sorry, I apologize.", "Yes."]
    rows = [conversation(f"{says[i % 4]} {i}", id=str(i)) for i in range(400)]
    kept = set(sifted(Phrases(at_most=0.2), rows, tmp_path))
    for phrase in ("I apologize", "I'm sorry"):
        having = [one for one in kept if phrase in says[int(one) % 4]]
        assert 0 < len(having) <= 0.2 * len(kept)


def test_an_empty_phrase_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="A phrase is empty"):
        Phrases(phrases=[" "])
