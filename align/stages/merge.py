"""An adapter folded into the weights it was trained on."""

from __future__ import annotations

import json
from typing import Any

from align import chat, data, models
from align.artifacts import Model, Prompts, RewardModel
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.settings import Stage

MOST = 64
"""Prompts that are compared."""


class Merge(Stage):
    """Folds a model's adapter into its unquantized base, and checks that both say the same.

    Merging into quantized weights would round the adapter away. Where the adapter was trained on
    quantized weights, the merged model has them exact: it is not what was trained to the last bit.
    """

    model: Model | RewardModel
    prompts: list[Prompts | Source] = []
    """What the two are compared on; random tokens where left out."""

    def run(self, out: Out) -> Model | RewardModel:
        """Write the full weights; the comparison is in `metrics.json`."""
        import torch

        if models.describe(self.model).adapter is None:
            raise StageFailed(f"{self.model.key} has no adapter to merge. Leave this stage out.")
        head = isinstance(self.model, RewardModel)
        tokenizer = models.tokenizer(self.model)
        adapted = models.load(self.model, head=head, quantization=None)
        batch = self._batch(tokenizer, len(tokenizer), out)
        before = self._logits(adapted, batch)
        network = adapted.merge_and_unload(safe_merge=True)
        after = self._logits(network, batch)
        exact = network.dtype == torch.float32
        parity = {
            "max_logit_difference": max(
                float((a - b).abs().max()) for a, b in zip(before, after, strict=True)
            ),
            "max_logit": max(float(logits.abs().max()) for logits in before),
            "top_1_agreement": sum(
                float((a.argmax(-1) == b.argmax(-1)).double().mean())
                for a, b in zip(before, after, strict=True)
            )
            / len(before),
        }
        (out.path / "metrics.json").write_text(json.dumps(parity, indent=1), encoding="utf-8")
        tolerance, agreement = (1e-4, 0.99) if exact else (5e-2, 0.9)  # of the largest logit
        if (
            parity["max_logit_difference"] > tolerance * parity["max_logit"]
            or parity["top_1_agreement"] < agreement
        ):
            raise StageFailed(
                f"The merged model is not the adapted one: logits differ by "
                f"{parity['max_logit_difference']:.2g} of {parity['max_logit']:.2g}, and "
                f"{parity['top_1_agreement']:.1%} of the likeliest tokens agree. Merge in "
                "float32: base: {dtype: float32}."
            )
        models.save(network, tokenizer, None, out)
        return type(self.model)(out.path)

    def _batch(self, tokenizer: Any, vocabulary: int, out: Out) -> list[list[int]]:
        import torch

        if not self.prompts:
            random = torch.Generator().manual_seed(self.seed)
            return torch.randint(vocabulary, (16, 32), generator=random).tolist()
        rows = data.mix(self.prompts, Prompts, self.seed, out)
        return [
            chat.prompt(tokenizer, row["prompt"], row.get("tools"))
            for row, _ in zip(rows, range(MOST), strict=False)
        ]

    def _logits(self, network: Any, batch: list[list[int]]) -> list[Any]:
        import torch

        with torch.no_grad():
            return [
                network(input_ids=torch.tensor([ids], device=network.device)).logits.float()
                for ids in batch
            ]
