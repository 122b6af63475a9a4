"""Scores do not depend on the company a row is scored in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from align.scoring.scores import accuracy, scores

ROWS = [[1, 4, 70 + i, *range(80, 80 + i * 3), 6] for i in range(12)]


@pytest.fixture(scope="module")
def judge(tiny_model: Path) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        tiny_model, num_labels=1, pad_token_id=0
    ).eval()


@pytest.mark.parametrize("pad", [0, 6], ids=["a pad token of its own", "pad is eos"])
def test_a_row_has_the_same_score_alone_and_in_any_batch(judge: Any, pad: int) -> None:
    judge.config.pad_token_id = pad
    alone = [scores(judge, [row])[0] for row in ROWS]
    assert len(set(alone)) > 6
    for tokens in (1, 100, 16384):
        assert scores(judge, ROWS, tokens=tokens) == pytest.approx(alone, abs=1e-5)
    assert scores(judge, ROWS[::-1]) == pytest.approx(alone[::-1], abs=1e-5)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 4.0},
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0, 4.0, 6.0, 8.0],
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_so_it_has_where_frequencies_follow_the_longest_row(rope: dict[str, Any]) -> None:
    def made() -> Any:
        config = LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_labels=1, pad_token_id=0, max_position_embeddings=16,
            rope_parameters={"rope_theta": 1e4, **rope},
        )  # fmt: skip
        torch.manual_seed(0)
        network = AutoModelForSequenceClassification.from_config(config).eval()
        for weight in network.parameters():
            weight.data.mul_(3)  # small weights hardly look at what came before
        return network

    alone = [scores(made(), [row])[0] for row in ROWS]
    network = made()
    for _ in range(2):
        assert scores(network, ROWS) == pytest.approx(alone, abs=1e-5)
    assert scores(network, [ROWS[3]] * 2 + ROWS[:2]) == pytest.approx(
        [alone[3]] * 2 + alone[:2], abs=1e-5
    )


def test_progress_counts_rows(judge: Any) -> None:
    seen: list[int] = []
    scores(judge, ROWS, tokens=60, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == len(ROWS)


def test_ties_are_one_half() -> None:
    assert accuracy(torch.tensor([1.0, 0.0, -1.0, 0.0])) == 0.5
    assert accuracy(torch.tensor([1.0, 0.0])) == 0.75
