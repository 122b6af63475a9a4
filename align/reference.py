"""The reference of DPO: which model it is, and where its log-probabilities come from.

They depend on the reference and on the pairs, and on nothing that a sweep over beta changes: they
are computed once, before training (logprobs.py). While the policy is trained there is no reference
in memory, and before that there is never a second model beside it, except under FSDP and ZeRO and
with `sync_ref_model`: there the reference is live, and in memory for as long as the policy is.

    the reference is               its numbers come from
    the model as it comes in       the policy, before its first update
    the policy's base              the policy, with its adapter off
    an adapter on the same base    the policy's base, which wears that adapter for a while
    any other model                that model, loaded and let go of before the policy is loaded
"""

from __future__ import annotations

import gc
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel

from align import models, records
from align.artifacts import Model, read_json
from align.errors import StageFailed
from align.logprobs import SIDES, Scorer, lengths, log_probs, scoring, tolerance
from align.order import Order
from align.out import Out
from align.targets import moves_base

Sets = dict[str, Dataset]
"""`train_dataset` and, where there is one, `eval_dataset`: rows of `preference.pairs`."""


class Reference:
    """Which model is the reference, and how its numbers come about.

    `own`: it is the policy as it comes in. `apart`: it shares no base with the policy. `live`: it
    computes at every step, because it changes (`sync_ref_model`) or its weights are spread over the
    devices, which must then run every batch together.

    Raises:
        StageFailed: it has another vocabulary.
    """

    def __init__(
        self,
        policy: Model,
        named: Model | None,
        how: dict[str, Any],
        args: Any,
        collator: Any,
        limit: int,
        out: Out,
    ) -> None:
        """`named` is `reference:`; `how` has the policy's `lora` and `quantization`.

        `limit`: the most tokens that a row may have.
        """
        self.model = named or policy
        self.args, self.collator, self.out = args, collator, out
        self.room = 2 * args.per_device_train_batch_size * limit
        ours, self.spec = models.describe(policy), models.describe(self.model)
        lora, quantization = how["lora"], how["quantization"]
        self.quantization = ours.quantization if quantization == "inherit" else quantization
        adapted = lora is not None or ours.adapter is not None
        self.own = self.spec == ours
        self.apart = not self.own and not (
            adapted
            and _weights(self.spec) == _weights(ours)
            and (self.spec.adapter is None or self.spec.quantization == self.quantization)
            and not moves_base(_config(ours.adapter, lora))
            and _can_be_taken_off(_config(self.spec.adapter, None))
        )
        if self.apart:
            self.quantization = self.spec.quantization
        sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
        sharded |= args.deepspeed_plugin is not None
        self.live = args.sync_ref_model or sharded
        self.facts: dict[str, Any] = {"reference": self.model.name or self.model.key}
        """For `metrics.json`: which model it is, and how many pairs were computed and cached."""

        if not self.own:
            self._check_tokenizer(policy)

    def _check_tokenizer(self, policy: Model) -> None:
        theirs, ours = (models.tokenizer(model) for model in (self.model, policy))
        if theirs.get_vocab() != ours.get_vocab():
            raise StageFailed(
                f"reference: {self.model.key} has another vocabulary than {policy.key}, so "
                "their log-probabilities cannot be compared. Name a model made from the same base."
            )
        if theirs.chat_template != ours.chat_template:
            self.out.say(
                f"{self.model.key} has another chat template than {policy.key}: as the reference "
                "it reads every dialog as the latter renders it."
            )

    def alone(self, sets: Sets) -> Sets:
        """The rows with the numbers of a reference that is loaded for them and let go of."""
        measured = self._measured(models.load(self.model), sets)
        gc.collect()
        torch.cuda.empty_cache()
        return measured

    def on(self, policy: Any, sets: Sets) -> Sets:
        """The rows with the numbers that the policy's network gives as the reference."""
        if self.own:
            return self._measured(policy, sets)
        if self.spec.adapter is None:
            with policy.disable_adapter():
                return self._measured(policy, sets)
        policy.load_adapter(str(self.spec.adapter), "reference", use_safetensors=True)
        policy.set_adapter("reference", inference_mode=True)
        try:
            return self._measured(policy, sets)
        finally:
            policy.set_adapter("default")
            policy.delete_adapter("reference")

    def living(self, policy: Any) -> Any:
        """What `trl.DPOTrainer` takes as `ref_model` where the reference is `live`.

        None where TRL itself keeps a frozen copy of the policy's adapter. For a fully trained model
        TRL would load the path in its config, which for a merged one is that of its unmerged base.
        """
        self.out.say(f"The reference is {self.facts['reference']}; it computes at every step.")
        if self.own and isinstance(policy, PeftModel):
            return None
        frozen = models.load(self.model, train=self.own)
        frozen = frozen.get_base_model() if isinstance(frozen, PeftModel) else frozen
        return frozen.requires_grad_(False)  # a plain model, whose layers keep their adapter

    def _measured(self, network: Any, sets: Sets) -> Sets:
        about, measured, pairs = self._about(network), {}, np.zeros(2, dtype=int)
        with scoring(network, self.args, self.collator) as scorer:
            for name, rows in sets.items():
                reached = self._reached(rows) if name == "train_dataset" else list(range(len(rows)))
                numbers, computed, cached = log_probs(
                    scorer, rows, reached, about, self.room, self.out
                )
                if cached and not self.own:  # with its own, the trainer checks the first batch
                    self._check(scorer, rows, numbers, reached[: self._batch])
                for side, column in zip(SIDES, numbers.T, strict=True):
                    rows = rows.add_column(f"ref_{side}_logps", column)
                measured[name] = rows
                pairs += computed, cached
        computed, cached = pairs.tolist()
        self.facts |= {"reference_computed": computed, "reference_cached": cached}
        self.out.say(
            f"The reference is {self.facts['reference']}{', as it comes in' if self.own else ''}: "
            f"{computed} pairs computed, {cached} from the cache."
        )
        return measured

    def _about(self, network: Any) -> dict[str, Any]:
        """What the numbers of a pair depend on, beside the pair."""
        contents = records.Contents(self.out.cache.parent)
        base, path = self.spec.base, Path(self.spec.base.path)
        # of what a stage made its manifest is enough, which has the hash of every file
        home = path.parent if (path.parent / "artifact.json").is_file() else path
        about = {
            "base": contents.of(home) if path.is_dir() else [base.path, base.revision],
            "adapter": contents.of(self.spec.adapter) if self.spec.adapter else None,
            "quantization": self.quantization,
            "dtype": str(network.dtype),
            "attention": network.config._attn_implementation,
            "autocast": self.args.mixed_precision,
            "device": self.args.device.type,
            "mask_format": self.collator.mask_format,
            "ld_alpha": self.args.ld_alpha,
        }
        if self.out.main:
            contents.save()
        return about

    @property
    def _batch(self) -> int:
        """Pairs of a step, over all processes."""
        args = self.args
        micro: int = args.per_device_train_batch_size
        return micro * int(args.gradient_accumulation_steps) * int(args.world_size)

    def _reached(self, rows: Dataset) -> list[int]:
        """The rows that training reaches, in the order of its first epoch."""
        tokens = lengths(rows, "prompt_ids", "chosen_ids", "rejected_ids")
        order = Order(tokens, self.args.seed, self._batch)
        epochs, steps = self.args.num_train_epochs, self.args.max_steps
        steps = steps if steps > 0 else math.ceil(epochs * order.steps)
        return [int(row) for row in order.rows(0)[: steps * self._batch]]

    def _check(self, scorer: Scorer, rows: Dataset, numbers: Any, batch: list[int]) -> None:
        """See that cached numbers are what the reference gives now, on the first batch.

        Raises:
            StageFailed: they are not.
        """
        micro = self.args.per_device_train_batch_size
        batches = [batch[at : at + micro] for at in range(0, len(batch), micro)]
        tokens = np.stack([lengths(rows, f"{side}_ids")[batch] for side in SIDES], axis=1)
        apart = abs(scorer.numbers(rows, batches) - numbers[batch]) / np.sqrt(tokens)
        if apart.max() > tolerance(scorer.model, self.args):
            raise StageFailed(
                "The cached reference log-probabilities are not the reference's: on the first "
                f"batch they are off by {apart.max():.3g} per square root of a token. Nothing was "
                "trained. Delete runs/.cache and run again."
            )


def _weights(spec: models.Spec) -> tuple[str | None, ...]:
    """What a base is loaded from, and as what: equal for models on the same base."""
    base = spec.base
    return base.path, base.revision, base.dtype, base.attn_implementation


def _config(adapter: Path | None, lora: dict[str, Any] | None) -> dict[str, Any]:
    """PEFT's configuration of an adapter, there or new."""
    return read_json(adapter / "adapter_config.json") if adapter else lora or {}


def _can_be_taken_off(config: dict[str, Any]) -> bool:
    """Whether PEFT 0.21 leaves nothing of it when it is deleted: not so of whole modules."""
    whole = config.get("modules_to_save") or config.get("trainable_token_indices")
    return not whole and not moves_base(config)
