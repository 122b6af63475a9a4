"""Scores do not depend on the company a row is scored in."""

from pathlib import Path
from typing import Any

import pytest
import torch

from align.scoring.scores import accuracy, scores

ROWS = [[1, 4, 70 + i, *range(80, 80 + i * 3), 6] for i in range(12)]


@pytest.fixture(scope="module")
def judge(tiny_model: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

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


def test_progress_counts_rows(judge: Any) -> None:
    seen: list[int] = []
    scores(judge, ROWS, tokens=60, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == len(ROWS)


def test_ties_are_one_half() -> None:
    assert accuracy(torch.tensor([1.0, 0.0, -1.0, 0.0])) == 0.5
    assert accuracy(torch.tensor([1.0, 0.0])) == 0.75
