"""What a model is made of, in numbers: read from its config.json, without loading anything.

Where the hub is out of reach, the numbers of well-known models come from shapes.json, which holds
the same keys as their config.json. Known are dense decoders of Llama's kind (`llama`, `mistral`,
`qwen2`, `qwen3`); of any other architecture nothing is guessed.
"""

from __future__ import annotations

import contextlib
import functools
import json
from ast import literal_eval
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import hub
from align.signatures import model_types, options

TABLE = Path(__file__).with_suffix(".json")

TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""The architectures whose weights `Shape` counts."""


class Unknown(LookupError):
    """A model's shape is not known; the message says why."""


@dataclass(frozen=True)
class Linear:
    """One matrix of a layer."""

    name: str
    """As in the model: `model.layers.0.self_attn.q_proj`."""

    inputs: int
    outputs: int
    bias: bool

    @property
    def weights(self) -> int:
        """Numbers in the matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json that memory depends on, under its own names."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def queries(self) -> int:
        """Width of all heads' queries together."""
        return self.num_attention_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all heads' keys together; that of the values is the same."""
        return self.num_key_value_heads * self.head_dim

    def layer(self, index: int = 0) -> tuple[Linear, ...]:
        """The matrices of one layer, in the order they are used."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        into = self.attention_bias or self.model_type == "qwen2"
        sizes = (
            ("self_attn.q_proj", hidden, self.queries, into),
            ("self_attn.k_proj", hidden, self.keys, into),
            ("self_attn.v_proj", hidden, self.keys, into),
            ("self_attn.o_proj", self.queries, hidden, self.attention_bias),
            ("mlp.gate_proj", hidden, ffn, self.mlp_bias),
            ("mlp.up_proj", hidden, ffn, self.mlp_bias),
            ("mlp.down_proj", ffn, hidden, self.mlp_bias),
        )
        at = f"model.layers.{index}."
        return tuple(Linear(at + name, i, o, bias) for name, i, o, bias in sizes)

    def linears(self) -> Iterator[Linear]:
        """The matrices of all layers: those that bitsandbytes quantizes and `all-linear` adapts."""
        for index in range(self.num_hidden_layers):
            yield from self.layer(index)

    @property
    def linear_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        return self.num_hidden_layers * sum(linear.weights for linear in self.layer())

    @property
    def embedding(self) -> int:
        """Numbers in the embedding, and in the vocabulary's head where it is another matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def small(self) -> int:
        """Numbers in norms and biases."""
        biases = sum(linear.outputs for linear in self.layer() if linear.bias)
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.model_type == "qwen3" else 0)
        return self.num_hidden_layers * (norms + biases) + self.hidden_size

    def parameters(self, head: bool = False) -> int:
        """All numbers; with `head`, those of a reward model: one row instead of the vocabulary."""
        last = self.hidden_size if head else 0 if self.tie_word_embeddings else self.embedding
        return self.linear_weights + self.embedding + self.small + last

    def cached(self, width: int = 2) -> int:
        """Bytes of keys and values that generation keeps for every token."""
        return 2 * self.num_hidden_layers * self.keys * width


def of(path: str, revision: str | None = None) -> Shape:
    """The shape of the model in a directory or under a hub id.

    A hub id is looked for in the local cache, then in the table; nothing is asked of the hub.

    Raises:
        Unknown: why.
    """
    folder = Path(path)
    if folder.is_dir():
        return _of_file(folder / "config.json")
    commit = hub.cached("model", path, revision)
    if commit is not None:
        name = f"models--{path.replace('/', '--')}"
        return _of_file(hub.cache() / name / "snapshots" / commit / "config.json")
    if path in table():
        return shape(table()[path])
    raise Unknown(f"{path} is not in the hub's cache here, and not in the table of known models")


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """Hub id -> what memory depends on of its config.json, of well-known models."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: row["config"] for row in rows for name in row["names"]}


def _of_file(file: Path) -> Shape:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return shape(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unknown(f"{file} cannot be read: {error}") from None


def shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a configuration describes; what it leaves out is transformers' default.

    Raises:
        Unknown: another architecture, or weights that are quantized already.
    """
    kind = config.get("model_type")
    if kind not in TYPES:
        raise Unknown(f'the architecture "{kind}" is not one of {", ".join(TYPES)}')
    if "quantization_config" in config:
        raise Unknown("its weights are quantized already")
    values: dict[str, Any] = {"model_type": kind}
    for name in Shape.__dataclass_fields__:
        if name not in values and (value := _value(kind, name, config)) is not None:
            values[name] = value
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
    return Shape(**values)


def _value(kind: str, name: str, config: Mapping[str, Any]) -> Any:
    if name in config:
        return config[name]
    option = options(model_types()[kind]).get(name)
    with contextlib.suppress(ValueError):  # a default that is no literal
        return None if option is None or option.default is None else literal_eval(option.default)
    return None
