"""Instructions that a program can check: IFEval's 25 kinds."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from align import data, rewards, shelf
from align.artifacts import Prompts
from align.errors import StageFailed
from align.settings import Reward
from align.verifiers.constraints import KINDS, followed
from align.verifiers.sentences import capital_words, sentences

DATA = os.environ.get("ALIGN_DATA")
EN = "the weather is fine today and we are going to walk along the river with our friends"


def scored(answers: list[Any], **columns: Any) -> list[rewards.Numbers]:
    path = shelf.find("reward/instructions.py")
    assert path is not None
    reward = shelf.load(path, Reward)()
    assert isinstance(reward, Reward)
    prompts: list[Any] = [[{"role": "user", "content": "Write a poem."}] for _ in answers]
    said = [[a if isinstance(a, dict) else {"role": "assistant", "content": a}] for a in answers]
    return rewards.call(reward, prompts, said, columns)


# kind, arguments, answers that follow, answers that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["Mom", "form"]}, ["mom's information"], ["a form", "mom"]),
    (
        "keywords:frequency",
        {"keyword": "war", "relation": "at least", "frequency": 2},
        ["War and award"],
        ["one war"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "relation": "less than", "frequency": 2},
        ["one war", "none"],
        ["war war"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "C++"]},
        ["rocket and bedrock"],
        ["A Rock.", "rock\n"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "q", "let_relation": "at least", "let_frequency": 2},
        ["Quick q"],
        ["quick"],
    ),
    (
        "keywords:letter_frequency",  # the published checker draws another letter for this one
        {"letter": "#", "let_relation": "at least", "let_frequency": 2},
        ["# a\n# b"],
        ["# a"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das Wetter ist schön und wir gehen am Fluss entlang.", "12345"],
        [EN],
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 5},
        ["I don't see it"],
        ["one two three-four"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        ["Dr. Who is in. Really?"],
        ["One. Two! Three?"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "a *** b\n***\n"],
        ["a\n\nb", "a\n***\n***\nb", "a***b***c"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"},
        ["a tree\n\nElm, and more", 'a\n\n"elm" b'],
        ["elm\n\na", "a\n\nelms", "a\n\nelm\n\nc", "a\n\n\n\nelm"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] and [address]"],
        ["[name] and [address", "[name\n] [x]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["bye\n\nP.P.S. more", "p. p. s more"],
        ["P.S. more", "PPS more"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["P.S. x"], ["P.S x", "x"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["x\n* a\n* b", "- a\n  - b\n**bold**"],
        ["* a", "* a\n* b\n---", "• a\n• b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "I think: My answer is maybe. So"],
        ["my answer is yes.", "My answer is yes"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and **b**"],
        ["*a* and ** **", "*a\nb* *c*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na\nSection 2\nb", "SECTION one SECTION two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, null]}', '```json\n{"a": 1}\n```'],
        ['Here: {"a": 1}', '{"a": 1,}', "[" * 100_000],
    ),
    ("detectable_format:title", {}, ["<<A song>>\nla"], ["<A song>", "<< >>", "<<a\nb>>"]),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******a******b******"],
        ["a******a", "a***b", "a******b******c", "a************b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a haiku."},
        [" write a haiku.\n\nleaves"],
        ["Sure! Write a haiku.", "Write a haiku:"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any other questions?"},
        ["x any other questions?\n", '"x Any other questions?"'],
        ["Any other questions? Bye.", "Any other questions"],
    ),
    ("startend:quotation", {}, [' "all of it" '], ['"half', '"', "“curly”"]),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "less than", "capital_frequency": 3},
        ["I saw NASA"],
        ["I saw the NASA in the U.S."],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        ["R&D"],
        ["A-B"],
    ),
    (
        "change_case:english_capital",
        {},
        [EN.upper()],
        [EN.upper() + "x", "DAS WETTER IST SCHÖN UND WIR GEHEN AM FLUSS ENTLANG"],
    ),
    (
        "change_case:english_lowercase",
        {},
        [EN],
        [EN + " I", "das wetter ist schön und wir gehen am fluss entlang"],
    ),
    ("punctuation:no_comma", {}, ["a and b"], ["a, b"]),
]


@pytest.mark.parametrize(("kind", "arguments", "right", "wrong"), CASES)
def test_a_kind_tells_answers_that_follow_from_near_misses(
    kind: str, arguments: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [answer for answer in right if not followed(kind, arguments, answer)[0]] == []
    assert [answer for answer in wrong if followed(kind, arguments, answer)[0]] == []


def test_every_kind_has_a_case_and_there_are_25() -> None:
    assert {kind for kind, *_ in CASES} == set(KINDS)
    assert len(KINDS) == 25


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("One line\nand another", 1),
        ("Mr. Smith met Dr. Who at 5 p.m. in the U.S. embassy.", 1),
        ("He lives in the U.S. The weather is fine.", 2),
        ("It costs 3.5 dollars. Really?! Yes!!! No.", 4),
        ("Well... maybe. Wait... They left.", 3),
        ('"Go!" she said. (He went.) Then it was over.', 4),
        ("“Go.” And he went.", 2),
        ("1. First item\n2. Second item", 3),
        ("He didn't. She did.", 2),
    ],
)
def test_sentences_are_counted_as_punkt_counts_them(text: str, n: int) -> None:
    assert sentences(text) == n  # n: what NLTK 3.10's Punkt finds


@pytest.mark.parametrize(
    ("text", "n"),
    [("I'M", 2), ("U.S. and NASA's", 2), ("A,B (C) 3D 1,000", 4), ("CAN'T", 2), ("Mixed Case", 0)],
)
def test_capital_words_are_counted_as_the_treebank_tokenizer_splits_them(text: str, n: int) -> None:
    assert capital_words(text) == n  # n: what NLTK 3.10's word_tokenize finds


@pytest.mark.parametrize(
    ("answer", "loose"),
    [("Sure!\nno comma", True), ("Sure, yes\nno comma", True), ("a, b\nc, d\ne, f", False)],
)
def test_loosely_the_first_or_last_line_may_be_something_else(answer: str, loose: bool) -> None:
    assert followed("punctuation:no_comma", {}, answer)[1] is loose


def test_loosely_the_asterisks_of_markdown_may_go_and_an_empty_answer_follows_nothing() -> None:
    end = {"end_phrase": "Bye."}
    assert followed("startend:end_checker", end, "x **Bye.**") == (False, True)
    assert followed("punctuation:no_comma", {}, " \n") == (False, False)


def test_an_answer_is_scored_by_all_its_instructions_and_details_are_shares() -> None:
    kinds = [["punctuation:no_comma", "startend:quotation"]] * 3 + [None]
    arguments: list[Any] = [[{}, {"num_words": None}]] * 3 + [None]  # tables fill up with None
    answers = ['"all"', "none", '"both"\n,', ""]
    numbers = scored(answers, instruction_id_list=kinds, kwargs=arguments)
    assert [one["score"] for one in numbers] == [1, 0, 0, None]
    assert numbers[1] == {
        "score": 0,
        "prompt_strict": 0,
        "prompt_loose": 0,
        "instruction_strict": 0.5,
        "instruction_loose": 0.5,
    }
    assert (numbers[2]["instruction_strict"], numbers[2]["prompt_loose"]) == (0, 1)


@pytest.mark.parametrize(
    ("kinds", "arguments", "sentence"),
    [
        (["punctuation:no_coma"], [{}], 'no kind "punctuation:no_coma". Did you mean "punctuation'),
        (["startend:end_checker"], [{"end": "x"}], "needs end_phrase, and has end."),
        (["startend:quotation"], [{"n": 1}], "needs no arguments, and has n."),
        (["startend:quotation"], [], "1 kinds have 0 blocks of arguments"),
        (
            ["keywords:frequency"],
            [{"keyword": "a", "relation": "at most", "frequency": 1}],
            'not "at most"',
        ),
    ],
)
def test_what_cannot_be_checked_is_a_sentence_and_the_other_rows_are_kept(
    kinds: list[str], arguments: list[Any], sentence: str
) -> None:
    path = shelf.find("reward/instructions.py")
    assert path is not None
    told: list[tuple[int, str]] = []
    numbers = rewards.call(
        shelf.load(path, Reward)(),
        [[{"role": "user", "content": f"Write a poem{end}"}] for end in ".!"],
        [[{"role": "assistant", "content": "x"}]] * 2,
        {"instruction_id_list": [kinds, ["punctuation:no_comma"]], "kwargs": [arguments, [{}]]},
        failed=lambda place, why: told.append((place, why)),
    )
    assert [one["score"] for one in numbers] == [None, 1]
    [(place, why)] = told
    assert place == 0 and "Write a poem." in why and sentence in why


def test_a_message_that_only_calls_a_tool_follows_nothing() -> None:
    call: Any = {"role": "assistant", "content": None, "tool_calls": [{"function": {}}]}
    [numbers] = scored([call], instruction_id_list=[["punctuation:no_comma"]], kwargs=[[{}]])
    assert numbers["score"] == numbers["prompt_loose"] == 0


def test_the_columns_are_named_where_they_are_missing() -> None:
    with pytest.raises(StageFailed, match='no column "kwargs", only instruction_id_list'):
        scored(["x"], instruction_id_list=[["startend:quotation"]])


ANSWERS = {
    "letter": """<<A letter to a friend>>

