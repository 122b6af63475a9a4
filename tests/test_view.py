"""What `align view --text` prints, when a stage is made, while it runs, and when it is not."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import recipe, store
from align.cli import main

Row = dict[str, Any]
Lines = Callable[..., list[str]]

RECIPE = """
base: {model}
stages:
  sample: {{model: base, prompts: p.jsonl, n: 2}}
  score: {{samples: sample, rewards: [reward/length.py]}}
  reject: {{scores: score}}
  pair: {{scores: score}}
  sft: {{model: base, data: reject}}
"""


@pytest.fixture
def view(
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Lines:
    """The lines that `align view r.yaml --text` prints for those arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("p.jsonl").write_text('{"prompt": "Name a colour."}\n')
    Path("r.yaml").write_text(RECIPE.format(model=tiny_model))

    def lines(*arguments: str, code: int = 0) -> list[str]:
        assert main(["view", "r.yaml", "--text", *arguments]) == code
        shown = capsys.readouterr()
        return (shown.err if code else shown.out).splitlines()

    return lines


def made(stage: str, rows: list[Row], partial: bool = False) -> Path:
    """Write rows as what a stage has made, or has made so far."""
    path = recipe.read("r.yaml").stages[stage].artifact.path
    path = store.partial(path) if partial else path
    (path / "data").mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "data" / "shard-00000.jsonl").write_text(text)
    return path


def answer(index: int, text: str, **more: Any) -> Row:
    row = {"index": index, "text": text, "token_ids": [1] * len(text), "logprob": -2.5}
    return {**row, "finish": "stop", **more}


def asked(name: str, *completions: Row) -> Row:
    prompt = [{"role": "user", "content": "Name a colour."}]
    return {"id": name, "prompt": prompt, "columns": {}, "completions": completions}


def rated(score: float | None, **members: float) -> Row:
    return {"score": score, "scores": members or {"length": score}}


def test_answers_are_shown_best_first_with_their_scores(view: Lines) -> None:
    rows = [
        asked(
            "a",
            answer(0, "Red", **rated(0.25)),
            answer(1, "Blue, or\nso I think", **rated(0.5), finish="length"),
            answer(2, "?", **rated(None)),
        )
    ]
    made("score", rows)
    assert view("score") == [
        "score: Scored, done",
        "",
        "a",
        "  user: Name a colour.",
        "  answer  score  tokens  end",
        "       1  0.500      19  cut  Blue, or ⏎ so I think",
        "       0  0.250       3       Red",
        "       2      –       1       ?",
    ]


def test_members_and_draws_have_columns_and_long_texts_are_cut_to_the_terminal(
    view: Lines,
) -> None:
    made("score", [asked("a", answer(0, "x" * 200, **rated(1.5, model=1.0, length=0.5), draw=1))])
    head, line = view("score")[-2:]
    assert head.split() == ["answer", "score", "model", "length", "tokens", "end", "draw"]
    assert line.split()[:6] == ["0", "1.500", "1.000", "0.500", "200", "1"]
    assert len(line) == 80 and line.endswith("x…")


def test_details_of_a_reward_are_shown_of_one_row_only(view: Lines) -> None:
    numbers = {"length": 1.0, "length.words": 7.0, "model": 2.0}
    made("score", [asked("a", answer(0, "Red", **rated(3.0, **numbers)))])
    assert "length.words" not in view("score")[-2]
    assert "length.words" in view("score", "--id", "a")[-2]


def test_answers_that_only_some_rewards_have_seen_show_what_is_there(view: Lines) -> None:
    seen = [answer(0, "Red", scores={"model": 0.5}), {**answer(1, "Blue"), "logprob": None}]
    made("score", [asked("a", {**seen[1], "scores": {"model": None}}, seen[0])], partial=True)
    assert [line.split() for line in view("score")[-3:]] == [
        ["answer", "logprob", "model", "tokens", "end"],
        ["0", "-2.500", "0.500", "3", "Red"],
        ["1", "–", "–", "4", "Blue"],
    ]


def test_samples_that_have_no_score_yet_show_what_the_model_thought_of_them(view: Lines) -> None:
    made("sample", [asked("a", answer(0, "Red"), answer(1, "Blue"))])
    assert [line.split() for line in view("sample")[-3:]] == [
        ["answer", "logprob", "tokens", "end"],
        ["0", "-2.500", "3", "Red"],
        ["1", "-2.500", "4", "Blue"],
    ]


