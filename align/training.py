"""What every stage that trains adds to TRL's trainers: order, checkpoints, numbers, a clean stop.

A stage mixes `Ordered` into the trainer it uses, makes its config with `arguments`, runs it with
`fit`, saves the model and ends with `finish`:

    class Trainer(Ordered, SFTTrainer):
        pass

    args = training.arguments(SFTConfig, self, out, models.half(self.model, self.lora))
    trainer = Trainer(model=network, args=args, train_dataset=rows, processing_class=tokenizer)
    metrics = training.fit(trainer, self, out)
    models.save(trainer.model, tokenizer, self.model, out, state=trainer.whole)
    training.finish(out, metrics)

Nothing here is a loss or a training loop: those are TRL's and transformers'.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from align import checkpoints, launch, placement, precision, sharding
from align.errors import StageFailed
from align.ordered import SAVE_SECONDS, Ordered
from align.out import Out
from align.owned import OWNED

__all__ = ["OWNED", "Ordered", "Trained", "arguments", "check", "dataset", "finish", "fit", "limit"]

_EVALUATED: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "save_strategy": "best",
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "prediction_loss_only": True,
    "restore_callback_states_from_checkpoint": True,
}


def check(stage: Any) -> Iterator[tuple[str, str]]:
    """What a training stage yields from `check`: how it is spread, and what it measures."""
    wrong = [*launch.problems(stage.launch)] or [*placement.check(stage)]
    yield from wrong
    if not wrong:
        micro = stage.trainer.get("per_device_train_batch_size")
        try:
            micro_batch(stage.batch_size, launch.processes({"launch": stage.launch}), micro)
        except StageFailed as failure:
            yield "batch_size", str(failure)
    for key in ("max_length", "num_train_epochs"):
        asked = stage.trainer.get(key)
        if isinstance(asked, (int, float)) and asked <= 0:
            yield f"trainer.{key}", f"It is {asked}; it must be above 0."
    measured = stage.trainer.get("eval_strategy", "no") != "no"
    if measured and not stage.eval_data:
        yield "trainer.eval_strategy", "There is nothing to measure it on: give `eval_data:`."
    if not stage.eval_data:
        return
    if not measured and "eval_strategy" in stage.trainer:
        yield (
            "trainer.eval_strategy",
            "`eval_data:` is there to be measured on. Leave out one of the two.",
        )
    for key, works in (("save_steps", None), ("save_strategy", "best")):
        if stage.trainer.get(key, works) != works:
            yield (
                f"trainer.{key}",
                "With `eval_data:` a checkpoint is kept at every best measurement, and every "
                f"{SAVE_SECONDS // 60} minutes. Leave it out; `eval_steps` says when to measure.",
            )


class Trained(Protocol):
    """The settings of a training stage that this module reads.

    With `eval_data`, the loss on it is measured ten times unless `trainer:` says otherwise, the
    best checkpoint becomes the model, and `patience` measurements without a better one end it.
    """

    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def trainer(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def eval_data(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def patience(self) -> int: ...  # noqa: D102


def arguments(config_class: type, stage: Trained, out: Out, half: bool, **defaults: Any) -> Any:
    """A TRL config: the recipe's `trainer:` over the stage's `defaults` over ours.

    To be called before the model is loaded, because transformers reads from the config how weights
    are spread. `half` is `models.half`: a quantized model is trained under bf16, because TRL casts
    its trainable weights to bf16 (measured: RewardTrainer fails otherwise), and so is one in
    bfloat16, whose adapter and head are in float32.

    Raises:
        StageFailed: `batch_size` cannot be cut into equal parts.
    """
    import torch

    gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        **precision.autocast(half),
        "gradient_checkpointing": gpu,
        "logging_steps": 1,
        "save_strategy": "steps" if "save_steps" in stage.trainer else "no",
        "report_to": "none",
        **(_EVALUATED if stage.eval_data else {}),
        **defaults,
        **stage.trainer,
    }
    # transformers warns about the old name, TRL still documents it
    settings.setdefault("activation_checkpointing", settings.pop("gradient_checkpointing"))
    if "gradient_checkpointing_kwargs" in settings:
        settings["activation_checkpointing_kwargs"] = settings.pop("gradient_checkpointing_kwargs")
    if stage.trainer.get("bf16"):
        settings["fp16"] = False
    elif settings.get("fp16"):
        settings["bf16"] = False
    world = int(os.environ.get("WORLD_SIZE", "1"))
    micro = settings.pop("per_device_train_batch_size", None)
    settings["per_device_train_batch_size"] = micro_batch(stage.batch_size, world, micro)
    share = stage.batch_size // world
    return config_class(
        output_dir=str(out.path / "checkpoints"),
        seed=stage.seed,
        data_seed=stage.seed,
        gradient_accumulation_steps=share // settings["per_device_train_batch_size"],
        use_cpu=not gpu,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=settings.pop("dataloader_pin_memory", gpu),
        **settings,
    )


def micro_batch(batch: int, world: int, asked: int | None) -> int:
    """Rows that one device holds at once: as asked, else the largest divisor up to 8.

    Raises:
        StageFailed: a step cannot be cut into equal parts.
    """
    if batch % world:
        raise StageFailed(
            f"batch_size {batch} cannot be shared by {world} processes. "
            f"Set batch_size to a multiple of {world}."
        )
    share = batch // world
    if asked is None:
        return max(n for n in range(1, min(8, share) + 1) if share % n == 0)
    if asked > share or share % asked:
        raise StageFailed(
            f"batch_size {batch} on {world} processes is {share} rows each, which cannot be cut "
            f"into parts of {asked}. Set trainer.per_device_train_batch_size to a divisor of "
            f"{share}."
        )
    return asked


def dataset(rows: Iterable[dict[str, Any]], least: int = 2) -> Any:
    """A `datasets.Dataset` of tokenized rows, 4 bytes a token: lists of int, and numbers.

    Raises:
        StageFailed: there are fewer rows than `least`.
    """
    import datasets
    import pyarrow  # type: ignore[import-untyped]

    tables = []
    stream = iter(rows)
    while block := list(islice(stream, 1000)):
        types = {
            name: pyarrow.list_(pyarrow.int32()) if isinstance(value, list) else pyarrow.float64()
            for name, value in block[0].items()
        }
        tables.append(pyarrow.Table.from_pylist(block, pyarrow.schema(types)))
    n = sum(len(table) for table in tables)
    if n < least:
        raise StageFailed(
            f"{n} rows are left of the data, and {least} are needed. Look at the rows of `data:`, "
            "and at trainer.max_length if they were too long."
        )
    return datasets.Dataset(pyarrow.concat_tables(tables))


def fit(trainer: Ordered, stage: Trained, out: Out) -> dict[str, float]:
    """Train to the end, from the last whole checkpoint where there is one.

    Returns `loss` (the mean over the last tenth of the steps), `steps`, `tokens`, `seconds` and
    `tokens_per_second` (of this process's part), and the last `eval_...` numbers.

    Raises:
        StageFailed: the loss or the weights are not finite.
        KeyboardInterrupt: told to stop (SIGTERM, SIGINT); a checkpoint was saved.
    """
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback, TrainerState

    trainer.out = out
    trainer.remove_callback(PrinterCallback)
    if stage.eval_data:
        trainer.add_callback(EarlyStoppingCallback(stage.patience))
    main = trainer.is_world_process_zero()
    folder = Path(trainer.args.output_dir)
    if main:
        checkpoints.last(folder, out)
    trainer.accelerator.wait_for_everyone()
    checkpoint = next(iter(checkpoints.found(folder)), None)
    done = int(checkpoint.name[11:]) if checkpoint else 0
    if checkpoint:
        sharding.check(trainer, checkpoint)
    if main:
        _forget(out.path / "metrics.jsonl", done)
        if checkpoint:
            out.say(f"Going on from {checkpoint.name}.")
    started = time.monotonic()
    trainer._saved_at = started
    state = TrainerState.load_from_json(checkpoint / "trainer_state.json") if checkpoint else None
    if checkpoint and state and state.global_step >= state.max_steps:
        trainer.state = state  # transformers would train one more step
        sharding.load(trainer, state.best_model_checkpoint or str(checkpoint))
    else:
        with _stopping(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.stop_asked:
        raise KeyboardInterrupt
    trainer.whole = sharding.whole(trainer)
    sharding.leave()
    _check_finite(trainer)
    if trainer.order.repeated:
        out.count("rows.repeated_to_fill_a_step", trainer.order.repeated)
    return _summary(trainer, done, time.monotonic() - started)


def _check_finite(trainer: Ordered) -> None:
    """See that no trained weight is NaN or infinite; of a model in parts, on the main process."""
    import torch

    trained = trainer.whole
    if trained is None:
        named = trainer.model.named_parameters()
        trained = {name: weight for name, weight in named if weight.requires_grad}
    for name, weight in trained.items():
        if not torch.isfinite(weight).all():
            raise StageFailed(
                f"{name} is not finite after training. "
                f"Lower trainer.learning_rate (now {trainer.args.learning_rate:g})."
            )


def _summary(trainer: Ordered, done: int, seconds: float) -> dict[str, float]:
    state = trainer.state
    losses = [line for line in state.log_history if "loss" in line]
    late = [line["loss"] for line in losses if line["step"] > 0.9 * state.global_step]
    evaluated = [line for line in state.log_history if "eval_loss" in line]
    tokens = trainer.order.tokens(state.global_step)
    return {
        "loss": sum(late) / max(1, len(late)),
        "steps": state.global_step,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": (tokens - trainer.order.tokens(done)) / seconds,
        **({k: v for k, v in evaluated[-1].items() if k.startswith("eval_")} if evaluated else {}),
    }


def _forget(metrics: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which are done again."""
    if not metrics.exists():
        return
    lines = metrics.read_text(encoding="utf-8").splitlines()
    kept = [
        line for line in lines if line.endswith("}") and json.loads(line).get("step", 0) <= step
    ]
    temporary = metrics.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(temporary, metrics)


@contextlib.contextmanager
def _stopping(trainer: Ordered) -> Iterator[None]:
    """The first SIGTERM or SIGINT ends the training after its step; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: Any) -> None:
        trainer.stop_asked = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()


def finish(out: Out, metrics: dict[str, float]) -> None:
    """End a training stage: its numbers into `metrics.json`."""
    if out.main:
        (out.path / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")


def limit(max_length: int | None, network: Any) -> int:
    """The most tokens a row may have: `trainer.max_length`, or the model's context."""
    context = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    return min(n for n in (max_length, context, 2**31) if n)
