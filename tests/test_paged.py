"""Continuous batching: the same draw as our own decoding, and a thread that ends."""

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.continuous_batching import ContinuousBatchingManager

from align.artifacts import Model
from align.data import Source
from align.errors import StageFailed
from align.generation import generate, noise, paged
from align.out import Out
from align.stages.sample import Sample


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():  # a random model is nearly flat
        loaded.lm_head.weight.mul_(20)
    return loaded


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    numbers = random.Random(0)
    lengths = [1, 2, *(numbers.randrange(3, 70) for _ in range(8))]
    return [[1, *(numbers.randrange(7, 260) for _ in range(length - 1))] for length in lengths]


IDS = [f"p{i}" for i in range(10)]
UNEVEN = {"max_new_tokens": 40, "eos_token_id": [*range(6, 20)]}


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {},
        {"temperature": 0.7, "top_k": 40, "min_p": 0.01},
        {"top_p": 0.9, "min_new_tokens": 9},
    ],
    ids=str,
)
def test_answers_are_those_of_our_own_decoding(
    model: Any, tokenizer: Any, prompts: Any, options: dict[str, Any]
) -> None:
    how: dict[str, Any] = {"n": 3, "first": 2, "seed": 4, "generation": {**UNEVEN, **options}}
    expected = dict(generate.generate(model, tokenizer, prompts, IDS, **how))
    found = dict(paged.generate(model, tokenizer, prompts, IDS, rows=7, **how))
    for i, answers in expected.items():
        for mine, theirs in zip(found[i], answers, strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
            theirs.logprob = mine.logprob
            assert mine == theirs
    assert {answer.finish for answers in found.values() for answer in answers} == {"stop", "length"}


def test_a_prompt_that_fills_the_context_gets_no_answers_and_one_near_it_what_is_left(
    model: Any, tokenizer: Any
) -> None:
    long, full = [1] + [30] * 239, [1] + [30] * 255
    options = {"max_new_tokens": 40, "min_new_tokens": 40}
    found = dict(paged.generate(model, tokenizer, [long, full], ["a", "b"], generation=options))
    assert found[1] == []
    assert [len(answer.token_ids) for answer in found[0]] == [16]
    assert dict(paged.generate(model, tokenizer, [full], ["b"])) == {0: []}


def test_what_breaks_inside_is_said_and_its_thread_ends(
    model: Any, tokenizer: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threading.active_count()

    def short(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no memory left for 2 GiB")

    monkeypatch.setattr(noise, "draw", short)
    with pytest.raises(StageFailed, match="no memory left for 2 GiB.*fewer `rows`"):
        list(paged.generate(model, tokenizer, prompts, IDS))
    assert threading.active_count() == threads


def test_an_interrupt_ends_the_thread(model: Any, tokenizer: Any, prompts: Any) -> None:
    threads = threading.active_count()

    def interrupt(tokens: int) -> None:
        raise KeyboardInterrupt

    drawn = paged.generate(
        model, tokenizer, prompts, IDS, n=20, generation=UNEVEN, rows=8, progress=interrupt
    )
    with pytest.raises(KeyboardInterrupt):
        next(drawn)
    assert threading.active_count() == threads


def test_the_pages_are_as_many_as_the_rows_need(
    model: Any, tokenizer: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unbounded, the library would take most of the memory: 10 GB for a model of 0.3 MB."""
    made: list[int] = []
    create = ContinuousBatchingManager._create_batch_processor

    def creating(self: Any) -> Any:
        processor = create(self)
        made.append(processor.cache.num_blocks * self.continuous_batching_config.page_size)
        return processor

    monkeypatch.setattr(ContinuousBatchingManager, "_create_batch_processor", creating)
    list(paged.generate(model, tokenizer, prompts, IDS, n=3, generation=UNEVEN, rows=4))
    longest = max(map(len, prompts)) + 40
    assert 4 * longest <= made[0] < 4 * (longest + paged.PAGE)


def test_a_stage_draws_the_same_under_either_engine(
    tiny_model: Path, tmp_path: Path, write_rows: Any
) -> None:
    given = Model(
        tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None, "adapter": False}
    )
    source = Source(path=str(write_rows("p.jsonl", [{"prompt": f"Say {i}"} for i in range(5)])))
    found = []
    for engine in ("generate", "paged"):
        out = Out(tmp_path / engine, tmp_path / "cache")
        out.path.mkdir()
        stage = Sample(
            model=given, prompts=[source], n=3, generation={"max_new_tokens": 12}, engine=engine
        )
        rows = list(stage.run(out).rows())
        found.append([[answer["token_ids"] for answer in row["completions"]] for row in rows])
        about = json.loads((out.path / "metrics.json").read_text())
        assert about["same_draw"]
    assert found[0] == found[1]


def test_an_adapter_that_is_not_folded_in_is_used(
    tiny_model: Path, tokenizer: Any, prompts: Any
) -> None:
    """As it is on a GPU, in bfloat16 or above a quantized base."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base, config).eval()
    how: dict[str, Any] = {"n": 2, "generation": {"max_new_tokens": 10}}
    expected = dict(generate.generate(adapted, tokenizer, prompts, IDS, **how))
    found = dict(paged.generate(adapted, tokenizer, prompts, IDS, **how))
    with adapted.disable_adapter():
        without = dict(paged.generate(adapted, tokenizer, prompts, IDS, **how))
    tokens = [
        [a.token_ids for i in range(10) for a in some[i]] for some in (expected, found, without)
    ]
    assert tokens[0] == tokens[1] != tokens[2]
