"""KTO (Ethayarajh et al., arXiv 2402.01306): learns from answers that are marked good or bad."""

import random
from typing import Annotated, Any

from align import data, models, training
from align.artifacts import Model, Preferences
from align.data import Source
from align.out import Out
from align.settings import Library, Stage


class Kto(Stage):
    """Trains a model with `trl.KTOTrainer`; of a pair, one answer is good and the other is bad."""

    model: Model
    data: list[Preferences | Source]
    eval_data: list[Preferences | Source] = []
    patience: int = 3
    lora: models.Lora = None
    batch_size: int = 32
    trainer: Annotated[
        dict[str, Any], Library("trl.trainer.kto_config:KTOConfig", owned=training.OWNED)
    ] = {}

    def run(self, out: Out) -> Model:
        """Train, and write the adapter or the whole model."""
        from trl import KTOConfig, KTOTrainer

        class Trainer(training.Ordered, KTOTrainer):
            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset  # its rows are tokens already

        tokenizer = models.tokenizer(self.model)
        half = models.half(self.model, self.lora)
        args = training.arguments(KTOConfig, self, out, half, remove_unused_columns=False)
        network = models.load(self.model, train=True, lora=self.lora, seed=self.seed)
        limit = training.limit(args.max_length, network)
        whole = self.lora is None and models.describe(self.model).adapter is None
        trainer = Trainer(
            model=network,
            ref_model=models.load(self.model, train=True) if whole else None,
            args=args,
            train_dataset=self.rows(self.data, tokenizer, limit, out),
            eval_dataset=self.rows(self.eval_data, tokenizer, limit, out)
            if self.eval_data
            else None,
            processing_class=tokenizer,
        )
        metrics = training.fit(trainer, self, out)
        models.save(network, tokenizer, self.model, out, lora=self.lora, state=trainer.whole)
        training.finish(out, metrics)
        return Model(out.path)

    def rows(self, sources: list[Any], tokenizer: Any, limit: int, out: Out) -> Any:
        """Each answer as a row of its own, with an answer to another prompt for the KL term."""
        from align.preference import pairs

        mixed = data.mix(sources, Preferences, self.seed, out)
        rows = [
            {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[f"{side}_ids"], "label": good}
            for pair in pairs(mixed, tokenizer, limit, out)
            for side, good in (("chosen", True), ("rejected", False))
        ]
        random.Random(self.seed).shuffle(rows)
        for row, other in zip(rows, rows[-1:] + rows[:-1], strict=True):
            row["KL_completion_ids"] = other["completion_ids"]
        return training.dataset(rows)
