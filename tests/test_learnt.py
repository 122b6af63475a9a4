"""Rows as their stages train on them: which tokens `align view` says are learnt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import models, recipe
from align.artifacts import Model
from align.out import Out
from align.reporting import learnt, view
from align.reporting.learnt import LEARNT, NLL, READ, SCORED, Part, Seen

Row = dict[str, Any]
Read = Callable[..., list[Seen]]

DIALOG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour, s'il te plaît."},
    {"role": "assistant", "content": "Red ❤️."},
    {"role": "user", "content": "And one more?"},
    {"role": "assistant", "content": "Blue\n\nor so."},
]
PAIR = {"prompt": DIALOG[1:4], "chosen": "Blue.", "rejected": "No more"}


@pytest.fixture
def read(
    tmp_path: Path,
    tiny_model: Path,
    write_rows: Callable[[str, list[Row]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Read:
    """The rows of a stage of that kind as it would be trained on them, before it is."""
    monkeypatch.chdir(tmp_path)

    def rows(kind: str, rows: list[Row], **settings: Any) -> list[Seen]:
        write_rows("data.jsonl", rows)
        more = "".join(f", {name}: {value}" for name, value in settings.items())
        Path("r.yaml").write_text(
            f"base: {tiny_model}\nstages:\n"
            f"  first: {{use: sft, model: base, data: data.jsonl}}\n"
            f"  last: {{use: {kind}, model: first, data: data.jsonl{more}}}\n"
        )
        plan = recipe.read("r.yaml", ["stages.first.trainer.max_steps=1"])
        one = plan.stages["last"]
        type_, found = view.rows_of(plan, one)
        see = learnt.see(one, type_)
        assert see is not None and not one.artifact.path.exists()
        return [see(row) for row in found]

    return rows


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    spec = {"base": {"path": str(tiny_model)}, "quantization": None, "adapter": False}
    return models.tokenizer(Model(tiny_model, spec=spec))


def said(part: Part, *marks: str) -> str:
    """The text of the tokens of these marks."""
    return "".join(token.text for token in part.tokens if token.mark in marks)


def test_of_a_conversation_the_answers_are_learnt_with_their_ends(read: Read) -> None:
    [seen] = read("sft", [{"messages": DIALOG}])
    [part] = seen.parts
    assert said(part, LEARNT) == "Red ❤️.<|end|>Blue\n\nor so.<|end|>"
    assert said(part, READ, LEARNT).startswith("<s><|system|>Be brief.<|end|>\n<|user|>Name a")
    assert {token.text for token in part.tokens if token.special} == {
        "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
    }  # fmt: skip
    assert (seen.note, seen.left_out) == ("", False)
    [whole] = read("sft", [{"messages": DIALOG}], train_on="all")
    assert {token.mark for token in whole.parts[0].tokens} == {LEARNT}


def test_the_ids_and_marks_are_the_labels_that_sft_trains_on(read: Read, tokenizer: Any) -> None:
    [seen] = read("sft", [{"messages": DIALOG}])
    stage: Any = recipe.read("r.yaml").stages["last"].stage
    [row] = stage._rows(stage.data, tokenizer, 256, Out(Path(), Path(), main=False))
    each = [(i, token.mark) for token in seen.parts[0].tokens for i in token.ids]
    assert [i for i, _ in each] == row["input_ids"]
    assert [i if mark == LEARNT else -100 for i, mark in each] == row["labels"]
    assert seen.row()["learnt"] == sum(label != -100 for label in row["labels"])


def test_an_answer_of_weight_0_is_read_only(read: Read) -> None:
    first = [*DIALOG[:2], {**DIALOG[2], "weight": 0}, *DIALOG[3:]]
    [seen] = read("sft", [{"messages": first}])
    assert said(seen.parts[0], LEARNT) == "Blue\n\nor so.<|end|>"
    assert "Red ❤️.<|end|>" in said(seen.parts[0], READ)


def test_the_marks_of_a_pair_are_the_masks_that_dpo_trains_with(read: Read, tokenizer: Any) -> None:
    losses = {"trainer": "{loss_type: [sigmoid, sft], loss_weights: [1.0, 0.2]}"}
    [seen] = read("dpo", [PAIR], mask_format="true", **losses)
    prompt, chosen, rejected = seen.parts
    assert said(chosen, LEARNT) == "Blue." and said(chosen, NLL) == "<|end|>"
    assert said(rejected, LEARNT) == "No more" and said(rejected, READ) == "<|end|>\n"

    from align.data import mix
    from align.preference import PairCollator, pairs

    one = recipe.read("r.yaml").stages["last"]
    kind, _ = view.rows_of(recipe.read("r.yaml"), one)
    rows = mix(one.stage.data, kind, 42, None)  # type: ignore[attr-defined]
    batch = PairCollator(tokenizer.pad_token_id, mask_format=True)(
        list(pairs(rows, tokenizer, 256, Out(Path(), Path(), main=False)))
    )
    for line, answer in enumerate((chosen, rejected)):
        tokens = [(i, t.mark) for part in (prompt, answer) for t in part.tokens for i in t.ids]
        length = len(tokens)
        assert batch["input_ids"][line, :length].tolist() == [i for i, _ in tokens]
        marks = [mark for _, mark in tokens]
        assert batch["completion_mask"][line, :length].tolist() == [m == LEARNT for m in marks]
        if answer is chosen:
            nll = [mark in (LEARNT, NLL) for mark in marks]
            assert batch["nll_mask"][line, :length].tolist() == nll


def test_without_masks_of_formats_the_ends_of_both_answers_are_learnt(read: Read) -> None:
    [seen] = read("dpo", [PAIR])
    assert [said(part, LEARNT) for part in seen.parts] == ["", "Blue.<|end|>", "No more<|end|>"]


def test_a_reward_model_reads_its_score_at_the_last_token(read: Read) -> None:
    [seen] = read("reward_model", [PAIR])
    assert [said(part, SCORED) for part in seen.parts] == ["", "\n", "\n"]
    assert seen.count(SCORED) == 2
    ranking = {"prompt": "Name a colour.", "ranked": ["Red", "Blue", "No"]}
    [seen] = read("reward_model", [ranking])
    assert [part.name for part in seen.parts] == ["prompt", "1.", "2.", "3."]
    best_of_n = {"prompt": "Name a colour.", "chosen": ["Red"], "rejected": ["No", "Never"]}
    [seen] = read("reward_model", [best_of_n])
    assert [part.name for part in seen.parts] == ["prompt", "chosen", "rejected", "rejected"]


def test_what_is_too_long_is_said(read: Read) -> None:
    limit = {"trainer": "{max_length: 60}"}
    [seen] = read("sft", [{"messages": DIALOG}], **limit)
    assert seen.left_out and seen.note == "It is left out: 91 tokens, and 60 fit."
    assert said(seen.parts[0], LEARNT).startswith("Red")  # and shown all the same
    [seen] = read("sft", [{"messages": DIALOG}], too_long="turns", **limit)
    assert seen.note.startswith("Its oldest 2 messages are left out: it has 91 tokens")
    assert not seen.left_out and said(seen.parts[0], LEARNT) == "Blue\n\nor so.<|end|>"
    [seen] = read("sft", [{"messages": DIALOG}], too_long="stop", **limit)
    assert seen.left_out and seen.note.startswith("The stage stops here: Row ")
    [seen] = read("dpo", [{**PAIR, "rejected": "x" * 60}], **limit)
    assert seen.left_out and "and 60 fit" in seen.note and len(seen.parts) == 3
    ranking = {"prompt": "Name a colour.", "ranked": ["Red", "Blue", "x" * 60]}
    [seen] = read("reward_model", [ranking], **limit)
    assert seen.note.startswith("Pairs with its longest answer are left out")


def test_the_pieces_of_a_text_are_the_text_and_characters_are_whole(tokenizer: Any) -> None:
    text = "<|user|>  é❤️ 漢\n\n<|end|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = list(learnt.pieces(tokenizer, ids))
    assert "".join(piece for piece, _ in found) == tokenizer.decode(ids) == text
    assert sum(n for _, n in found) == len(ids)
    assert ("é", 2) in found and ("漢", 3) in found and ("<|user|>", 1) in found
    broken = tokenizer("a漢b", add_special_tokens=False).input_ids
    del broken[2]  # and a character that is none
    assert sum(n for _, n in learnt.pieces(tokenizer, broken)) == len(broken)
    assert next(learnt.pieces(tokenizer, broken)) == ("a", 1)
