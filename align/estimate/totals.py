"""What a stage will take, before anything is spent: memory of a GPU, disk, tokens, time.

Memory is an upper bound for the longest rows that the recipe allows; docs/estimate.md has the
formulas and what they were compared with. What cannot be known is None, and `why` says so.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from align import adapters, launch, records
from align.artifacts import Model, RewardModel, Samples
from align.estimate import memory, steps
from align.estimate.anatomy import Anatomy, anatomy, configured
from align.estimate.memory import GIB, Parts
from align.generation import decoding
from align.generation.decoding import ROWS
from align.generation.endpoint import Endpoint
from align.scoring.judging import MOST
from align.settings import Stage
from align.shapes import Shape, Unknown
from align.signatures import options
from align.stages.sample import Sample
from align.training import micro_batch

if TYPE_CHECKING:
    from align.recipe import Planned

CONTEXT = GIB
"""An allowance, not a measurement, for the CUDA context, kernels and cuBLAS workspaces, which
PyTorch does not count. transformers' guide "Model training anatomy" sees 1.3 GB on a V100."""

FRAGMENTS = 0.05
"""An allowance for what PyTorch's allocator cannot use again, as a share of everything else."""

PROMPT = 1024
"""Tokens that a prompt is taken to have at most where answers are drawn or scored."""

CONFIGS = {
    "sft": "trl.trainer.sft_config:SFTConfig",
    "pretrain": "trl.trainer.sft_config:SFTConfig",
    "dpo": "trl.trainer.dpo_config:DPOConfig",
    "reward_model": "trl.trainer.reward_config:RewardConfig",
}
"""The kinds of stage that train, with the configuration whose defaults hold."""


@dataclass(frozen=True)
class Estimate:
    """What one stage will take."""

    memory: Parts | None
    """Bytes on each GPU at the highest moment, by what they are for; empty: it needs none."""

    why: str = ""
    """Why memory is not known."""

    devices: int = 1

    @property
    def peak(self) -> float | None:
        """Bytes on each GPU, with what is reserved."""
        return None if self.memory is None else sum(self.memory.values())


def stage(planned: Planned) -> Estimate:
    """What a stage of a plan will take."""
    what = planned.stage
    settings = {name: getattr(what, name) for name in type(what).model_fields}
    try:
        parts = _memory(what, planned.record["use"])
    except Unknown as error:
        return Estimate(None, str(error))
    if parts:
        used = sum(parts.values())
        parts = {**parts, "reserve": CONTEXT + FRAGMENTS * used}
    return Estimate({k: v for k, v in parts.items() if v}, devices=launch.processes(settings))


def work(what: Any, use: str) -> Any:
    """What the time for a token hangs on: two stages with the same are alike.

    Raises:
        Unknown: it is not known.
    """
    if use in CONFIGS:
        return step(what, use)
    if use == "sample":
        if isinstance(what.engine, Endpoint):
            raise Unknown("a server draws the answers")
        return anatomy(what.model), what.rows
    if use == "score":
        return [anatomy(judge) for judge in _judges(what)]
    raise Unknown(f"the time of {use} does not hang on tokens")


def _memory(what: Any, use: str) -> Parts:
    if use in CONFIGS:
        found = [steps.peak(step(what, use))]
        if use == "reward_model" and (what.holdout or what.eval_data):  # measured as it was written
            made = _trained(what, use)
            found.append(_scoring(made, _length(what, use, made.shape)))
        return max(found, key=_sum)
    if use == "probe":
        return _probing(what)
    if use in ("sample", "ghost") and _served(what.engine):
        return {}
    if use == "ghost":
        return _drawing(what.model, what.rows or ROWS, 1, what.generation)
    if use == "sample":
        found = [_drawing(what.model, what.rows or ROWS, d.n, d.generation) for d in what.drawn()]
        return max(found, key=_sum)
    if use == "score":
        length = PROMPT + _longest(what.samples)
        found = [_scoring(anatomy(judge), length) for judge in _judges(what)]
        return max(found, key=_sum, default={})
    if use == "evaluate":
        found = [_scoring(anatomy(judge), 2 * PROMPT) for judge in _judges(what)]
        models = [model for model in what.models if not isinstance(model, RewardModel)]
        for task in (task for task in what.tasks if task.ask != "score"):
            options = {**task.decoding(), **task.generation}
            found += [_drawing(one, what.rows or ROWS, task.samples, options) for one in models]
        return max(found, key=_sum, default={})
    if use == "curate":  # what decontamination reads of tasks loads none of their models
        rules = [what.quality, what.difficulty, what.semantic]
        loaded = [one for one in records.consumed(rules) if isinstance(one, Model)]
        return max([_scoring(anatomy(one), 2 * PROMPT) for one in loaded], key=_sum, default={})
    if use == "merge":
        made = anatomy(what.model)
        return memory.weights(made.shape, made.width, head=made.head)
    if use != "average" and any(isinstance(one, Model) for one in records.consumed(what)):
        raise Unknown(f"{use} is a stage of your own")
    return {}


