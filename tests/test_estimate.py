"""Estimates, against what real training steps keep and what generation holds."""

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align import shapes
from align.artifacts import Model
from align.estimate import memory, steps, totals
from align.estimate.totals import spread
from align.out import Out
from align.stages.dpo import Dpo
from align.stages.reward_model import TrainRewardModel
from align.stages.sft import Sft

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
LORA = {"r": 8, "target_modules": "all-linear"}
STAGES = {"sft": Sft, "dpo": Dpo, "reward_model": TrainRewardModel}
LENGTH = 128

SMALL = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3}
WIDE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}


class Saved:
    """Bytes of the distinct storages that autograd keeps, but for weights; the most at once."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.now = self.most = 0

    def pack(self, tensor: Any) -> Any:
        import torch

        if isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter):
            return tensor.detach() if tensor.is_leaf else tensor
        storage = tensor.untyped_storage()
        entry = self.held.setdefault(storage.data_ptr(), [storage.nbytes(), 0])
        if not entry[1]:
            self.now += entry[0]
            self.most = max(self.most, self.now)
        entry[1] += 1
        box = Box(tensor)
        weakref.finalize(box, self.drop, storage.data_ptr())
        return box

    def drop(self, pointer: int) -> None:
        entry = self.held[pointer]
        entry[1] -= 1
        if not entry[1]:
            self.now -= entry[0]
            del self.held[pointer]


class Box:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


@contextmanager
def counted() -> Iterator[Saved]:
    import torch

    saved = Saved()
    unpack = lambda box: box.tensor if isinstance(box, Box) else box  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, unpack):
        yield saved


@pytest.fixture(scope="module")
def base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A Llama of other sizes, with the tiny model's tokenizer."""

    def make(**sizes: Any) -> Path:
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        path = tmp_path_factory.mktemp("base")
        given = json.loads((tiny_model / "config.json").read_text())
        LlamaForCausalLM(LlamaConfig(**{**given, "head_dim": None, **sizes})).save_pretrained(path)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
        return path

    return make


def rows(count: int, kind: str) -> list[dict[str, Any]]:
    """One batch of rows: the first answers fill `LENGTH`, others are shorter by a token.

    A letter is a token, and what is around the two messages of a row are nine.
    """
    made = []
    for number in range(count):
        prompt = [{"role": "user", "content": "qrstuvwx"[number] * 20}]
        chosen, rejected = (
            [{"role": "assistant", "content": letter * (LENGTH - 29 - shorter)}]
            for letter, shorter in (("a", number > 0), ("b", 1))
        )
        pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        made.append({"messages": [*prompt, *chosen]} if kind == "sft" else pair)
    return made


CASES = [
    ("sft", None, None, True, SMALL, 4),
    ("sft", LORA, None, False, SMALL, 4),
    ("sft", LORA, None, True, WIDE, 2),
    ("sft", LORA, NF4, False, WIDE, 4),
    ("sft", LORA, NF4, True, SMALL, 1),
    ("reward_model", LORA, None, False, SMALL, 2),
    ("reward_model", LORA, NF4, True, SMALL, 2),
    ("dpo", LORA, NF4, False, SMALL, 1),
    ("dpo", LORA, None, True, WIDE, 2),
    ("dpo", None, None, False, SMALL, 2),
]


@pytest.mark.parametrize(("kind", "lora", "quantization", "checkpointing", "sizes", "micro"), CASES)
def test_activations_are_what_autograd_keeps_of_a_real_step(
    kind: str,
    lora: dict[str, Any] | None,
    quantization: dict[str, Any] | None,
    checkpointing: bool,
    sizes: dict[str, int],
    micro: int,
    base: Callable[..., Path],
    tmp_path: Path,
    write_rows: Callable[[str, list[dict[str, Any]]], Path],
) -> None:
    data = write_rows("rows.jsonl", rows(max(2, micro), kind))
    made = {"path": str(base(**sizes)), "dtype": "bfloat16" if lora else "auto"}
    spec = {"base": made, "quantization": None, "adapter": False}
    trainer = {
        "bf16": True,
        "gradient_checkpointing": checkpointing,
        "per_device_train_batch_size": micro,
        "max_steps": 1,
        "max_length": LENGTH,
    }
    more: dict[str, Any] = {"holdout": 0, "gate": None} if kind == "reward_model" else {}
    stage = STAGES[kind].model_validate(
        {
            "model": Model(Path(made["path"]), spec=spec),
            "data": [{"path": str(data)}],
            "lora": lora,
            "quantization": quantization,
            "batch_size": micro,
            "trainer": trainer,
            **more,
        },
        strict=False,
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "cache").mkdir()
    step = totals.step(stage, kind)
    with counted() as saved:
        stage.run(Out(tmp_path / "out", tmp_path / "cache"))
    assert saved.most == pytest.approx(steps.kept(step), rel=0.1)


