"""What the files of a base say, read without torch: its config, and the shapes of its weights.

Whatever is asked here of files that cannot be read has the answer "unknown": `outside.py` and
`describe` are who refuse them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from align import hub, shapes
from align.spec import Base

Shapes = dict[str, tuple[int, ...]]
"""Tensor or module -> the shape of its weight."""

LONGEST = 100_000_000
"""The most bytes that safetensors itself reads of a header."""


def folder(base: Base) -> Path | None:
    """Where a base's files are: its directory, or the hub's cache; None: not on this machine."""
    path = Path(base.path).expanduser()
    return path if path.is_dir() else hub.snapshot("model", base.path, base.revision)


def config(base: Base) -> dict[str, Any]:
    """A base's config.json; empty where it cannot be read."""
    path = folder(base)
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def quantized(base: Base) -> str | None:
    """How the weights on the disk are quantized: gptq, awq, fp8, bitsandbytes …; else None."""
    asked = config(base).get("quantization_config")
    return str(asked.get("quant_method", "somehow")) if isinstance(asked, dict) else None


def tensors(path: Path) -> Shapes:
    """Every tensor of the safetensors files in a directory.

    Each file begins with the length of its header (8 bytes, little-endian) and the header as JSON
    (https://github.com/huggingface/safetensors, "Format").

    Raises:
        ValueError: a file has no such header, or less than it says.
        OSError: a file is missing.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = sorted(file.name for file in path.glob("*.safetensors"))
    found: Shapes = {}
    for name in names:
        with (path / name).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > LONGEST:
                raise ValueError(f"{name} has no header of safetensors")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        ends = [about["data_offsets"][1] for about in header.values()]
        if (path / name).stat().st_size < 8 + size + max(ends, default=0):
            raise ValueError(f"{name} is shorter than its header says")
        found |= {key: tuple(about["shape"]) for key, about in header.items()}
    return found


def modules(base: Base) -> Shapes | None:
    """The modules of a base that have a weight, as transformers calls them; None where unknown.

    Unknown are weights that transformers renames or joins as it loads them: those of experts, of
    models with several parts, and of those saved without their head (`layers.0…`). The shape is ()
    where it is not known, as of packed weights.
    """
    path, about = folder(base), config(base)
    if path is None:
        try:
            linears = {
                one.name: (one.outputs, one.inputs) for one in shapes.of(base.path).linears()
            }
        except shapes.Unknown:
            return None
        return {**linears, "model.embed_tokens": (), "model.norm": (), "lm_head": ()}
    try:
        found = tensors(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if not found or "text_config" in about or any(".experts." in name for name in found):
        return None
    if any(re.match(r"\w+\.\d", name) for name in found):
        return None
    packed = "quantization_config" in about
    weights = {
        name.removesuffix(".weight"): () if packed else shape
        for name, shape in found.items()
        if name.endswith(".weight")
    }
    return {"lm_head": (), **weights} if about.get("tie_word_embeddings") else weights


def tokens(path: Path) -> int:
    """How many ids the tokenizer in a directory can give; 0 where none can be read."""
    try:
        found = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        words = found["model"]["vocab"]
        ids = set(words.values() if isinstance(words, dict) else range(len(words)))
        return len(ids | {token["id"] for token in found.get("added_tokens", ())})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0