Dear [name], I write from [city] with news of the *garden* and the **orchard**.

* The apples are ripe. Dr. Green came by at 5 p.m. to see them!
* The pears are not; they need a week or two.
* Is NASA's rocket still on the news? I'd like to know.

SECTION 1
We walked along the river and talked about the weather, the war, and old friends.
SECTION 2
My answer is maybe. There is more to say... but not today.

P.S. Bring a coat. P.P.S. And boots.
Is there anything else I can help with?""",
    "lines": "sure, here it is:\n"
    "the weather is fine and we walk along the river with our friends\nbye",
    "capitals": '"THE WEATHER IS FINE AND WE WALK ALONG THE RIVER WITH OUR FRIENDS IN THE U.S."',
    "json": '```json\n{"story": "One day - a rainy one - the story began.", "words": 300}\n```',
    "german": "Das Wetter ist heute schön. Wir gehen am Fluss entlang und reden *viel*!\n***\nEnde",
}


def prompts() -> list[dict[str, Any]]:
    """IFEval's, but for two that ask for the letters # and !, for which it checks a random one."""
    path = Path(str(DATA), "ifeval/input_data.jsonl")
    rows = list(data.read(data.Source(path=str(path)), Prompts, None))
    return [
        row for row in rows if all(one.get("letter") not in ("#", "!") for one in row["kwargs"])
    ]