def test_keys_and_values_of_drawn_answers_take_what_is_estimated(
    base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from align.generation import columns, generate

    path = base(**SMALL, max_position_embeddings=512)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    held: dict[Any, int] = {}
    write = columns.Columns.write

    def counting(self: Any, *args: Any) -> None:
        write(self, *args)
        held[self] = sum(buffer.numel() * buffer.element_size() for buffer in self.buffers)

    monkeypatch.setattr(columns.Columns, "write", counting)
    rows, new, prompt = 6, 200, [7] * 40
    options = {"max_new_tokens": new, "min_new_tokens": new}
    tokenizer = AutoTokenizer.from_pretrained(path)
    drawn = generate.generate(
        model, tokenizer, [prompt] * 5, list("abcde"), n=2, generation=options, rows=rows
    )
    assert len(list(drawn)) == 5
    shape = shapes.of(str(path))
    one_layer_twice = 1 + 1 / shape.num_hidden_layers
    estimated = memory.sampling(shape, 2, rows, 3, 40, new)["cache"]
    assert estimated == sum(held.values()) * one_layer_twice
    assert memory.SLACK == columns.SLACK


EIGHT = shapes.shape(shapes.table()["meta-llama/Llama-3.1-8B"])
FULL = steps.Step(EIGHT, sequences=1, length=2048, stored=4)


def test_the_parts_of_training_all_weights_are_those_of_zero() -> None:
    """Rajbhandari et al. (arXiv 1910.02054, §3.1): 16 bytes a weight, of which 12 are states."""
    n, processes = EIGHT.parameters(), 8
    shared = spread({"use_deepspeed": True, "zero_stage": 3}, 8)
    parts = steps.peak(replace(FULL, accumulates=True, spread=shared))
    assert parts["weights"] == 2 * n / processes
    assert parts["optimizer"] == 12 * n / processes
    assert parts["gradients"] == 2 * n / processes


@pytest.mark.parametrize(
    ("profile", "weights", "optimizer"),
    [
        ({}, 1, 1),
        ({"multi_gpu": True}, 1, 1),
        ({"use_fsdp": True, "fsdp_version": 2}, 4, 4),
        ({"use_fsdp": True, "fsdp_reshard_after_forward": False}, 1, 4),
        ({"use_deepspeed": True, "zero_stage": 2}, 1, 4),
        ({"use_deepspeed": True, "zero_stage": 3}, 4, 4),
    ],
)
def test_what_a_launch_profile_divides(
    profile: dict[str, Any], weights: int, optimizer: int
) -> None:
    whole, part = steps.held(FULL), steps.held(replace(FULL, spread=spread(profile, 4)))
    short = 2 if "use_deepspeed" in profile else 1
    assert part["weights"] == whole["weights"] / weights / short
    states = 12 / 8 if "use_deepspeed" in profile else 1
    assert part["optimizer"] == whole["optimizer"] * states / optimizer


def test_the_pass_of_the_reference_is_no_peak() -> None:
    """A forward of a step's tokens without gradients, as on held-out rows; 16,384 would be one."""
    lora = {"r": 16, "target_modules": "all-linear"}
    step = replace(FULL, sequences=2, length=1024, lora=lora, stored=2, quantization=NF4)
    peak = sum(steps.peak(step).values())
    assert sum(steps.peak(replace(step, measured=step.sequences)).values()) == peak
    assert sum(steps.peak(replace(step, measured=16384 // step.length)).values()) > peak


def test_a_live_reference_is_counted(base: Callable[..., Path]) -> None:
    """FSDP gathers it whole; ZeRO-2 leaves it whole; on one device there is none."""
    path = base(**SMALL)
    model = Model(path, spec={"base": {"path": str(path)}, "quantization": None})

    def found(**settings: Any) -> tuple[int, steps.Parts]:
        what = Dpo(model=model, data=[], batch_size=8, **settings)
        step = totals.step(what, "dpo")
        return step.shape.parameters(), steps.peak(step)

    for options, held, gathered in (
        ({"use_fsdp": True, "fsdp_version": 2}, 4 / 2, 2),
        ({"use_deepspeed": True, "zero_stage": 2}, 2, 0),
        ({"use_deepspeed": True, "zero_stage": 3}, 2 / 2, 0),
    ):
        n, parts = found(launch={**options, "num_processes": 2})
        assert parts["reference"] == held * n
        assert parts.get("gathered reference", 0) == gathered * n
    assert found()[1]["reference"] == 0
    assert found(trainer={"sync_ref_model": True})[1]["reference"] == 4 * n
    assert found(lora=LORA, launch={"use_fsdp": True, "num_processes": 2})[1]["reference"] == 0


def test_every_saving_saves() -> None:
    lora = {"r": 16, "target_modules": "all-linear"}
    rows = replace(FULL, sequences=8, checkpointing=False)
    ways = [
        rows,
        replace(rows, sequences=4),
        replace(rows, sequences=4, checkpointing=True),
        replace(rows, sequences=4, checkpointing=True, optim="adamw_8bit"),
        replace(FULL, sequences=4, lora=lora, stored=2),
        replace(FULL, sequences=4, lora=lora, stored=2, quantization=NF4),
        replace(FULL, sequences=4, lora=lora, stored=2, quantization=NF4, length=1024),
    ]
    peaks = [sum(steps.peak(way).values()) for way in ways]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)


def test_what_is_read_of_trl_are_its_defaults() -> None:
    from trl import DPOConfig, RewardConfig, SFTConfig

    classes = {"sft": SFTConfig, "dpo": DPOConfig, "reward_model": RewardConfig}
    for use, cls in classes.items():
        fields = cls.__dataclass_fields__
        for name in ("max_length", "num_train_epochs", "per_device_eval_batch_size"):
            assert totals.default(use, name) == fields[name].default
