"""An adapter folded into the weights it was trained on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator

from align import models
from align.adapters import unfoldable
from align.artifacts import Model, Prompts, RewardModel
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.settings import Stage


class Merge(Stage):
    """Folds a model's adapter into its unquantized base, and checks that both say the same.

    The sum is in float32 and saved in the base's own precision. What was saved is loaded again, as
    whoever uses it would, and compared with base and adapter: it is refused where they differ.

    Merging into quantized weights would round the adapter away. Where the adapter was trained on
    quantized weights, the merged model has them exact and is a third model: how far it is from the
    one that was trained is measured and said.

    One model is in memory at a time.
    """

    model: Model | RewardModel
    prompts: list[Prompts | Source] = []
    """What the models are compared on, best held-out prompts of the task; the first 64 count.
    Where left out, a dozen plain questions that come with this stage."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what is wrong and can be known before anything runs."""
        if problem := unfoldable(self.model):
            yield "model", problem

    def run(self, out: Out) -> Model | RewardModel:
        """Write the full weights; the comparison is in `metrics.json`."""
        import torch

        from align import parity, weights

        spec = models.describe(self.model)
        if spec.adapter is None:
            raise StageFailed(f"{self.model.key} has no adapter to merge. Leave this stage out.")
        if problem := unfoldable(self.model):
            raise StageFailed(problem)
        head = isinstance(self.model, RewardModel)
        tokenizer = models.tokenizer(self.model)
        batch = parity.prompts(self.prompts, tokenizer, self.seed, out, head=head)
        adapted = models.load(self.model, head=head, quantization=None)
        first = parity.ask(adapted, tokenizer, batch, self.seed)
        if not parity.finite(first):
            raise StageFailed(
                f"The logits of {self.model.key} are not all finite numbers: there is nothing to "
                "compare. Train it again with a lower learning rate."
            )
        del adapted  # before the next one is loaded
        network = weights.folded(self.model)
        precision = network.dtype
        models.save(network, tokenizer, self.model, out)
        del network
        made = type(self.model)(out.path)
        network = models.load(made, head=head)
        merged = parity.ask(network, tokenizer, batch, self.seed, first.answers)
        exact = precision == network.dtype == torch.float32
        del network
        found = parity.compare(first, merged)
        out.say(f"Merged and saved in {str(precision)[6:]}: {_sentence(found)}.")
        if spec.quantization:
            trained = models.load(self.model, head=head)
            said = parity.ask(trained, tokenizer, batch, self.seed, first.answers)
            third = parity.compare(said, merged)
            found |= {f"as_trained_{name}": value for name, value in third.items()}
            out.say(
                "The merged model differs from the quantized model that was trained: "
                f"{_sentence(third)}."
            )
        found = {"prompts": len(batch), **found}
        (out.path / "metrics.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        if problem := _problem(found, exact):
            (out.path / "model.json").unlink()
            shutil.rmtree(out.path / "model")
            raise StageFailed(problem)
        return made


def _sentence(found: dict[str, float]) -> str:
    said = (
        f"on the same prompts logits differ by at most {found['max_logit_difference']:.2g} "
        f"(the largest is {found['max_logit']:.2g})"
    )
    if "kl_per_token" not in found:
        return (
            f"{said.replace('logits differ', 'scores differ')}, and by "
            f"{found['max_rank_difference']:.2g} less their mean (they spread by "
            f"{found['spread']:.2g})"
        )
    return (
        f"{said}, {found['top_1_agreement']:.1%} of the likeliest tokens agree, the KL divergence "
        f"is {found['kl_per_token']:.2g} nats a token, and with the same seed "
        f"{found['same_answers']:.0%} of the answers are equal"
    )


def _problem(found: dict[str, float], exact: bool) -> str | None:
    """Why the merged model is not the adapted one: more than rounding is between them.

    In bfloat16 a weight is off by up to 1/512, and one draw in a hundred may fall otherwise: equal
    answers are asked for in float32 only.
    """
    remedy = "" if exact else " Merge in float32: base: {dtype: float32}."
    if not math.isfinite(found["max_logit_difference"]):
        return f"The logits of the merged model are not all finite numbers.{remedy}"
    logits, tokens, answers = (1e-4, 0.99, 0.9) if exact else (5e-2, 0.9, 0.0)
    if (
        found["max_logit_difference"] <= logits * found["max_logit"]
        and found.get("top_1_agreement", 1.0) >= tokens
        and found.get("same_answers", 1.0) >= answers
        and ("spread" not in found or _ranks(found, exact))
    ):
        return None
    return f"The merged model is not the adapted one: {_sentence(found)}.{remedy}"


def _ranks(found: dict[str, float], exact: bool) -> bool:
    """Whether two reward models rank alike: by their spread, as scores of 10 +- 0.1 rank, too.

    Added is what float32 itself rounds of the largest.
    """
    share = 1e-3 if exact else 1e-1
    return found["max_rank_difference"] <= share * found["spread"] + 1e-5 * found["max_logit"]