def test_while_a_stage_runs_what_is_finished_is_shown_and_how_far_it_is(view: Lines) -> None:
    path = made("score", [asked("a", answer(0, "Red", **rated(0.5)))], partial=True)
    state = {"done": 2, "total": 8, "unit": "prompts", "note": "mean 0.5", "left": 90.0}
    (path / "progress.json").write_text(json.dumps(state))
    lines = view("score")
    assert lines[0] == "score: Scored, half done, 2/8 prompts, mean 0.5, 2 min left"
    assert lines[-1].endswith("Red")


def test_one_row_is_shown_whole_by_its_id_and_rows_are_found_by_what_they_say(view: Lines) -> None:
    said = [asked(f"{i}", answer(0, f"First {i}\nsecond", **rated(0.5))) for i in range(9)]
    made("score", said)
    assert view("score", "--id", "7")[-2:] == [
        "       0  0.500      14       First 7",
        "                              second",
    ]
    assert [line for line in view("score", "--search", "FIRST 8") if "First" in line]
    assert sum("First" in line for line in view("score", "-n", "3")) == 3
    assert sum("First" in line for line in view("score")) == 5


def test_pairs_and_what_was_kept_are_shown(view: Lines) -> None:
    prompt = [{"role": "user", "content": "Name a colour."}]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("Red", "No"))
    pair = {"id": "a", "prompt": prompt, "chosen": good, "rejected": bad}
    made("pair", [{**pair, "chosen_score": 2.0, "rejected_score": -1.0}])
    assert view("pair")[-2:] == ["  chosen    2.000  Red", "  rejected  -1.000  No"]
    made("reject", [{"id": "a/0", "prompt_id": "a", "messages": [*prompt, *good], "score": 2.0}])
    assert view("reject", "--id", "a")[-2:] == ["  assistant: Red", "  score  2.000"]


def test_rows_of_every_form_that_stages_take_are_shown(view: Lines) -> None:
    both = "\n\nHuman: Name a colour.\n\nAssistant: {}"
    rows = [
        {"prompt": "Name a colour.", "chosen": "Red", "rejected": "No"},
        {"chosen": both.format("Red"), "rejected": both.format("No")},
        {"prompt": "Name a colour.", "chosen": "Red", "rejected": "Red"},
    ]
    made("pair", rows)
    shown = ["  user: Name a colour.", "  chosen    Red", "  rejected  No", ""]
    lines = view("pair")
    assert lines[3:7] == lines[8:12][:3] + [""] == shown
    assert lines[-1].startswith('  { ⏎ "prompt": "Name a colour."')  # is left out in training


DIALOG = [
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red"},
]


