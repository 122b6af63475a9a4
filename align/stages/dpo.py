"""Direct preference optimisation: pairs of answers, near a frozen reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from align import data, launch, losses, models, training
from align.adapters import carried
from align.artifacts import Model, Preferences
from align.data import Source
from align.launch import Launch
from align.learnable import TooLong
from align.out import Out
from align.settings import Library, Stage
from align.sources import splits
from align.targets import moves_base

OWNED = {
    **training.OWNED,
    "disable_dropout": "with dropout, the model would differ from itself as the reference",
    "truncation_mode": "pairs longer than `max_length` are dropped and counted, none is cut",
    "padding_free": "TRL 1.16 ignores it for DPO",
    "precompute_ref_log_probs": "the reference's log-probabilities are computed once, and kept",
    "precompute_ref_batch_size": "the reference reads pairs of like length, as many as fit",
}


class Dpo(Stage):
    """Trains a model on pairs of answers with `trl.DPOTrainer` (arXiv 2305.18290).

    The adapter that comes with the model goes on, or `lora:` begins one, or all weights are
    trained. The reference is the model as it comes in: rewards must be zero before the first
    update, or the stage stops. Its log-probabilities are computed once for all stages with the
    same reference, pairs and micro-batches, and there is never a second model in memory, except
    under FSDP and ZeRO and with `sync_ref_model`, where the reference is live. Llama 3 has
    `mask_format: true` and
    `trainer: {beta: 0.1, loss_type: [sigmoid, sft], loss_weights: [1.0, 0.2]}`.
    """

    model: Model
    data: list[Preferences | Source]
    """Sources with their weights; all of them are mixed."""

    reference: Model | None = None
    """Another frozen model to stay near, `base` or an earlier stage, with the same vocabulary."""

    mask_format: bool = False
    """Keep the tokens that end a turn out of the preference loss; the NLL term keeps them."""

    eval_data: list[Preferences | Source] = []
    """Held-out pairs: the checkpoint with the lowest loss on them becomes the model."""

    patience: int = Field(3, ge=1)
    """Evaluations in a row without a lower loss after which training stops."""

    too_long: TooLong = "drop"
    """Pairs of more than `trainer.max_length` tokens, or than the model's context: `drop` them,
    leave out their prompts' oldest `turns`, or `stop`. What is left out is counted."""

    lora: models.Lora = None
    quantization: models.Quantization = "inherit"
    batch_size: int = Field(32, ge=1)
    """Pairs per step, over all devices."""

    trainer: Annotated[
        dict[str, Any], Library("trl.trainer.dpo_config:DPOConfig", owned=OWNED)
    ] = {}
    launch: Launch = None

    def check(self) -> Iterator[tuple[str, str]]:
        """What TRL would ignore or refuse, and `lora:` on a model with another adapter."""
        yield from training.check(self)
        yield from models.check_adapter(self)
        yield from models.check_template(self.model)
        yield from losses.problems(self.trainer)
        adapted = self.lora is not None or carried(self.model)[0] is not None
        if self.trainer.get("sync_ref_model") and adapted:
            yield (
                "trainer.sync_ref_model",
                "In TRL 1.16 a reference follows the policy only where all weights are trained, "
                "and an adapter is trained here. Leave it out, or merge the model and leave "
                "`lora:` out.",
            )
        new = (self.lora or {}) if carried(self.model)[0] is None else {}
        if moves_base(new) and launch.shards({"launch": self.launch}):
            yield (
                "lora.init_lora_weights",
                f'"{new["init_lora_weights"]}" takes its first weights out of the base, and '
                "under FSDP and DeepSpeed TRL 1.16 makes the reference by taking them out a second "
                "time. Leave it out, or train with `launch: recipes/launch/ddp.yaml`.",
            )

    def run(self, out: Out) -> Model:
        """Compute the reference's numbers, train, and write the adapter or the whole model."""
        from trl import DPOConfig

        from align.preference import PairCollator, PairTrainer, pairs
        from align.reference import Reference

        splits.refuse_overlap(self.data, self.eval_data, Preferences, self.seed)
        how: dict[str, Any] = {"lora": self.lora, "quantization": self.quantization}
        tokenizer = models.tokenizer(self.model)
        half = models.half(self.model, **how)
        args = training.arguments(DPOConfig, self, out, half, remove_unused_columns=False)
        collator = PairCollator(tokenizer.pad_token_id, mask_format=self.mask_format)
        limit = training.limit(args.max_length, models.shape(self.model))
        reference = Reference(self.model, self.reference, how, args, collator, limit, out)

        def rows(sources: list[Preferences | Source], prefix: str = "") -> Any:
            mixed = data.mix(sources, Preferences, self.seed, out)
            found = pairs(mixed, tokenizer, limit, out, prefix, self.too_long)
            return training.dataset(found, least=1)

        sets = {"train_dataset": rows(self.data)}
        if self.eval_data:
            sets["eval_dataset"] = rows(self.eval_data, "eval.")
        if reference.apart and not reference.live:
            sets = reference.alone(sets)
        network = models.load(self.model, train=True, seed=self.seed, **how)
        if not reference.apart and not reference.live:
            sets = reference.on(network, sets)
        trainer = PairTrainer(
            model=network,
            ref_model=reference.living(network) if reference.live else None,
            own_reference=reference.own,
            args=args,
            data_collator=collator,
            processing_class=tokenizer,
            **sets,
        )
        metrics = training.fit(trainer, self, out)
        models.save(network, tokenizer, self.model, out, state=trainer.whole, **how)
        training.finish(out, metrics | reference.facts)
        return Model(out.path)
