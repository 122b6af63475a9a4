"""A reward model: learns from pairs of answers to score one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from align import data, models, training
from align.artifacts import Model, Preferences, RewardModel, read_json
from align.data import Source
from align.gates import held_out
from align.launch import Launch
from align.learnable import TooLong
from align.out import Out
from align.settings import Library, Settings, Stage
from align.sources import splits


class Gate(Settings):
    """What a reward model must reach before it is used."""

    accuracy: float = Field(0.5, ge=0, le=1)
    """The lower end of the 95 % interval of the held-out accuracy must reach it."""


class TrainRewardModel(Stage):
    """Trains a score for dialogs on pairs of answers with `trl.RewardTrainer` (Bradley-Terry).

    A row's `margin` is how much better the chosen answer must score (arXiv 2307.09288, eq. 2); a
    ranking of K answers is K (K - 1) / 2 pairs. The chain stops at a reward model that may be
    guessing: the 95 % interval of its accuracy on held-out pairs reaches below the `gate`.
    """

    model: Model
    data: list[Preferences | Source]
    """Sources with their weights; all of them are mixed."""

    eval_data: list[Preferences | Source] = []
    """Held-out pairs: the checkpoint with the lowest loss on them becomes the model."""

    holdout: float = Field(0.1, ge=0, lt=1)
    """Without `eval_data`, the share of pairs held out: whole prompts, at most 1000 pairs."""

    gate: Gate | None = Field(Gate(), exclude=True)
    """Judged at every run: another gate trains nothing again."""

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
        dict[str, Any], Library("trl.trainer.reward_config:RewardConfig", owned=training.OWNED)
    ] = {}
    launch: Launch = None

    def check(self) -> Iterator[tuple[str, str]]:
        """`lora:` on a model with another adapter; a gate with nothing to measure it on."""
        yield from training.check(self)
        yield from models.check_adapter(self, head=True)
        yield from models.check_template(self.model)
        if self.gate and not self.holdout and not self.eval_data:
            yield (
                "gate",
                "Nothing is held out to measure it on: give `eval_data:`, or `gate: null`.",
            )

    def run(self, out: Out) -> RewardModel:
        """Train, write the adapter or the whole model, measure it as it was written."""
        from align.scoring.scores import measure

        metrics, pairs = self._train(out)
        made = RewardModel(out.path)
        if pairs:
            gc.collect()  # the trainer's memory
            metrics |= measure(made, pairs)
        training.finish(out, metrics)
        if pairs:
            out.say(f"{_fact(metrics)}.")
        return made

    def verdict(self, path: Path) -> str | None:
        """Why the chain stops: the held-out accuracy may be below the gate."""
        if self.gate is None:
            return None
        metrics = read_json(path / "metrics.json")
        if metrics["accuracy_low"] >= self.gate.accuracy:
            return None
        return (
            f"{_fact(metrics)}; its gate wants at least {self.gate.accuracy:.1%} at the lower end. "
            "Give it more or cleaner pairs, train it longer, measure it on more pairs "
            "(`eval_data:`, `holdout:`), or change `gate:` (null for none), for which nothing is "
            "trained again."
        )

    def judged(self, path: Path) -> list[dict[str, Any]]:
        """Its gate. `inconclusive` stops the chain, too."""
        if self.gate is None:
            return []
        return [held_out(path.name, read_json(path / "metrics.json"), self.gate.accuracy)]

    def _train(self, out: Out) -> tuple[dict[str, float], Any]:
        from trl import RewardConfig

        from align.preference import ScoreTrainer, dialogs, hold_out, pairs

        splits.refuse_overlap(self.data, self.eval_data, Preferences, self.seed)
        how: dict[str, Any] = {"lora": self.lora, "quantization": self.quantization}
        tokenizer = models.tokenizer(self.model)
        half = models.half(self.model, **how)
        args = training.arguments(RewardConfig, self, out, half, remove_unused_columns=False)
        limit, args.max_length = training.limit(args.max_length, models.shape(self.model)), None

        def rows(sources: list[Preferences | Source], prefix: str = "") -> Any:
            mixed = data.mix(sources, Preferences, self.seed, out)
            found = pairs(mixed, tokenizer, limit, out, prefix, self.too_long)
            return training.dataset(map(dialogs, found), least=1)

        made = rows(self.data)
        if self.eval_data:
            held_out = rows(self.eval_data, "eval.")
        else:
            made, held_out = hold_out(made, self.holdout, self.seed)
        network = models.load(self.model, train=True, head=True, seed=self.seed, **how)
        trainer = ScoreTrainer(
            model=network,
            args=args,
            train_dataset=made,
            eval_dataset=held_out if self.eval_data else None,
            processing_class=tokenizer,
        )
        metrics = training.fit(trainer, self, out)
        models.save(network, tokenizer, self.model, out, state=trainer.whole, **how)
        trainer.accelerator.wait_for_everyone()
        return metrics, held_out


def _fact(metrics: dict[str, float]) -> str:
    return (
        f"It prefers the better answer in {metrics['accuracy']:.1%} of {metrics['held_out']} "
        f"held-out pairs (95 % interval {metrics['accuracy_low']:.1%} to "
        f"{metrics['accuracy_high']:.1%})"
    )
