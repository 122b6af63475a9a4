"""Next-token training on documents: a small model from nothing, or a model trained further."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from align import data, models, training
from align.artifacts import Model, Text
from align.data import Source
from align.launch import Launch
from align.out import Out
from align.settings import Library, Stage
from align.vocabulary import Tokenizer


class Pretrain(Stage):
    """Trains on documents with `trl.SFTTrainer`: all tokens, in chunks of `trainer.max_length`.

    Documents are begun and ended by their special tokens, written one after the other, and cut into
    chunks of equal length; what is left over is dropped. With `config` the model and its tokenizer
    are new; with `model` both are that model's.
    """

    data: list[Text | Source]
    model: Model | None = None
    config: Annotated[
        dict[str, Any] | None,
        Library(
            "transformers.models.auto.configuration_auto:AutoConfig",
            owned={
                key: "it follows from the tokenizer"
                for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
            },
        ),
    ] = None
    """`model_type` and the keys of its configuration, for a model with random weights."""

    tokenizer: Tokenizer = Tokenizer()
    eval_data: list[Text | Source] = []
    """Held-out documents: the checkpoint with the lowest loss on them becomes the model."""

    patience: int = Field(3, ge=1)
    """Evaluations in a row without a lower loss after which training stops."""

    batch_size: int = Field(32, ge=1)
    """Chunks per step, over all devices."""

    concatenate: bool = True
    """False makes every document a row by itself, grouped by length: for short documents. Longer
    ones than a chunk are cut into several."""

    trainer: Annotated[
        dict[str, Any], Library("trl.trainer.sft_config:SFTConfig", owned=training.OWNED)
    ] = {}
    launch: Launch = None

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what is wrong and can be known before anything runs."""
        if (self.model is None) == (self.config is None):
            yield "config", "Give either `config:`, for a new model, or `model:`, to train it on."
        yield from training.check(self)
        if self.model is not None:
            yield from models.check_full(self.model)

    def run(self, out: Out) -> Model:
        """Train, and write the model with its tokenizer."""
        from trl import SFTConfig, SFTTrainer

        class Trainer(training.Ordered, SFTTrainer):  # type: ignore[misc]
            """TRL's, in our order."""

        half = self.model is not None and models.half(self.model)
        args = training.arguments(
            SFTConfig, self, out, half, dataset_kwargs={"skip_prepare_dataset": True}
        )
        if self.model is None:
            documents = data.mix(self.data, Text, self.seed, None)
            tokenizer = self.tokenizer.train(row["text"] for row in documents)
            network = self._new_network(tokenizer)
        else:
            tokenizer = models.tokenizer(self.model)
            network = models.load(self.model, train=True, seed=self.seed)
        limit = training.limit(args.max_length, network)
        rows = training.dataset(self._chunks(self.data, tokenizer, limit, out), 1)
        held_out = None
        if self.eval_data:
            held_out = training.dataset(
                self._chunks(self.eval_data, tokenizer, limit, out, "eval."), 1
            )
        trainer = Trainer(
            model=network,
            args=args,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
        )
        metrics = training.fit(trainer, self, out)
        models.save(trainer.model, tokenizer, self.model, out, state=trainer.whole)
        training.finish(out, metrics)
        return Model(out.path)

    def _new_network(self, tokenizer: Any) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        tokens = {
            f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
            for name in ("bos", "eos", "pad")
        }
        config = AutoConfig.for_model(**(self.config or {}), vocab_size=len(tokenizer), **tokens)
        torch.manual_seed(self.seed)
        return AutoModelForCausalLM.from_config(config)

    def _chunks(
        self,
        sources: Iterable[Text | Source],
        tokenizer: Any,
        length: int,
        out: Out,
        prefix: str = "",
    ) -> Iterator[dict[str, list[int]]]:
        """Documents one after the other, in chunks of `length` tokens."""
        begin = [i for i in tokenizer("").input_ids[:1] if i == tokenizer.bos_token_id]
        written: list[int] = []
        rows = data.mix(list(sources), Text, self.seed, out)
        while block := [row["text"] for row in islice(rows, 256)]:
            for ids in tokenizer(block, add_special_tokens=False, verbose=False).input_ids:
                written += [*begin, *ids, tokenizer.eos_token_id]
                out.count(f"{prefix}rows")
                if not self.concatenate:
                    for start in range(0, len(written), length):
                        yield {"input_ids": written[start : start + length]}
                    out.count(f"{prefix}tokens", len(written))
                    written = []
            whole = len(written) // length * length
            for start in range(0, whole, length):
                yield {"input_ids": written[start : start + length]}
            out.count(f"{prefix}tokens", whole)
            written = written[whole:]
        out.count(f"{prefix}dropped.tokens_left_over", len(written))