@pytest.mark.skipif(DATA is None, reason="ALIGN_DATA is not set")
@pytest.mark.parametrize(
    ("name", "followed_"),  # by lm-eval 0.4.13 with NLTK 3.10 and a seeded langdetect
    [
        ("letter", [99, 101, 234, 237]),
        ("lines", [54, 73, 158, 225]),
        ("capitals", [110, 110, 280, 280]),
        ("json", [55, 56, 139, 141]),
        ("german", [63, 90, 200, 240]),
    ],
)
def test_verdicts_on_every_published_prompt_are_those_of_the_published_checker(
    name: str, followed_: list[int]
) -> None:
    rows = prompts()
    kinds = [row["instruction_id_list"] for row in rows]
    answers = [ANSWERS[name]] * len(rows)
    numbers = scored(answers, instruction_id_list=kinds, kwargs=[row["kwargs"] for row in rows])
    prompt, instruction = [1] * len(rows), list(map(len, kinds))
    totals = [
        sum((one[f"{level}_{how}"] or 0) * n for one, n in zip(numbers, weights, strict=True))
        for level, weights in (("prompt", prompt), ("instruction", instruction))
        for how in ("strict", "loose")
    ]
    assert totals == pytest.approx(followed_)


@pytest.mark.skipif(DATA is None, reason="ALIGN_DATA is not set")
def test_every_published_prompt_is_checked_and_its_constructed_answer_found_to_follow() -> None:
    text = Path(str(DATA), "ifeval/input_data.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    asked = [
        (row, kind, {key: value for key, value in kwargs.items() if value is not None})
        for row in rows
        for kind, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    assert (len(rows), len(asked)) == (541, 834)
    assert {kind for _, kind, _ in asked} == set(KINDS)
    for kind, one, follows in [
        ("combination:repeat_prompt", "prompt_to_repeat", "{} Gladly."),
        ("startend:end_checker", "end_phrase", "Gladly. {}"),
        ("detectable_content:postscript", "postscript_marker", "Gladly.\n\n{} More."),
    ]:
        for row, _, kwargs in [one for one in asked if one[1] == kind]:
            assert followed(kind, kwargs, follows.format(kwargs[one]))[0], row["key"]
    for relation in ("at least", "less than"):
        for _, kind, kwargs in asked:
            if kind == "length_constraints:number_words" and kwargs["relation"] == relation:
                n, enough = kwargs["num_words"], relation == "at least"
                assert followed(kind, kwargs, "word " * n)[0] is enough
                assert followed(kind, kwargs, "word " * (n - 1))[0] is not enough