def _sum(parts: Parts) -> float:
    return sum(parts.values())


# -- training ------------------------------------------------------------------------------------


def step(what: Any, use: str) -> steps.Step:
    """What the memory of a training stage's step depends on.

    Raises:
        Unknown: the model's shape is not known here.
    """
    trainer, processes = what.trainer, launch.processes({"launch": what.launch})
    micro = micro_batch(what.batch_size, processes, trainer.get("per_device_train_batch_size"))
    made = _trained(what, use)
    attention = _attention(what)
    checkpointing = trainer.get("activation_checkpointing", True)
    each = 2 if use in ("dpo", "reward_model") else 1
    found = steps.Step(
        shape=made.shape,
        sequences=each * micro,
        length=_length(what, use, made.shape),
        lora=made.lora,
        quantization=made.quantization,
        head=made.head,
        stored=made.width,
        autocast=bool(trainer.get("bf16", True) or trainer.get("fp16")),
        checkpointing=trainer.get("gradient_checkpointing", checkpointing),
        masked=each * micro > 1 and "flash" not in attention,
        accumulates=what.batch_size > processes * micro,
        optim=trainer.get("optim", "adamw_torch_fused"),
        measured=_measured(what, use, each),
        spread=spread(launch.asked({"launch": what.launch}), processes),
    )
    if use == "dpo":
        found = _beside(found, what)
    if use == "pretrain" and what.concatenate:
        return replace(found, masked=False)
    if trainer.get("packing"):  # one row, whose documents a mask keeps apart
        return replace(found, sequences=1, length=micro * found.length, masked=not attention)
    return found


def _beside(step: steps.Step, what: Any) -> steps.Step:
    """With the reference of `dpo`, where it is live and not an adapter on the policy's base."""
    if not (what.trainer.get("sync_ref_model") or launch.shards({"launch": what.launch})):
        return step
    if what.reference not in (None, what.model):
        other = anatomy(what.reference)
        return replace(step, reference=other.shape.parameters(), reference_stored=other.width)
    if step.lora is not None:
        return step
    return replace(step, reference=step.shape.parameters(), reference_stored=step.stored)


def _trained(what: Any, use: str) -> Anatomy:
    """What a training stage trains: its model, with the adapter and quantization it asks for."""
    head = use == "reward_model"
    if use == "pretrain" and what.model is None:
        return Anatomy(configured(dict(what)), None, None, 4, head)
    made = anatomy(what.model)
    lora = getattr(what, "lora", None) or made.lora
    quantization = getattr(what, "quantization", "inherit")
    if isinstance(quantization, str):
        quantization = made.quantization
    base = adapters.root(what.model)
    short = base is not None and base.dtype in ("bfloat16", "float16")
    width = made.width if lora or short else 4
    return Anatomy(made.shape, lora, quantization or None, width, head)


def _attention(what: Any) -> str:
    base = adapters.root(what.model)
    return (base.attn_implementation or "") if base is not None else ""


