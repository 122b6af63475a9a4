"""Supervised fine-tuning: next-token training on what the assistant says in conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from align import data, models, training
from align.artifacts import Conversations, Model
from align.data import Source
from align.errors import StageFailed
from align.launch import Launch
from align.learnable import TooLong, conversations
from align.out import Out
from align.settings import Library, Stage
from align.sources import splits


class Sft(Stage):
    """Trains a model on conversations with `trl.SFTTrainer`.

    Rows are tokenized here, with a mask of our own that needs nothing of the chat template
    (chat.py), and checked before the model is loaded (learnable.py). No answer is ever cut.
    """

    model: Model
    data: list[Conversations | Source]
    """Sources with their weights; all of them are mixed."""

    eval_data: list[Conversations | Source] = []
    """Held-out conversations: the checkpoint with the lowest loss on them becomes the model."""

    patience: int = Field(3, ge=1)
    """Evaluations in a row without a lower loss after which training stops."""

    train_on: Literal["assistant", "all"] = "assistant"
    """The tokens that are learnt: the assistant's, with the end of its turns, or all."""

    too_long: TooLong = "drop"
    """Rows of more than `trainer.max_length` tokens, or than the model's context: `drop` them,
    leave out their oldest `turns`, or `stop`. What is left out is counted."""

    lora: models.Lora = None
    quantization: models.Quantization = "inherit"
    batch_size: int = Field(32, ge=1)
    """Conversations per step, over all devices."""

    trainer: Annotated[
        dict[str, Any], Library("trl.trainer.sft_config:SFTConfig", owned=training.OWNED)
    ] = {}
    launch: Launch = None

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what is wrong and can be known before anything runs."""
        yield from models.check_adapter(self)
        yield from models.check_template(self.model)
        yield from training.check(self)

    def run(self, out: Out) -> Model:
        """Train, and write the adapter or the whole model."""
        from trl import SFTConfig, SFTTrainer

        class Trainer(training.Ordered, SFTTrainer):  # type: ignore[misc]
            """TRL's, in our order."""

        splits.refuse_overlap(self.data, self.eval_data, Conversations, self.seed)
        tokenizer = models.tokenizer(self.model)
        how: dict[str, Any] = {"lora": self.lora, "quantization": self.quantization}
        packed = self.trainer.get("packing", False)
        args = training.arguments(
            SFTConfig,
            self,
            out,
            models.half(self.model, **how),
            dataset_kwargs={"skip_prepare_dataset": not packed},
        )
        limit = training.limit(args.max_length, models.shape(self.model))
        rows = training.dataset(self._rows(self.data, tokenizer, limit, out))
        held_out = None
        if self.eval_data:
            held_out = training.dataset(
                self._rows(self.eval_data, tokenizer, limit, out, "eval."), 1
            )
        network = models.load(self.model, train=True, seed=self.seed, **how)
        if not packed and "flash" in (network.config._attn_implementation or ""):
            args.padding_free, args.max_length = True, None
        trainer = Trainer(
            model=network,
            args=args,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
        )
        metrics = training.fit(trainer, self, out)
        models.save(trainer.model, tokenizer, self.model, out, state=trainer.whole, **how)
        training.finish(out, metrics)
        return Model(out.path)

    def _rows(
        self,
        sources: Iterable[Conversations | Source],
        tokenizer: Any,
        limit: int,
        out: Out,
        prefix: str = "",
    ) -> Iterator[dict[str, list[int]]]:
        """Token ids and labels (-100: not learnt) of every conversation that fits."""
        rows = data.mix(list(sources), Conversations, self.seed, out)
        whole = self.train_on == "all"
        if whole:
            rows = map(_learnt_whole, rows)
        for tokens in conversations(rows, tokenizer, limit, out, prefix, self.too_long, whole):
            learnt = tokens.ids if whole else tokens.labels
            out.count(f"{prefix}rows")
            out.count(f"{prefix}tokens", len(tokens.ids))
            out.count(f"{prefix}tokens.learnt", sum(label != -100 for label in learnt))
            yield {"input_ids": tokens.ids, "labels": learnt}


def _learnt_whole(row: dict[str, Any]) -> dict[str, Any]:
    """The row, of which every token is learnt.

    Raises:
        StageFailed: a message says that it is not to be learnt.
    """
    if any(message.get("weight") == 0 for message in row["messages"]):
        raise StageFailed(
            f"Row {row['id']} has a message with the weight 0, which is only read, and `train_on: "
            "all` learns every message. Leave `train_on` out, or the weight."
        )
    return row
