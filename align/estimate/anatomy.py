"""What a planned model will be made of: its shape, adapter and quantization, before it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align import adapters, shapes
from align.artifacts import Model, RewardModel
from align.errors import StageFailed
from align.estimate import memory
from align.estimate.memory import Parts
from align.settings import Stage
from align.shapes import Shape, Unknown


@dataclass(frozen=True)
class Anatomy:
    """What a model will be made of, known before it is made."""

    shape: Shape
    lora: dict[str, Any] | None
    quantization: dict[str, Any] | None
    width: int
    """Bytes of a weight on a GPU where it is not quantized."""

    head: bool

    @property
    def adapter(self) -> float:
        """Bytes of the adapter, which PEFT holds in float32."""
        return 4.0 * memory.adapter(self.shape, self.lora, self.head) if self.lora else 0.0

    @property
    def parts(self) -> Parts:
        """Its weights in memory, to be used and not to be trained."""
        held = memory.weights(self.shape, self.width, self.quantization, self.head)
        return {**held, "adapter": self.adapter}


def anatomy(model: Model) -> Anatomy:
    """What a model is or will be made of.

    Raises:
        Unknown: its shape is not known here.
    """
    try:
        (lora, quantization), base = adapters.carried(model), adapters.root(model)
    except StageFailed as failure:  # its files are not there, or not yet
        raise Unknown(str(failure)) from None
    if base is None:
        shape, width = _new(model), 2
    else:
        shape = shapes.of(base.path, base.revision)
        width = 4 if base.dtype == "float32" else 2
    return Anatomy(shape, lora, quantization, width, isinstance(model, RewardModel))


def _new(model: Model | None) -> Shape:
    """The shape of a model that a stage of this recipe begins from nothing."""
    while model is not None and isinstance(model.stage, Stage):
        settings = dict(model.stage)
        if settings.get("config"):
            return configured(settings)
        model = settings.get("model") or next(iter(settings.get("models", ())), None)
    raise Unknown("what the model is made of is not known")


def configured(settings: dict[str, Any]) -> Shape:
    """The shape of the model that a `pretrain` stage with these settings begins."""
    words = settings["tokenizer"].vocab_size
    return shapes.shape({**settings["config"], "vocab_size": words})
