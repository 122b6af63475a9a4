"""Loading and saving models: base, quantization, adapter, tokenizer and template as one thing."""

from __future__ import annotations

from typing import Literal

from align.settings import Settings


class Base(Settings):
    """The model everything starts from: `from_pretrained`'s keys, and what belongs to its identity."""

    path: str
    """A hub id or a directory with safetensors."""

    revision: str | None = None
    """Hub revision: a commit, a tag or a branch (which is resolved to a commit)."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None

    chat_template: str | None = None
    """A jinja file or the name of a template this project ships; else the tokenizer's own."""

    pad_token: str | None = None
    eos_token: str | None = None
