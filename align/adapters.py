"""Which adapter, on which base: what can be said of them before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from align.artifacts import Model
from align.settings import Stage

OTHER_ADAPTER = (
    "The model carries an adapter already ({}) and lora is {}. Leave `lora:` out to go on training "
    "the adapter, or merge it first: a stage with `use: merge`."
)


def check_lora(model: Model | None, lora: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What a stage yields from `check` where its `lora:` is not the adapter that comes with it."""
    carried = _carried(model)
    if lora is not None and carried is not None and carried != lora:
        yield "lora", OTHER_ADAPTER.format(carried, lora)


def _carried(model: Model | None) -> dict[str, Any] | None:
    """The `lora:` of the adapter that a model will carry, known before it is made."""
    settings = dict(model.stage) if model and isinstance(model.stage, Stage) else {}
    if "lora" not in settings:
        return None
    return settings["lora"] or _carried(settings.get("model"))
