"""The preference losses of TRL 1.16: what a recipe says of them that TRL would ignore or refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""The losses that read `label_smoothing`."""


def problems(trainer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a `dpo` stage yields from `check` about the losses in its `trainer:`."""
    asked = trainer.get("loss_type", "sigmoid")
    losses = [asked] if isinstance(asked, str) else list(asked)
    said, smooth = ", ".join(losses), trainer.get("label_smoothing")
    if smooth and not set(losses) & set(SMOOTHED):
        readers = ", ".join(SMOOTHED)
        yield (
            "trainer.label_smoothing",
            f"{said} does not read it: only {readers} do. Leave it out, or name one of these.",
        )
    if losses and set(losses) == {"sft"}:
        yield (
            "trainer.loss_type",
            "sft alone does not read the rejected answers. Name another loss beside it "
            "(`[sigmoid, sft]`), or use an `sft` stage.",
        )
    if "exo_pair" in losses and not smooth:
        yield "trainer.loss_type", "exo_pair needs label_smoothing above 0, such as 0.001."
    weights = trainer.get("loss_weights", losses)
    if weights is not None and len(weights) != len(losses):
        yield "trainer.loss_weights", f"There are {len(losses)} losses ({said}): one for each."
