"""Direct preference optimisation: pairs of answers, near a frozen reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from align import data, models, training
from align.artifacts import Model, Preferences
from align.data import Source
from align.errors import StageFailed
from align.launch import Launch
from align.out import Out
from align.settings import Library, Stage

SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""The losses of TRL 1.16 that read `label_smoothing`."""

OWNED = {
    **training.OWNED,
    "disable_dropout": "with dropout, the model would differ from itself as the reference",
    "truncation_mode": "pairs longer than `max_length` are dropped and counted, none is cut",
    "padding_free": "TRL 1.16 ignores it for DPO",
}


class Dpo(Stage):
    """Trains a model on pairs of answers with `trl.DPOTrainer` (arXiv 2305.18290).

    The adapter that comes with the model goes on, or `lora:` begins one, or all weights are
    trained. The reference is the model as it comes in: rewards must be zero before the first
    update, or the stage stops. Llama 3 has `mask_format: true` and
    `trainer: {beta: 0.1, loss_type: [sigmoid, sft], loss_weights: [1.0, 0.2]}`.
    """

    model: Model
    data: list[Preferences | Source]
    """Sources with their weights. Pairs longer than `trainer.max_length` tokens are dropped."""

    reference: Model | None = None
    """Another frozen model to stay near, with the same vocabulary."""

    mask_format: bool = False
    """Keep the tokens that end a turn out of the preference loss; the NLL term keeps them."""

    eval_data: list[Preferences | Source] = []
    """Held-out pairs: the checkpoint with the lowest loss on them becomes the model."""

    patience: int = Field(3, ge=1)
    """Evaluations in a row without a lower loss after which training stops."""

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
        asked = self.trainer.get("loss_type", "sigmoid")
        losses = [asked] if isinstance(asked, str) else list(asked)
        said, smooth = ", ".join(losses), self.trainer.get("label_smoothing")
        if smooth and not set(losses) & set(SMOOTHED):
            readers = ", ".join(SMOOTHED)
            yield (
                "trainer.label_smoothing",
                f"{said} does not read it: only {readers} do. Leave it out, or name one of these.",
            )
        if losses and set(losses) == {"sft"}:
            yield (
                "trainer.loss_type",
                "sft alone does not read the rejected answers. Name another loss beside it "
                "(`[sigmoid, sft]`), or use an `sft` stage.",
            )
        if "exo_pair" in losses and not smooth:
            yield "trainer.loss_type", "exo_pair needs label_smoothing above 0, such as 0.001."
        weights = self.trainer.get("loss_weights", losses)
        if weights is not None and len(weights) != len(losses):
            yield "trainer.loss_weights", f"There are {len(losses)} losses ({said}): one for each."

    def run(self, out: Out) -> Model:
        """Train, and write the adapter or the whole model."""
        from trl import DPOConfig

        from align.preference import PairCollator, PairTrainer, cached, pairs

        how: dict[str, Any] = {"lora": self.lora, "quantization": self.quantization}
        tokenizer = models.tokenizer(self.model)
        half = models.half(self.model, **how)
        args = training.arguments(DPOConfig, self, out, half, remove_unused_columns=False)
        network = models.load(self.model, train=True, seed=self.seed, **how)
        limit = training.limit(args.max_length, network)

        def rows(sources: list[Preferences | Source], prefix: str = "") -> Any:
            mixed = data.mix(sources, Preferences, self.seed, out)
            made = training.dataset(pairs(mixed, tokenizer, limit, out, prefix), least=1)
            about = (self.mask_format, args.ld_alpha, args.bf16, args.fp16)
            return cached(made, out.cache, *about) if args.precompute_ref_log_probs else made

        trainer = PairTrainer(
            model=network,
            ref_model=self._reference(network, args),
            own_reference=self.reference is None,
            args=args,
            data_collator=PairCollator(tokenizer.pad_token_id, mask_format=self.mask_format),
            train_dataset=rows(self.data),
            eval_dataset=rows(self.eval_data, "eval.") if self.eval_data else None,
            processing_class=tokenizer,
        )
        metrics = training.fit(trainer, self, out)
        models.save(network, tokenizer, self.model, out, **how)
        training.finish(out, metrics)
        return Model(out.path)

    def _reference(self, network: Any, args: Any) -> Any:
        """The frozen model, or None where TRL makes it: a copy of the adapter, or cached numbers.

        Left to itself TRL loads the reference of a fully trained model from the path in its config,
        which for a merged model is that of its unmerged base.
        """
        from peft import PeftModel

        if self.reference is None:
            if isinstance(network, PeftModel) or args.precompute_ref_log_probs:
                return None
            return models.load(self.model, train=True, seed=self.seed).requires_grad_(False)
        words = [models.tokenizer(model).get_vocab() for model in (self.model, self.reference)]
        if words[0] != words[1]:
            raise StageFailed(
                f"reference: {self.reference.key} has another vocabulary than {self.model.key}, so "
                "their log-probabilities cannot be compared. Name a model made from the same base."
            )
        frozen = models.load(self.reference)
        # TRL wants a plain model; the layers of this one keep their adapter
        return frozen.get_base_model() if isinstance(frozen, PeftModel) else frozen
