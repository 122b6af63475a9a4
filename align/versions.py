"""What code made an artifact: recorded in its manifest, not part of its key.

An upgrade must not retrain everything, so versions are shown (`align plan`) and not hashed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import align
from align.shelf import SHELF

LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
)


@functools.cache
def libraries() -> dict[str, str]:
    """Versions of Python, of this project and of the libraries it stands on; imports none."""
    found = {"python": platform.python_version(), "align": align.__version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def shelf_files(record: dict[str, Any]) -> dict[str, str]:
    """The shipped files (`reward/model.py`) a stage uses, each with a short hash of its bytes."""
    found = {}
    for name in sorted(set(_uses(record))):
        path = SHELF / name
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return found


def _uses(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("use"), str) and value["use"].endswith(".py"):
            yield value["use"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _uses(item)


def differing(manifest: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Versions an artifact was made by that are not today's: name -> (then, now)."""
    then: dict[str, str] = manifest.get("versions", {})
    now = libraries()
    return {
        name: (then[name], now[name]) for name in now if name in then and then[name] != now[name]
    }
