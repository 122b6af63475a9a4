"""Scores of a reward model through reward/model.py: the same alone, in a batch, as in training."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from align import chat, models, rewards, shelf
from align.artifacts import RewardModel
from align.settings import Reward


@pytest.fixture(scope="module")
def judge(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    network = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, num_labels=1, dtype=torch.float32
    )
    with torch.no_grad():
        network.score.weight.mul_(50)
    path = tmp_path_factory.mktemp("judge")
    network.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
    return RewardModel(path, spec={"base": {"path": str(path)}, "quantization": None})


def reward(judge: RewardModel, **settings: Any) -> Reward:
    path = shelf.find("reward/model.py")
    assert path is not None
    found = shelf.load(path, Reward)(model=judge, **settings)
    assert isinstance(found, Reward)
    return found


NUMBERS = random.Random(0)
ANSWERS = ["word " * NUMBERS.randrange(0, 25) + str(i) for i in range(30)]
PROMPTS = [[{"role": "user", "content": f"ask {i}"}] for i in range(30)]
COMPLETIONS = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]


def scores(reward: Reward, order: list[int]) -> list[float | None]:
    found = rewards.call(reward, [PROMPTS[i] for i in order], [COMPLETIONS[i] for i in order])
    return [one["score"] for one in found]


def test_a_score_is_the_same_alone_and_in_any_batch(judge: RewardModel) -> None:
    together = scores(reward(judge), list(range(30)))
    one_by_one = scores(reward(judge, tokens=1), list(range(30)))
    backwards = scores(reward(judge, tokens=300), list(range(30))[::-1])[::-1]
    assert len(set(together)) == 30
    assert one_by_one == pytest.approx(together, abs=1e-5)
    assert backwards == pytest.approx(together, abs=1e-5)


def test_the_whole_dialog_is_scored_with_its_end_of_turn(judge: RewardModel) -> None:
    tokenizer, network = models.tokenizer(judge), models.load(judge, head=True)
    text = tokenizer.apply_chat_template(PROMPTS[3] + COMPLETIONS[3], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    assert text.rstrip().endswith("<|end|>")
    with torch.no_grad():
        expected = network(input_ids=ids).logits.item()
    assert scores(reward(judge), [3, 9])[0] == pytest.approx(expected, abs=1e-5)
    start, answer = chat.answer(tokenizer, PROMPTS[3], COMPLETIONS[3])
    assert start + answer.ids == ids[0].tolist()


def test_a_dialog_that_does_not_fit_has_no_score(judge: RewardModel) -> None:
    long = [{"role": "assistant", "content": "x" * 300}]
    found = rewards.call(reward(judge), [PROMPTS[0], PROMPTS[0]], [long, COMPLETIONS[0]])
    assert found[0]["score"] is None and found[1]["score"] is not None
