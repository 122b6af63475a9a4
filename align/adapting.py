"""New adapters, and how those that change their base are saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from align import precision, targets
from align.artifacts import read_json
from align.errors import StageFailed


def new(network: Any, lora: dict[str, Any], *, head: bool, seed: int) -> Any:
    """A network with a new adapter, drawn from `seed`; `head`: its score head is trained, too.

    Raises:
        StageFailed: it names modules that are not there, or PEFT refuses its options.
    """
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    lora = copy.deepcopy(lora)  # PEFT adds the score head to the recipe's own list
    modules = {
        name.removesuffix(".weight"): tuple(weight.shape) if weight.is_floating_point() else ()
        for name, weight in network.named_parameters()
        if name.endswith(".weight")
    }
    if network.config.get_text_config().tie_word_embeddings and not head:
        modules["lm_head"] = ()
        if {"lm_head", "embed_tokens"} & set(lora.get("modules_to_save") or ()):
            lora.setdefault("ensure_weight_tying", True)  # else the two part, and cannot be merged
    for key, message in targets.targets(lora, modules, head=head):
        raise StageFailed(f"{key}: {message}")
    torch.manual_seed(seed)
    task = "SEQ_CLS" if head else "CAUSAL_LM"  # SEQ_CLS trains and saves the head too
    try:
        adapted = get_peft_model(network, LoraConfig(task_type=task, **lora))
    except (TypeError, ValueError) as error:
        raise StageFailed(f"lora: peft cannot make this adapter: {error}") from error
    if targets.moves_base(lora):
        first = get_peft_model_state_dict(adapted)
        adapted.first_weights = {name: weight.cpu().clone() for name, weight in first.items()}
    return in_float32(adapted)


def in_float32(network: Any) -> Any:
    """Small updates are lost in bfloat16. PEFT 0.21 casts adapters, but not `modules_to_save`.

    Not on quantized weights: TRL 1.16 makes all that is trained on those bfloat16 anyway.
    """
    if not precision.quantized(network):
        for weight in network.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return network


def for_the_base(home: Path, first: dict[str, Any]) -> None:
    """Rewrite a saved adapter that began in the base's weights as one for the base as it is.

    PiSSA trains A and B on W - s B0 A0 (arXiv 2404.02948, eq. 5). On W itself the same is the
    adapter s (B A - B0 A0) = s [B, -B0] [A; A0], of twice the rank. PEFT can do this, but its
    `path_initial_model_for_weight_conversion` drops what `modules_to_save` names: a score head.

    Args:
        home: the adapter's directory.
        first: its weights before training, under the names in its file.
    """
    import torch
    from safetensors.torch import load_file, save_file

    file = home / "adapter_model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if "lora_A" in name or "lora_embedding_A" in name:
            weights[name] = torch.cat([weight, first[name].to(weight)], dim=0)
        elif "lora_B" in name or "lora_embedding_B" in name:
            weights[name] = torch.cat([weight, -first[name].to(weight)], dim=1)
    save_file(weights, file, metadata={"format": "pt"})
    file = home / "adapter_config.json"
    config = read_json(file)
    more = 2**0.5 if config["use_rslora"] else 2  # s is alpha / sqrt(r), or alpha / r
    config |= {
        "init_lora_weights": True,
        "r": 2 * config["r"],
        "lora_alpha": more * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in config["rank_pattern"].items()},
        "alpha_pattern": {name: more * alpha for name, alpha in config["alpha_pattern"].items()},
    }
    file.write_text(json.dumps(config), encoding="utf-8")
