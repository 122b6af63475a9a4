"""A prompt read once for its answers gives the scores of whole dialogs, on every architecture."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from align.scoring import prefixes, scores

SHAPE: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_labels": 1, "pad_token_id": 0,
}  # fmt: skip
HEADS = {**SHAPE, "head_dim": 8}


def made(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3)  # small weights hardly look at what came before
    return network


def dialogs() -> tuple[list[list[int]], list[int]]:
    """Rows and where their answers begin: 9 prompts of 3 to 60 tokens with 1 to 8 answers."""
    draw = random.Random(0)
    rows, starts = [], []
    for _ in range(9):
        prompt = [draw.randrange(1, 99) for _ in range(draw.randrange(3, 60))]
        for _ in range(draw.randrange(1, 9)):
            rows.append(prompt + [draw.randrange(1, 99) for _ in range(draw.randrange(1, 40))])
            starts.append(len(prompt))
    return rows, starts


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE),
        Qwen2Config(**SHAPE),
        Qwen3Config(**HEADS),
        MistralConfig(**SHAPE, sliding_window=16),
        Gemma2Config(**HEADS, sliding_window=16),
    ],
    ids=lambda config: config.model_type,
)
def test_a_prompt_read_once_gives_the_scores_of_whole_dialogs(config: PretrainedConfig) -> None:
    network = made(config)
    rows, starts = dialogs()
    with torch.inference_mode():
        alone = [network(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert len(set(alone)) == len(rows)
    shared = sum(len(members) for _, members in prefixes.groups(rows, starts))
    assert shared > len(rows) / 2
    for tokens in (1, 300, 16384):
        found = scores.scores(network, rows, starts, tokens=tokens)
        assert found == pytest.approx(alone, abs=1e-5)


def test_so_it_does_with_an_adapter() -> None:
    from peft import LoraConfig, TaskType, get_peft_model

    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, target_modules="all-linear", init_lora_weights=False
    )
    network = get_peft_model(made(LlamaConfig(**SHAPE)), lora).eval()
    rows, starts = dialogs()
    whole, shared = (scores.scores(network, rows, where) for where in (None, starts))
    assert shared == pytest.approx(whole, abs=1e-5) and shared != whole


BY_LENGTH = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
OWN_HEAD = {"vocab_size": 99, "n_embd": 32, "n_layer": 1, "n_head": 2, "num_labels": 1}


@pytest.mark.parametrize(
    ("config", "causal"),
    [
        (LlamaConfig(**SHAPE), True),
        (LlamaConfig(**SHAPE, rope_parameters=BY_LENGTH), False),
        (GPT2Config(**OWN_HEAD, pad_token_id=0), False),
    ],
    ids=["llama", "frequencies by length", "a head of its own"],
)
def test_other_models_are_read_whole(config: PretrainedConfig, causal: bool) -> None:
    network = made(config)
    assert prefixes.causal(network) is causal
    rows, starts = dialogs()
    with torch.inference_mode():
        alone = [network(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert scores.scores(network, rows, starts) == pytest.approx(alone, abs=1e-5)


def test_only_what_is_worth_it_is_read_together() -> None:
    def group(prompt: int, *answers: int) -> Any:
        rows = [[1] * prompt + [2 + i] * answer for i, answer in enumerate(answers)]
        return prefixes.groups(rows, [prompt] * len(rows))

    assert group(50, 10, 20, 30) == [(50, [0, 1, 2])]
    assert group(50, 10) == []
    assert group(2, 100, 100) == []


def test_a_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = made(LlamaConfig(**SHAPE))
    rows = [[7] * 50 + [i + 1] * 10 for i in range(8)]
    read: list[int] = []
    forward: Callable[..., Any] = network.model.forward

    def count(input_ids: Any, **rest: Any) -> Any:
        read.append(input_ids.numel())
        return forward(input_ids, **rest)

    monkeypatch.setattr(network.model, "forward", count)
    scores.scores(network, rows, [50] * 8)
    assert sum(read) == 50 + 8 * 10
