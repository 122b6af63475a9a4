"""The weighted average of models' weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from align import models
from align.artifacts import Model, RewardModel
from align.errors import StageFailed
from align.out import Out
from align.settings import Stage


class Average(Stage):
    """Averages models of one shape, weight by weight, as Llama 3 does after each round.

    (arXiv 2407.21783, §4.1.5.) Adapters are folded into full weights first: the average of their
    products is not the product of their averages. Sums are in float64, the result in float32.
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

    def run(self, out: Out) -> Model | RewardModel:
        """Write the average as full weights, with the first model's tokenizer."""
        import torch

        shares = self.weights or [1.0] * len(self.models)
        used = [(m, w) for m, w in zip(self.models, shares, strict=True) if w]
        first = used[0][0]
        tokenizer = models.tokenizer(first)
        network = models.merged(first)
        sums = {
            name: weight.detach().double() * used[0][1]
            for name, weight in network.named_parameters()  # tied weights once
        }
        for done, (model, share) in enumerate(used[1:], 1):
            out.progress(done, len(used), "models")
            self._check_same(first, tokenizer, model)
            other = dict(models.merged(model).named_parameters())
            shapes = {name: tuple(weight.shape) for name, weight in other.items()}
            if shapes != {name: tuple(weight.shape) for name, weight in sums.items()}:
                raise StageFailed(f"{model.key} and {first.key} are models of different shapes.")
            for name, weight in other.items():
                sums[name] += weight.detach().double() * share
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight.copy_(sums[name] / sum(share for _, share in used))
        models.save(network, tokenizer, None, out)
        out.progress(len(used), len(used), "models")
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
