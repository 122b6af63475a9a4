"""The weighted average of models' weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from align import models
from align.adapters import carried, unfoldable
from align.artifacts import Model, RewardModel
from align.errors import StageFailed
from align.out import Out
from align.settings import Stage


class Average(Stage):
    """Averages models of one shape, weight by weight, as Llama 3 does after each round.

    (arXiv 2407.21783, §4.1.5.) Sums are in float32, the result is in the models' own precision.
    Of adapters the products are averaged: plain LoRA on one base, quantized or not, makes an
    adapter again, whose rank is the sum of their ranks. DoRA, adapters on different bases or beside
    full weights are folded into full weights first.
    """

    models: list[Model | RewardModel]
    weights: list[float] | None = None
    """One for each model, in any scale; equal where left out."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what is wrong and can be known before anything runs."""
        if len(self.models) < 2:
            yield "models", "An average takes at least two models."
        if len({type(model) for model in self.models}) > 1:
            yield "models", "These are models and reward models; average one kind."
        if self.weights is not None and len(self.weights) != len(self.models):
            yield "weights", f"There are {len(self.weights)} for {len(self.models)} models."
        elif self.weights is not None and not (
            min(self.weights) >= 0 and 0 < sum(self.weights) < float("inf")
        ):
            yield "weights", "They must not be negative, and not all zero."
        problems = [unfoldable(model) for model in self.models]
        if any(problems) and any(carried(model)[0] is None for model in self.models):
            yield "models", next(filter(None, problems))

    def run(self, out: Out) -> Model | RewardModel:
        """Write the average as an adapter or as full weights, with the first model's tokenizer."""
        from align import weights

        shares = self.weights or [1.0] * len(self.models)
        used = [(m, w) for m, w in zip(self.models, shares, strict=True) if w]
        made, shares = [model for model, _ in used], [share for _, share in used]
        first, tokenizer = made[0], models.tokenizer(made[0])
        for model in made[1:]:
            self._check_same(first, tokenizer, model)
        if weights.joinable(made):
            network, lora = weights.joined(made, shares)
            out.say(
                f"An adapter of rank {lora['r']} on the same base: the average of the products."
            )
            models.save(network, tokenizer, first, out, lora=lora)
        else:
            if reason := _apart(made):
                out.say(f"The adapters are folded into full weights first: {reason}.")
            folder = out.path / "checkpoints"
            network = weights.averaged(
                made, shares, folder, lambda done, total: out.progress(done, total, "weights")
            )
            models.save(network, tokenizer, first, out)
        return type(first)(out.path)

    def _check_same(self, first: Model, tokenizer: Any, model: Model) -> None:
        """Weights only mean the same where tokens do."""
        other = models.tokenizer(model)
        if other.get_vocab() != tokenizer.get_vocab():
            raise StageFailed(f"{model.key} and {first.key} have different vocabularies.")
        if other.chat_template != tokenizer.chat_template:
            raise StageFailed(
                f"{model.key} and {first.key} have different chat templates. "
                "Train them from one base, or set base.chat_template for both."
            )


def _apart(made: list[Any]) -> str | None:
    """Why these adapters cannot be one, in words; None: there are no adapters."""
    specs = [models.describe(model) for model in made]
    if not any(spec.adapter for spec in specs):
        return None
    if not all(spec.adapter for spec in specs):
        return "they are beside models without one"
    if any(spec.base != specs[0].base for spec in specs):
        return "they are on different bases"
    if any(spec.quantization != specs[0].quantization for spec in specs):
        return "their bases are quantized differently"
    return "not all are plain LoRA with the same whole modules (DoRA and embeddings are not)"
