"""The final answer: which number or letter a text gives."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align import rewards, shelf
from align.settings import Reward
from align.verifiers.answers import letter, number

DATA = Path(os.environ.get("ALIGN_DATA", "none"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="ALIGN_DATA is not set")


def score(answers: list[Any], right: list[Any], **settings: Any) -> list[float | None]:
    path = shelf.find("reward/answer.py")
    assert path is not None
    reward = shelf.load(path, Reward)(**settings)
    assert isinstance(reward, Reward)
    said = [[a if isinstance(a, dict) else {"role": "assistant", "content": a}] for a in answers]
    prompts: list[Any] = [[{"role": "user", "content": "?"}] for _ in answers]
    return [one["score"] for one in rewards.call(reward, prompts, said, {"answer": right})]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The total is $1,000.00.", 1000),
        ("so 1,000,000.5 dollars", 1_000_000.5),
        ("1{,}000", 1000),
        ("it is -5", -5),
        ("a loss of -$5", -5),
        ("a change of \N{MINUS SIGN}5", -5),
        ("pages 10-15", 15),
        ("He has 10-5=5.", 5),
        ("half of it: .5", 0.5),
        ("50%", 50),
        ("3/4", 0.75),
        ("1 1/2 cups", 1.5),
        (r"1\frac{1}{2}", 1.5),
        ("5 / 0", None),
        ("25 cm^2", 25),
        ("18 m2 of x_1", 18),
        ("2e3", 2000),
        ("1e999", None),
        ("no idea", None),
    ],
)
def test_a_number_is_a_value_however_it_is_written(text: str, value: float | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 eggs, then 4: 7.", 7),
        ("The answer is 42. I needed 3 steps.", 42),
        ("The answer is 3 + 4 = 7.", 7),
        ("Answer: She sells 9 of 16 eggs. At $2 she makes 9 * 2 = 18", 18),
        ("Answer: 16 - 3 - 4 = 9 eggs. At $2 she makes 9 * 2 = 18", 18),
        ("Solution: She has 3 and buys 4. So 7", 7),
        ("#### Step 3: add\n12 + 6 = 18", 18),
        ("#### 2. Add\n12 + 6 = 18", 18),
        ("The final answer is: **18 dollars** for 2 days", 18),
        ("Answer: 18 (16-3-4=9, 9*2)", 18),
        ("The answer was 5, but I erred. The answer is 6, by 1 more.", 6),
        ("The answer is in dollars.\nIt is 18", 18),
        ("#### 42\nin 3 steps", 42),
        (r"So $\boxed{\frac{3}{4}}$ of 5.", 0.75),
        (r"\boxed{18\text{ dollars}} in 2 days. \boxed{4", 18),
    ],
)
def test_the_number_is_what_is_said_to_be_the_answer_else_the_last(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("The answer is (B).", "B"),
        ("**B**", "B"),
        ("B) because A is wrong", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B) Kidney", "B"),
        ("I choose option B, although A is close", "B"),
        ("The answer is B. Option C is wrong, for D is not.", "B"),
        ("B\n\nA is out, and I am sure.", "B"),
        ("Option A is wrong. The correct answer would be option D.", "D"),
        ("(A) is false; (B) is true", "B"),
        ("The answer is A because it is hot", "A"),
        ("Wait, the answer is A. No: the answer is C.", "C"),
        ("A) Bladder: no.\nB) Kidney: yes.\nSo it is B", "B"),
        (r"Therefore, the answer is \(\boxed{\text{D}}\), not A", "D"),
        ("the answer is (d)", "D"),
        ("answer: **c**", "C"),
        ("A or C? C", "C"),
        ("A cell is small, I think. So B", "B"),
        ("The best answer is A plant.", None),
        ("Because", None),
    ],
)
def test_the_letter_is_the_one_chosen(text: str, option: str | None) -> None:
    assert letter(text) == option


def test_a_message_that_only_calls_a_tool_is_wrong() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert score([call], ["1"]) == score([call], ["B"], kind="letter") == [0]
    assert score([call], ["yes"], kind="words") == [0]


@real
def test_four_models_solutions_of_gsm8k_are_judged_as_was_recorded() -> None:
    path = DATA / "gsm8k/example_model_solutions.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [(row, value) for row in rows for value in row.values() if isinstance(value, dict)]
    assert len(found) == 4 * 1319
    right = [row["ground_truth"] for row, _ in found]
    recorded = [float(value["is_correct"]) for _, value in found]
    assert score([value["solution"] for _, value in found], right) == recorded
    # said in other words, and with other numbers after it
    said = [f"The answer is ${number(value['solution'])}. I took 3 steps." for _, value in found]
    assert score(said, right) == recorded


FORMS = [
    "The answer is ({x}).",
    "**{x}**",
    "{x}",
    "{x}) {text}",
    "{x}. {text}\n\n({y}) is wrong: {other}",
    "{x}) because {y} is wrong",
    "Answer: {x}",
    "I choose option {x}. {other} is no good choice.",
    "{y}) {other}: no.\n{x}) {text}: yes.\nThe correct answer is {x}: {text}",
    "$\\boxed{{{x}}}$, and not {y}",
]


def questions() -> Iterator[tuple[dict[str, str], str]]:
    """Options by letter, and the right one: some questions of ARC-Challenge and of all of MMLU."""
    for line in (DATA / "arc_challenge/arc_challenge_test.jsonl").read_text().splitlines()[::5]:
        row = json.loads(line)
        options = {one["label"]: one["text"] for one in row["options"]}
        if row["answer"] in options and "A" in options:
            yield options, row["answer"]
    for path in sorted((DATA / "mmlu/test").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in list(csv.reader(file))[::50]:
                yield dict(zip("ABCD", row[1:5], strict=True)), row[5]


@real
@pytest.mark.parametrize("form", FORMS)
def test_the_usual_forms_of_an_answer_to_a_choice_are_read_whatever_the_options_say(
    form: str,
) -> None:
    said, right, expected = [], [], []
    for options, key in questions():
        for x, y in zip(options, [*options][1:] + [*options][:1], strict=True):
            said.append(form.format(x=x, text=options[x], y=y, other=options[y]))
            right.append(key)
            expected.append(float(x == key))
    found = score(said, right, kind="letter")
    wrong = [text for text, a, b in zip(said, found, expected, strict=True) if a != b]
    assert wrong == []
