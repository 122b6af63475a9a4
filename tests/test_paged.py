"""Continuous batching: the same draw as our own decoding, and a thread that ends."""

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    DeepseekV3Config,
    Gemma2Config,
    Lfm2Config,
    Llama4TextConfig,
    MambaConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
)
from transformers.generation.continuous_batching import ContinuousBatchingManager

from align.artifacts import Model
from align.data import Source
from align.errors import StageFailed
from align.generation import engines, generate, noise, paged
from align.generation.decoding import unpaged
from align.out import Out
from align.parallel.shards import Shard
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
        {"stop_strings": ["a", "!"], "eos_token_id": 6},
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


def test_a_stop_string_ends_a_request_and_not_only_its_text(
    model: Any, tokenizer: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    draw = noise.draw

    def counted(logits: Any, *rest: Any) -> Any:
        steps.append(len(logits))
        return draw(logits, *rest)

    monkeypatch.setattr(noise, "draw", counted)
    letters = [chr(i) for i in range(33, 127)]
    options = {"max_new_tokens": 150, "eos_token_id": 6, "stop_strings": letters}
    found = dict(paged.generate(model, tokenizer, prompts, IDS, generation=options))
    assert max(len(answers[0].token_ids) for answers in found.values()) < 40
    assert len(steps) < 80


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


SMALL: dict[str, Any] = {
    "vocab_size": 263,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
RANKS = {"num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "q_lora_rank": 8}
OTHERS = [
    Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    Qwen3NextConfig(**SMALL, layer_types=["linear_attention", "full_attention"], num_experts=2),
    Llama4TextConfig(**SMALL, num_local_experts=2, intermediate_size_mlp=32),
    DeepseekV3Config(**{**SMALL, **RANKS}, first_k_dense_replace=2),
    BloomConfig(vocab_size=263, hidden_size=32, n_layer=2, n_head=4),
    MambaConfig(vocab_size=263, hidden_size=32, num_hidden_layers=2),
]
KINDS = [config.model_type for config in OTHERS]


@pytest.mark.parametrize("config", OTHERS, ids=KINDS)
def test_a_model_it_cannot_decode_is_refused_in_a_sentence(
    config: PreTrainedConfig, tokenizer: Any, tmp_path: Path
) -> None:
    """Bloom would be drawn without its distances, and the others end in a traceback."""
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(StageFailed, match=f"kind {config.model_type}. Say `engine: generate`"):
        next(paged.generate(model, tokenizer, [[1, 30]], ["a"]))
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert unpaged(written) or config.model_type == "mamba"  # its config.json names no layers


def test_a_model_with_windows_is_decoded() -> None:
    config = Gemma2Config(**SMALL, sliding_window=8)
    assert paged.decodes(AutoModelForCausalLM.from_config(config))
    assert unpaged(config.to_dict()) is None


def test_without_a_name_the_engine_is_one_that_can_decode_the_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, here a device without memory."""
    given = Model(
        tiny_model, spec={"base": {"path": str(tiny_model)}, "quantization": None, "adapter": False}
    )
    found = []
    for config in (Gemma2Config(**SMALL), OTHERS[0]):
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config).eval()
        monkeypatch.setattr(engines.models, "load", lambda model, network=network: network)
        out = Shard(tmp_path, tmp_path / "cache", lambda told: None)
        engines.ready(None, given, seed=0, rows=None, out=out)
        found.append(out.facts["engine"])
    assert found == ["paged", "generate"]


def test_a_recipe_that_names_it_for_such_a_model_is_a_problem_before_anything_runs(
    tmp_path: Path,
) -> None:
    OTHERS[0].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    base = {"path": str(tmp_path), "chat_template": "plain"}
    given = Model(tmp_path, spec={"base": base, "quantization": None, "adapter": False})
    [(key, fact)] = Sample(model=given, prompts=[], engine="paged").check()
    assert key == "engine" and "kind lfm2. Say `engine: generate`" in fact
    assert list(Sample(model=given, prompts=[]).check()) == []
