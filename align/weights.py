"""Arithmetic of models' weights: an adapter folded in, adapters joined, models averaged.

All sums are in float32, tensor by tensor; what is saved is in the precision the models have. One
model is in memory at a time, and a few layers more.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from align import adapters, models
from align.adapters import ADDS_UP, unfoldable
from align.artifacts import Model, RewardModel, read_json
from align.errors import StageFailed
from align.targets import moves_base

Tensors = Mapping[str, torch.Tensor]

ADAPTER = "adapter_model.safetensors"


def folded(model: Model) -> Any:
    """A model as full weights on the CPU in the precision of its base, its adapter folded in.

    PEFT adds in the precision of the base; in bfloat16 that rounds the adapter's product before the
    sum and the sum again. Here a layer is in float32 while PEFT adds to it, and is rounded once.

    Raises:
        StageFailed: the base is quantized on the disk; the adapter has biases and the base none.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    if problem := unfoldable(model):
        raise StageFailed(problem)
    network = models.load(
        model,
        head=isinstance(model, RewardModel),
        quantization=None,
        device="cpu",
        dtype=models.describe(model).base.dtype,
    )
    if not isinstance(network, PeftModel):
        return network
    precision = network.get_base_model().config.dtype
    layers = [layer for layer in network.modules() if isinstance(layer, LoraLayer)]
    if any(layer.lora_bias["default"] and layer.get_base_layer().bias is None for layer in layers):
        raise StageFailed(
            f"{model.key} was trained with `lora_bias`, and its base has no bias to add it to. "
            "Such an adapter cannot be folded into the weights: use it as it is."
        )
    with warnings.catch_warnings():
        # that layers are merged already, and that weights which were tied no longer are
        warnings.simplefilter("ignore", UserWarning)
        for layer in layers:
            base = layer.get_base_layer()
            for name, weight in list(base.named_parameters(recurse=False)):
                # a new one: an adapted embedding is no longer the head that it was tied to
                whole = weight.detach().to(torch.float32, copy=True)
                setattr(base, name, torch.nn.Parameter(whole, requires_grad=False))
            layer.merge(safe_merge=True)
            base.to(precision)
        return network.merge_and_unload(safe_merge=True).to(precision)


