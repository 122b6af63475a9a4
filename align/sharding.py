"""A model in parts: FSDP2 and ZeRO leave each device a share of the weights while they train."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from align.artifacts import read_json
from align.errors import StageFailed

PLACEMENT = "placement.json"
"""In a checkpoint: how the weights lay on the devices that wrote it, which decides its files."""


def prepare(trainer: Any) -> None:
    """Under FSDP2, add up gradients in float32, in parts, and round nothing that leaves the model.

    accelerate 1.15 rounds both to bfloat16: losses of 5.57 then read 5.5625 or 5.59375, and the
    log-probabilities whose differences DPO learns from are as far off. transformers' own FSDP2
    (`distributed/fsdp.py`) has the policy that is set here. And without `sync_each_batch` every
    device holds the whole gradient from one micro-batch of a step to the next.
    """
    if not trainer.is_fsdp_enabled:
        return
    trainer.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
    if trainer.args.bf16:
        import torch
        from torch.distributed.fsdp import MixedPrecisionPolicy

        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def whole(trainer: Any) -> dict[str, Any] | None:
    """All weights that were trained, on the CPU of the main process; None where none is in parts.

    Every process has to call it: each sends its part. The others get an empty mapping. Of a model
    with an adapter the frozen base is left out: it need not be sent, and it is not saved. ZeRO
    trains in the type of `bf16:`; what is returned are its float32 weights.
    """
    from peft import PeftModel

    adapted = isinstance(trainer.model, PeftModel)
    if trainer.is_fsdp_enabled:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapted
        )
        return dict(get_model_state_dict(trainer.model, options=options))
    if trainer.is_deepspeed_enabled:
        return _from_deepspeed(trainer, adapted)
    return None


def _from_deepspeed(trainer: Any, adapted: bool) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_fp32_param
    from torch.nn import Parameter

    found = {}
    for name, weight in trainer.model.state_dict(keep_vars=True).items():
        if isinstance(weight, Parameter) and weight.requires_grad:
            weight = safe_get_full_fp32_param(weight)
        elif adapted:
            continue
        if trainer.is_world_process_zero():
            found[name] = weight.detach().cpu()
    return found


def leave() -> None:
    """From here on, `from_pretrained` gives this process a whole model again.

    It looks at the environment and at a global of its own: under FSDP only the first process reads
    weights, and under ZeRO-3 every process keeps a part of them.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    os.environ.pop("ACCELERATE_USE_FSDP", None)
    unset_hf_deepspeed_config()


def placement(trainer: Any) -> str:
    """How the weights lie on the devices, as far as a checkpoint's files depend on it."""
    if trainer.is_fsdp_enabled:
        return "FSDP2"
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        return f"ZeRO-{stage} in {trainer.args.world_size} processes"
    return "whole on each device"


def note(trainer: Any, checkpoint: Path) -> None:
    """Write down in a checkpoint how its weights lay on the devices."""
    text = json.dumps({"placement": placement(trainer)})
    (checkpoint / PLACEMENT).write_text(text, encoding="utf-8")


def check(trainer: Any, checkpoint: Path) -> None:
    """See that a checkpoint can be read with the weights placed as they are now.

    Raises:
        StageFailed: they lay otherwise when it was written; `launch:` is no part of a stage's key.
    """
    file, now = checkpoint / PLACEMENT, placement(trainer)
    then = read_json(file)["placement"] if file.is_file() else "whole on each device"
    if then != now:
        raise StageFailed(
            f"{checkpoint.name} was written with the weights {then}; now they are {now}. Set "
            f"`launch:` as it was, or remove {checkpoint.parent.parent} to begin anew."
        )


def load(trainer: Any, checkpoint: str) -> None:
    """The weights of a checkpoint into a trainer that has nothing left to train."""
    rows = trainer.get_train_dataloader()
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer._prepare_for_training(trainer.state.max_steps, rows, checkpoint)
    else:
        trainer._load_from_checkpoint(checkpoint)
