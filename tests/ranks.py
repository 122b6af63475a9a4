"""Trains stages in this process, one of several that a launcher started: `ranks.py PLAN.json`.

The plan has `out`, where every stage gets a directory of its name, and `stages` by name: `kind`,
`model`, `data`, `settings`, and `again`, the name of a stage whose directory it goes on in, as if
that had been killed after its first checkpoint.

FSDP and ZeRO run here as on GPUs, over gloo: accelerate is only told that these processes have
GPUs, because on a CPU it ignores FSDP without saying so.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from align.artifacts import Model
from align.data import Source
from align.out import Out
from align.settings import Stage
from align.stages.dpo import Dpo
from align.stages.reward_model import TrainRewardModel
from align.stages.sft import Sft

KINDS: dict[str, type[Stage]] = {"sft": Sft, "dpo": Dpo, "reward_model": TrainRewardModel}
OTHER = {"prompt": "{prompt}?"}
TRAINER = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 2}


def stage(kind: str, model: str, data: str, settings: dict[str, Any]) -> Stage:
    """A stage of four steps of eight rows on the base in `model`; `eval_data: true` is its data
    with other prompts.
    """
    if settings.get("eval_data"):
        settings = {**settings, "eval_data": [Source(path=data, columns=OTHER)]}
    base = Model(Path(model), spec={"base": {"path": model}, "quantization": None})
    trainer = {**TRAINER, **settings.get("trainer", {})}
    values = {"model": base, "data": [Source(path=data)], "batch_size": 8, "seed": 7}
    return KINDS[kind](**{**values, **settings, "trainer": trainer})


def go_on(before: Path, path: Path) -> None:
    """A directory like that of a stage that was killed after its first checkpoint."""
    shutil.copytree(before, path)
    for made in ("adapter", "model"):
        shutil.rmtree(path / made, ignore_errors=True)
    newest = max(path.glob("checkpoints/checkpoint-*"), key=lambda found: int(found.name[11:]))
    shutil.rmtree(newest)


def pretend_gpus() -> None:
    """Let accelerate take these processes for ones with a GPU each; tensors stay on the CPU."""
    from accelerate import PartialState
    from accelerate.state import DistributedType

    init = PartialState.__init__

    def begin(self: Any, cpu: bool = False, **options: Any) -> None:
        init(self, cpu=False, **options)

    PartialState.__init__ = begin
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def main(plan: dict[str, Any]) -> None:
    import torch

    before = dict(os.environ)
    if {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & before.keys():
        pretend_gpus()
    first = os.environ["RANK"] == "0"
    for name, asked in plan["stages"].items():
        os.environ.update(before)  # the stage before has taken away what says that it is in parts
        again = asked.pop("again", None)
        path = Path(plan["out"]) / name
        if again and first:
            go_on(path.with_name(again), path)
        elif first:
            path.mkdir(parents=True)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        stage(**asked).run(Out(path, path.parent / "cache", main=first))
    assert torch.distributed.get_world_size() == 2
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
