"""`Ordered`: what is added to TRL's trainers while they run."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checkpoints, sharding
from align.errors import StageFailed
from align.order import Order
from align.out import Out

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object

SAVE_SECONDS = 300
"""A checkpoint this often, unless the recipe sets `save_steps` or `save_strategy`."""


class Ordered(Trainer):  # type: ignore[misc]
    """Mixed into a TRL trainer, before it: `class Trainer(Ordered, SFTTrainer)`.

    Sets the order of rows, stops at a loss that is not finite, writes `metrics.jsonl`, marks
    checkpoints as complete, and stops cleanly between two steps when it is told to.
    """

    out: Out
    """Set by `fit`."""

    order: Order
    whole: dict[str, Any] | None
    """What was trained, for `models.save`, where each device holds a part: see `sharding.whole`."""

    stop_asked = False
    """Told to stop: done at the end of the step, with a checkpoint."""

    _saved_at = 0.0
    _saved_step = 0

    def create_accelerator_and_postprocess(self) -> None:
        """transformers', and what it leaves out where the model is in parts."""
        super().create_accelerator_and_postprocess()
        sharding.prepare(self)

    def lengths(self, dataset: Any) -> list[int]:
        """Tokens of every row of the data set: its `input_ids`, else all its `..._ids` columns."""
        import pyarrow.compute  # type: ignore[import-untyped]

        columns = [name for name in dataset.column_names if name.endswith("_ids")]
        columns = ["input_ids"] if "input_ids" in columns else columns
        table = dataset.with_format("arrow")[:]
        lengths = [pyarrow.compute.list_value_length(table[name]).to_numpy() for name in columns]
        return [int(length) for length in sum(lengths)]

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        batch = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        self.order = Order(self.lengths(dataset), args.seed, batch)
        return self.order

    def _run_epoch(self, **kwargs: Any) -> None:
        self.order.epoch = kwargs["epoch"]  # not set_epoch: it does not reach a sampler that skips
        super()._run_epoch(**kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """After a step; stops where a process was told to, or saw a loss that is not finite."""
        due = (
            self.args.save_strategy in ("no", "best")
            and time.monotonic() - self._saved_at > SAVE_SECONDS
            and self.state.global_step < self.state.max_steps
        )
        # looked at once a step, and not after each micro-batch: it makes the device wait
        self.stop_asked, due, lost = self._agreed(self.stop_asked, due, not math.isfinite(tr_loss))
        if lost:
            raise StageFailed(
                f"The loss is not finite at step {self.state.global_step}. Lower "
                f"trainer.learning_rate (now {self.args.learning_rate:g}), or look for broken rows "
                "in the data; the last checkpoint is kept."
            )
        if self.stop_asked:
            self.control.should_training_stop = True
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if (self.stop_asked or due) and self._saved_step != self.state.global_step:
            self._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            self.out.progress(self.state.global_step, self.state.max_steps, "steps")

    def _agreed(self, *flags: bool) -> list[bool]:
        """The flags that any process has raised: a signal reaches processes at different steps."""
        if self.args.world_size == 1:
            return list(flags)
        import torch

        raised = torch.tensor(flags, dtype=torch.int32, device=self.args.device)
        torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the numbers to `metrics.jsonl`, with our own count of tokens."""
        super().log(logs, start_time)
        numbers = self.state.log_history[-1]
        if "train_runtime" in numbers:  # TRL's averages of one call: wrong after a resume
            return
        numbers.pop("num_tokens", None)
        numbers.pop("eval_num_tokens", None)
        numbers["tokens"] = self.order.tokens(self.state.global_step)
        if self.is_world_process_zero():
            self.out.metrics(**numbers)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._check_room()
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            # transformers 5.23 forgets the best one if its directory is not there before the parts
            checkpoint.mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            sharding.note(self, checkpoint)
            checkpoints.seal(checkpoint)
            checkpoints.prune(folder)
        self._saved_at = time.monotonic()
        self._saved_step = self.state.global_step

    def _check_room(self) -> None:
        """See that a checkpoint fits on the disk: three times the weights that are trained."""
        from transformers.trainer_pt_utils import get_model_param_count

        size = next(w.element_size() for w in self.model.parameters() if w.requires_grad)
        needed = 3 * size * get_model_param_count(self.model, trainable_only=True)
        free = shutil.disk_usage(self.args.output_dir).free
        if free < needed:
            raise StageFailed(
                f"The disk is full: a checkpoint takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} "
                f"are free at {self.args.output_dir}. Free some space and run again: training goes "
                "on from the last checkpoint."
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL's card would name local paths."""

    def _send_telemetry(self) -> None:
        """None."""