class Files(Mapping[str, torch.Tensor]):
    """The full weights of a directory or hub id by name, each read from its file when asked for."""

    def __init__(self, path: str, revision: str | None) -> None:
        from safetensors import safe_open
        from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
        from transformers.utils.hub import cached_file, get_checkpoint_shard_files

        def find(name: str) -> str | None:
            found: str | None = cached_file(
                path, name, revision=revision, _raise_exceptions_for_missing_entries=False
            )
            return found

        whole, index = find(SAFE_WEIGHTS_NAME), find(SAFE_WEIGHTS_INDEX_NAME)
        if whole is None and index is None:
            raise StageFailed(
                f"{path} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}. Save the "
                "model with `save_pretrained` once and use that."
            )
        files = [whole] if whole else get_checkpoint_shard_files(path, index, revision=revision)[0]
        # not mapped: pages of a mapping that were read stay in memory until it ends
        opened: list[Any] = [safe_open(file, framework="pt", backend="pread") for file in files]
        self._files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading the tensor."""
        return tuple(self._files[name].get_slice(name).get_shape())


def averaged(
    made: Sequence[Model],
    shares: Sequence[float],
    folder: Path,
    progress: Callable[[int, int], None],
) -> Any:
    """The weighted average of models as full weights on the CPU.

    The first is in memory, of the others one tensor at a time. Those with an adapter are folded
    and written to `folder` first, which takes their size on the disk until the stage is done.

    Args:
        made: models of one shape.
        shares: their weights, above zero, in any scale.
        folder: for temporary files.
        progress: called with the number of tensors done, and their total.

    Raises:
        StageFailed: they are not of one shape.
    """
    others: list[Tensors] = []
    for number, model in enumerate(made[1:]):
        spec = models.describe(model)
        path, revision = spec.base.path, spec.base.revision
        if spec.adapter:
            path, revision = str(folder / str(number)), None
            folded(model).save_pretrained(path)
        others.append(Files(path, revision))
    network = folded(made[0])
    weights = dict(network.named_parameters())  # tied weights once
    for number, (model, other) in enumerate(zip(made[1:], others, strict=True)):
        if set(other) != set(weights):  # tied weights twice, or names of another transformers
            others[number] = other = dict(folded(model).named_parameters())
        if {name: _shape(other, name) for name in other} != {
            name: tuple(weight.shape) for name, weight in weights.items()
        }:
            raise StageFailed(f"{model.key} and {made[0].key} are models of different shapes.")
    for done, (name, weight) in enumerate(weights.items(), 1):
        weight.data = _mean([weight.data, *(other[name] for other in others)], shares)
        progress(done, len(weights))
    return network


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    return tensors.shape(name) if isinstance(tensors, Files) else tuple(tensors[name].shape)


def _mean(tensors: Sequence[torch.Tensor], shares: Sequence[float]) -> torch.Tensor:
    """The weighted mean in float32, then in the widest type of the tensors.

    A running mean, so that the mean of equal tensors is that tensor, to the bit, for any shares.
    """
    mean, total = tensors[0].to(torch.float32, copy=True), shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total += share
        mean.lerp_(tensor.float(), share / total)
    return mean.to(reduce(torch.promote_types, (tensor.dtype for tensor in tensors)))


def joinable(made: Sequence[Model]) -> bool:
    """Whether the average of these models is one adapter: they are plain LoRA on the same base.

    The same base in the same quantization, which they then keep. Modules that are saved whole (a
    reward model's head) may be there where all of them have the same.
    """
    from peft import LoraConfig
    from safetensors import safe_open

    specs = [models.describe(model) for model in made]
    plain = {key: value for key, value in LoraConfig().to_dict().items() if key not in ADDS_UP}
    same = []
    for spec in specs:
        if spec.adapter is None:
            return False
        config = read_json(spec.adapter / "adapter_config.json")
        if moves_base(config):  # saved by PEFT alone: its B A is for the base less the first B A
            return False
        saved = {key: config.get(key) for key in ("task_type", "modules_to_save")}
        others = {key: value for key, value in config.items() if key not in ADDS_UP | set(saved)}
        with safe_open(spec.adapter / ADAPTER, framework="pt") as file:
            whole = {name for name in file.keys() if not _is_factor(name)}  # noqa: SIM118
        modules = saved["modules_to_save"] or ()
        if any(value != plain.get(key) for key, value in others.items()) or any(
            not any(f".{module}." in name for module in modules) for name in whole
        ):  # also adapted embeddings, beside which PEFT saves the base's own
            return False
        same.append((spec.base, spec.quantization, saved, whole))
    return all(one == same[0] for one in same)


def joined(made: Sequence[Model], shares: Sequence[float]) -> tuple[Any, dict[str, Any]]:
    """The average of models that are `joinable`, and its `lora:`. The base is not loaded.

    The average of the products B A is the product of the stacked factors: ranks add up, and every
    A is scaled by its model's share and by alpha / r (alpha / sqrt r: rsLoRA, arXiv 2312.03732).
    The average of the factors would be another model. PEFT's `add_weighted_adapter` stacks them
    too, but it needs the base in memory, and does not know `modules_to_save`.

    Returns a `PeftModel` that can be saved and no more: the numbers of its base are arbitrary.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    specs = [models.describe(model) for model in made]
    homes = [spec.adapter for spec in specs if spec.adapter]
    configs = [LoraConfig.from_pretrained(str(home)) for home in homes]
    parts = [load_file(home / ADAPTER) for home in homes]
    state = _stacked(configs, parts, [share / sum(shares) for share in shares])
    downs = [name for name in state if _is_down(name)]
    rank = state[downs[0]].shape[0]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=configs[0].lora_dropout,
        target_modules=sorted(map(_module, downs)),
        modules_to_save=configs[0].modules_to_save,
        lora_bias=any(each.lora_bias for each in configs),
        task_type=configs[0].task_type,
    )
    head = isinstance(made[0], RewardModel)
    kind = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    base = specs[0].base
    options = {"num_labels": 1} if head else {}
    shape = AutoConfig.from_pretrained(base.path, revision=base.revision, **options)
    with torch.device("meta"):
        empty = kind.from_config(shape)
    network = get_peft_model(empty.to_empty(device="cpu"), config)  # pages never touched
    set_peft_model_state_dict(network, state)
    return network, adapters.joint([spec.lora or {} for spec in specs], rank)


def _stacked(configs: Sequence[Any], parts: Sequence[Tensors], shares: Sequence[float]) -> Tensors:
    """The factors of the average under their names, all of one rank; see `joined`.

    Args:
        configs: the adapters' `LoraConfig`.
        parts: their tensors: A (r, in), B (out, r), its bias, and whole modules.
        shares: their weights, which sum to one.
    """
    rank = sum(max(weight.shape[0] for name, weight in p.items() if _is_down(name)) for p in parts)
    state: dict[str, torch.Tensor] = {}
    for name in sorted({name for part in parts for name in part}):
        held = [i for i, part in enumerate(parts) if name in part]  # not all adapt every module
        tensors = [parts[i][name].float() for i in held]
        if not _is_factor(name):
            state[name] = _mean(tensors, shares)
            continue
        factors = [shares[i] * _scale(name, parts[i], configs[i]) for i in held]
        scaled = [factor * tensor for factor, tensor in zip(factors, tensors, strict=True)]
        if name.endswith(".bias"):
            state[name] = torch.stack(scaled).sum(0)
        elif _is_down(name):
            stack = torch.cat(scaled)
            state[name] = torch.nn.functional.pad(stack, (0, 0, 0, rank - stack.shape[0]))
        else:
            stack = torch.cat(tensors, dim=1)
            state[name] = torch.nn.functional.pad(stack, (0, rank - stack.shape[1]))
    return state


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _is_down(name: str) -> bool:
    """Whether this is an A, which leads down to r numbers."""
    return name.endswith(".lora_A.weight")


def _module(name: str) -> str:
    """The module that a tensor of an adapter's file belongs to."""
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


def _scale(name: str, part: Tensors, config: Any) -> float:
    """What PEFT multiplies the product B A of this tensor's module with."""
    from peft.utils.other import get_pattern_key

    module = _module(name)
    a = part[f"{name.rpartition('.lora_')[0]}.lora_A.weight"]
    key = get_pattern_key(config.alpha_pattern, module)
    alpha, rank = config.alpha_pattern.get(key, config.lora_alpha), a.shape[0]
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))