def _length(what: Any, use: str, shape: Shape) -> int:
    """The most tokens of a row: `trainer.max_length`, at most the model's context."""
    longest = what.trainer.get("max_length", default(use, "max_length"))
    known = [number for number in (longest, shape.max_position_embeddings) if number]
    if not known:
        raise Unknown("neither trainer.max_length nor the model says how long a row may be")
    return int(min(known))


def _measured(what: Any, use: str, each: int) -> int:
    if not what.eval_data:
        return 0
    rows = what.trainer.get("per_device_eval_batch_size")
    return each * int(rows or default(use, "per_device_eval_batch_size"))


@functools.cache
def default(use: str, name: str) -> Any:
    """The default of an option of TRL's, read from its source; None where it is no literal."""
    value = options(CONFIGS[use])[name].default
    if isinstance(value, ast.Call):
        value = next((word.value for word in value.keywords if word.arg == "default"), None)
    return value.value if isinstance(value, ast.Constant) else None


def spread(asked: dict[str, Any], processes: int) -> steps.Spread:
    """How training is shared out by options of `accelerate launch`, as `launch.asked` has them."""
    if asked.get("use_fsdp"):
        kept = asked.get("fsdp_reshard_after_forward", True) in (False, "false")
        offloads = {"weights", "optimizer"} if asked.get("fsdp_offload_params") else set()
        parts = 1 if kept else processes
        return steps.Spread(processes, parts, processes, not kept, False, frozenset(offloads))
    if asked.get("use_deepspeed"):
        level = int(asked.get("zero_stage", 2))
        away = {
            name
            for name, key in (("weights", "param"), ("optimizer", "optimizer"))
            if asked.get(f"offload_{key}_device", "none") not in ("none", None)
        }
        weights = processes if level == 3 else 1
        states = processes if level >= 2 else 1
        return steps.Spread(processes, weights, states, level == 3, True, frozenset(away))
    return steps.Spread(processes)


# -- asking --------------------------------------------------------------------------------------


def _drawing(model: Model, rows: int, n: int, generation: dict[str, Any]) -> Parts:
    made = anatomy(model)
    new = generation.get("max_new_tokens", decoding.OPTIONS["max_new_tokens"])
    context = made.shape.max_position_embeddings or PROMPT + new
    prompt = max(1, min(PROMPT, context - new))
    beside = memory.sampling(made.shape, made.width, rows, -(-rows // n), prompt, new)
    return {**made.parts, **beside}


def _probing(what: Any) -> Parts:
    """What answers and what judges: one model in turns, or two in memory together."""
    rows = what.rows or ROWS
    served = _served(what.engine)
    drawn = {} if served else _drawing(what.model, rows, what.n, what.generation)
    if what.judge_server is not None or (what.judge is None and served):
        return drawn
    judged = _drawing(what.judge or what.model, rows, 1, {"max_new_tokens": MOST})
    if what.judge is None:
        return max(drawn, judged, key=_sum)
    return {**drawn, "judge": _sum(judged)}


def _served(engine: Any) -> bool:
    """Whether a server has the weights, and nothing is loaded here."""
    return isinstance(engine, Endpoint) and engine.probe == "name"


def _judges(what: Any) -> list[RewardModel]:
    """The reward models that score something in a stage."""
    return [one for one in records.consumed(what) if isinstance(one, RewardModel)]


def _longest(samples: Samples) -> int:
    """The most tokens of an answer, as far as the stage that drew it says."""
    settings = dict(samples.stage) if isinstance(samples.stage, Stage) else {}
    if "samples" in settings:  # scored before
        return _longest(settings["samples"])
    draws = samples.stage.drawn() if isinstance(samples.stage, Sample) else []
    options = [draw.generation for draw in draws] or [settings.get("generation", {})]
    default = decoding.OPTIONS["max_new_tokens"]
    return max(int(one.get("max_new_tokens", default)) for one in options)


def _scoring(made: Anatomy, length: int, tokens: int = 16384) -> Parts:
    """A reward model scores batches of so many tokens, in float32 unless it is quantized."""
    if not made.quantization:
        made = replace(made, width=4)
    mask = tokens * length * (1 + made.width)
    return {**made.parts, "activations": tokens * memory.passing(made.shape, made.width) + mask}
