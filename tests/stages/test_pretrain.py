"""Next-token training of a new model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import chat, models
from align.artifacts import Model
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.stages.pretrain import Pretrain
from align.vocabulary import Tokenizer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TRAINER = {"max_steps": 30, "learning_rate": 1e-2, "max_length": 32}


@pytest.fixture
def stage(write_rows: Callable[[str, list[dict[str, Any]]], Path]) -> Pretrain:
    texts = [{"text": f"{a} and {b} make {a + b}. " * 3} for a in range(8) for b in range(8)]
    data = [Source(path=str(write_rows("text.jsonl", texts)))]
    return Pretrain(
        data=data,
        config=LLAMA,
        tokenizer=Tokenizer(vocab_size=300),
        trainer=TRAINER,
        batch_size=8,
        seed=3,
    )


def run(stage: Pretrain, path: Path) -> tuple[Model, Out]:
    path.mkdir()
    out = Out(path, path.parent / "cache")
    return stage.run(out), out


def test_a_new_model_learns_its_text_and_can_be_loaded(stage: Pretrain, tmp_path: Path) -> None:
    made, out = run(stage, tmp_path / "a")
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    tokenizer = models.tokenizer(made)
    assert lines[0]["loss"] == pytest.approx(math.log(len(tokenizer)), rel=0.02)
    assert lines[-1]["loss"] < 3
    assert 261 < len(tokenizer) == models.load(made).config.vocab_size <= 300
    assert out.counts["rows"]["n"] == 64
    assert json.loads((made.path / "model.json").read_text())["base"]["path"] == "model"


def test_the_tokenizer_has_a_template_and_tokens_of_its_own(
    stage: Pretrain, tmp_path: Path
) -> None:
    tokenizer = stage.tokenizer.train(["one two", "three 345"])
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    dialog = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo 12"}]
    encoded = chat.encode_one(tokenizer, dialog)
    text = "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo 12<|im_end|>\n"
    assert tokenizer.decode(encoded.ids) == text
    assert chat.end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer("345").input_ids == tokenizer.convert_tokens_to_ids(["<s>", "3", "4", "5"])


def test_documents_are_cut_into_equal_chunks_and_nothing_but_the_end_is_left_out(
    stage: Pretrain, tmp_path: Path
) -> None:
    texts = [f"{a} and {b} make {a + b}. " * 3 for a in range(8) for b in range(8)]
    tokenizer = stage.tokenizer.train(texts)
    out = Out(tmp_path, tmp_path)
    chunks = [row["input_ids"] for row in stage._chunks(stage.data, tokenizer, 50, out)]
    assert {len(chunk) for chunk in chunks} == {50}
    text = "".join(f"<s>{text}</s>" for text in texts)
    whole = tokenizer(text, add_special_tokens=False).input_ids
    flat = [token for chunk in chunks for token in chunk]
    assert flat == whole[: len(flat)]
    assert len(whole) - len(flat) == out.counts["dropped.tokens_left_over"]["n"] < 50


def test_the_same_settings_make_the_same_bytes(stage: Pretrain, tmp_path: Path) -> None:
    stage = Pretrain(**{**dict(stage), "trainer": {**TRAINER, "max_steps": 2}})
    for name in ("a", "b"):
        run(stage, tmp_path / name)
    for file in ("model/model.safetensors", "model/tokenizer.json", "model/config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_model_is_trained_further(stage: Pretrain, tmp_path: Path, tiny_model: Path) -> None:
    base = Model(tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None})
    settings = {**dict(stage), "config": None, "model": base, "trainer": {"max_steps": 3}}
    made, _ = run(Pretrain(**settings), tmp_path / "a")
    assert len(models.tokenizer(made)) == 263


def test_a_vocabulary_that_is_too_small_is_a_sentence() -> None:
    with pytest.raises(StageFailed, match="vocab_size 200 is too small: 256 bytes and 5 special"):
        Tokenizer(vocab_size=200).train(["a"])


def test_it_takes_a_config_or_a_model(stage: Pretrain) -> None:
    assert list(stage.check()) == []
    assert [key for key, _ in Pretrain(data=stage.data).check()] == ["config"]


def test_less_text_than_a_chunk_is_a_sentence(
    stage: Pretrain, tmp_path: Path, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    short = [Source(path=str(write_rows("short.jsonl", [{"text": "Hi"}])))]
    with pytest.raises(StageFailed, match=r"0 rows are left of the data.*trainer\.max_length"):
        run(Pretrain(**{**dict(stage), "data": short}), tmp_path / "a")
