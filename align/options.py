"""Checks blocks of library options: every key and every type, against the installed version."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from align.settings import Library
from align.signatures import model_types, options
from align.yaml import Node, show

OWNED = {
    "output_dir": "every stage writes into its own directory of the store",
    "seed": "the stage's own seed: decides",
    "push_to_hub": "uploading is a command of its own, so a missing login cannot end a run",
    "hub_token": "tokens are read from the environment (HF_TOKEN)",
    "token": "tokens are read from the environment (HF_TOKEN)",
    "use_auth_token": "tokens are read from the environment (HF_TOKEN)",
}
"""Options that no recipe sets, whatever the library."""


def nearest(word: str, words: Iterable[str]) -> str:
    """` Did you mean "…"?`, or nothing where no word is near."""
    close = difflib.get_close_matches(word, list(words), 1, 0.6)
    return f' Did you mean "{close[0]}"?' if close else ""


def check(library: Library, block: Node) -> Iterator[tuple[str, str]]:
    """What is wrong with a block of library options: (place, message).

    A target that ends in `AutoConfig` is a model's configuration: which one, `model_type` says.
    """
    if not isinstance(block.value, dict):
        yield block.place, f"This must be a block of options, not {show(block.value)}."
        return
    target = library.target
    package = target.partition(":")[0].partition(".")[0]
    ours: set[str] = set()
    if target.endswith(":AutoConfig"):
        node = block.get("model_type")
        if node is None:
            yield block.place, '"model_type" is missing, for instance "llama".'
            return
        if node.value not in model_types():
            hint = nearest(str(node.value), model_types())
            fact = f"{show(node.value)} is no model type of the installed {package}."
            yield node.place, fact + hint
            return
        target = model_types()[str(node.value)]
        ours = {"model_type"}
    try:
        known = options(target)
    except LookupError as error:
        yield block.place, str(error)
        return
    owned = {key: why for key, why in OWNED.items() if key in known} | library.owned
    for key, node in block.value.items():
        if key in ours:
            continue
        if key in owned:
            yield node.key, f'"{key}" cannot be set here: {owned[key].rstrip(".")}.'
        elif key not in known:
            hint = nearest(key, known.keys() - owned.keys())
            name = target.partition(":")[2]
            yield node.key, f'"{key}" is no option of {package}\'s {name}.{hint}'
        elif not known[key].type.accepts(node.python()):
            type_ = known[key].type
            hint = nearest(node.value, type_.words) if isinstance(node.value, str) else ""
            yield node.place, f'"{key}" must be {type_}, not {show(node.value)}.{hint}'