def test_of_a_stage_that_trains_what_it_learns_to_say_is_marked(
    view: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("reject", [{"id": "a/0", "prompt_id": "a", "messages": DIALOG, "score": 2.0}])
    head = ["sft (its data): Conversations, not made yet", "", "a/0"]
    assert view("sft") == [
        *head,
        "  24 tokens, 4 learnt > (17%)",
        "    <s><|user|>Name a colour.<|end|> ⏎ <|assistant|>",
        "  > Red<|end|>",
    ]
    assert view("sft", "--tokens")[-3:] == [
        "    <s>│<|user|>│N│a│m│e│·│a│·│c│o│l│o│u│r│.│<|end|>│⏎│<|assistant|>",
        "  > R│e│d│<|end|>",
        "    ⏎",
    ]
    monkeypatch.setenv("COLUMNS", "36")
    assert view("sft", "--tokens")[-4:-1] == [
        "    <s>│<|user|>│N│a│m│e│·│a│·│c│o│l",
        "    o│u│r│.│<|end|>│⏎│<|assistant|>",
        "  > R│e│d│<|end|>",
    ], "and nothing is cut"


def test_on_a_terminal_what_is_learnt_has_a_colour_too_unless_nobody_wants_one(
    view: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("reject", [{"id": "a/0", "prompt_id": "a", "messages": DIALOG}])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert view("sft")[-1] == "  > \x1b[32mRed<|end|>\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert view("sft")[-1] == "  > Red<|end|>"


def test_pairs_are_shown_with_the_masks_of_both_losses(view: Lines) -> None:
    prompt, good, bad = DIALOG[:1], DIALOG[1:], [{"role": "assistant", "content": "No"}]
    made("pair", [{"id": "a", "prompt": prompt, "chosen": good, "rejected": bad}])
    with Path("r.yaml").open("a") as file:
        losses = "{loss_type: [sigmoid, sft], loss_weights: [1.0, 0.2]}"
        file.write(f"  dpo: {{model: base, data: pair, mask_format: true, trainer: {losses}}}\n")
        file.write("  late: {use: dpo, model: sft, data: pair, trainer: {max_length: 21}}\n")
    assert view("dpo")[3:] == [
        "  28 tokens, 5 learnt > (18%), 1 learnt in the NLL term alone ~",
        "  prompt     <s><|user|>Name a colour.<|end|> ⏎ <|assistant|>",
        "  chosen   > Red",
        "           ~ <|end|>",
        "  rejected > No",
        "             <|end|>",
    ]
    assert "  ! It is left out: 24 tokens, and 21 fit." in view("late")


def test_before_a_tokenizer_is_made_it_is_said_what_makes_it(view: Lines) -> None:
    Path("t.jsonl").write_text('{"text": "Red"}\n')
    Path("d.jsonl").write_text(json.dumps({"messages": DIALOG}) + "\n")
    Path("r.yaml").write_text(
        "stages:\n  pre: {use: pretrain, config: {model_type: llama}, data: t.jsonl}\n"
        "  sft: {model: pre, data: d.jsonl}\n  late: {use: sft, model: sft, data: d.jsonl}\n"
    )
    assert view("late", code=1) == [
        "What late reads is not known before pre is made, which makes the tokenizer. Make it: "
        "align run RECIPE pre"
    ]


def test_of_a_stage_that_removes_rows_both_kinds_are_shown(view: Lines) -> None:
    path = made("reject", [{"id": f"{i}", "messages": DIALOG} for i in range(9)])
    said = [["user", "What is 6 x 7?"], ["assistant", "42"]]
    facts = {"task": "gsm8k", "item": "3", "gram": "what is 6 x 7"}
    rows = [{"id": "r1", "reason": "contamination", "facts": facts, "said": said}]
    rows += [{"id": "r2", "reason": "near", "facts": {"repeats": "8"}, "said": said}]
    (path / "removed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert view("reject", "-n", "1")[1:] == [
        "",
        "0",
        "  user: Name a colour.",
        "  assistant: Red",
        "",
        "removed:",
        "",
        "r1",
        "  - contamination: task gsm8k, item 3, gram what is 6 x 7",
        "  user: What is 6 x 7?",
        "  assistant: 42",
    ]
    assert view("reject", "--id", "r2")[4:6] == ["r2", "  - near: repeats 8"]
    assert view("reject", "--search", "x 7")[-6:-4] == ["  assistant: 42", ""]


def test_what_a_model_said_cannot_move_the_cursor(view: Lines) -> None:
    made("sample", [asked("a", answer(0, "\x1b[2J\x9b1mred\r\x07"))])
    assert view("sample")[-1].endswith(r"\x1b[2J\x9b1mred\x0d\x07")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scor"], 'r.yaml: There is no stage "scor". Did you mean "score"?'),
        (["score"], "r.yaml: stages.score: Nothing is made yet. Make it: align run r.yaml score"),
        (["sft"], "r.yaml: stages.sft: Its data is not made yet. Make it: align run r.yaml reject"),
        (["sample", "--id", "b"], 'r.yaml: stages.sample: No row here has the id "b".'),
        (["sample", "--search", "sea"], 'r.yaml: stages.sample: No row here has "sea".'),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(
    arguments: list[str], message: str, view: Lines
) -> None:
    made("sample", [asked("a", answer(0, "Red"))])
    assert view(*arguments, code=2) == [message]


def test_a_reader_that_has_seen_enough_ends_it_quietly(view: Lines) -> None:
    made("sample", [asked(f"{i}", answer(0, "Red" * 50)) for i in range(3000)])
    command = f"{sys.executable} -m align.cli view r.yaml --text sample -n 3000 | head -n 3"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("sample: Samples, done") and done.stderr == ""
