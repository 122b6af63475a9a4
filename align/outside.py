"""What a recipe takes from outside the store: data and models, by path or hub id.

Everything that can be known without loading them is checked here: that files exist and hold what
they should, and which commit a hub name means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import adapters, glance, hub, shelf
from align.artifacts import Artifact, Model, RewardModel
from align.data import Source
from align.errors import StageFailed
from align.models import Base, token_problem
from align.options import nearest
from align.records import external, is_path
from align.sources import local
from align.spec import adapted_base, is_adapter
from align.yaml import Node, show

if TYPE_CHECKING:
    from align.reading import Reader

TEMPLATES = Path(__file__).parent / "templates"

BAD: Any = object()
"""Stands for a value that could not be read; its problem is already noted."""


# -- data ----------------------------------------------------------------------------------------


def source(
    reader: Reader, node: Node, path: tuple[str, ...], wanted: Sequence[type[Artifact]]
) -> Any:
    """A data source: a stage with settings of ours, files, or a hub id. A `Source`, or BAD."""
    block = node.value if isinstance(node.value, dict) else {"path": node}
    name, stage = block.get("path"), block.get("stage")
    given: dict[str, Any] = {}
    if (name is None) == (stage is None):
        fact = "both; a source is one of the two" if name else "neither"
        return reader.problem(node.key, path, f'This needs "path" or "stage", and has {fact}.')
    if stage is not None:
        ours = ("stage", "columns", "weight", "count", "without")
        if extra := [key for key in block if key not in ours]:
            message = f'"{extra[0]}" is for data from outside, and this is a stage\'s.'
            return reader.problem(block[extra[0]].key, path, message)
        given["stage"] = _stage(reader, stage, (*path, "stage"), wanted)
    else:
        assert name is not None
        for key in ("data_files", "data_dir"):
            if key in block:
                given[key] = _files(reader, block[key], path, key)
        given |= _data(reader, name, block, path)
    read = reader.block(Source, Node(block, node.place, node.key), path, given)
    if isinstance(read, Source):
        try:
            local.named(read)
        except FileNotFoundError as error:
            where = block["data_files"]
            message = f'"data_files": there is no file {show(str(error))}.'
            return reader.problem(where.place, path, message)
        try:
            glance.form_of(read, wanted, reader.strict)
        except StageFailed as failure:
            return reader.problem(block["path"].place, path, str(failure))
    return read


def _stage(
    reader: Reader, node: Node, path: tuple[str, ...], wanted: Sequence[type[Artifact]]
) -> Any:
    if isinstance(node.value, str) and (node.value in reader.later or node.value == "base"):
        return reader.stage(node, path, wanted)
    if isinstance(node.value, str):
        return reader.unknown(node, path)
    return reader.wrong(node, path, f"must be a word, not {show(node.value)}.")


def _files(reader: Reader, node: Node, path: tuple[str, ...], key: str) -> Any:
    """`data_files` or `data_dir`, with variables that may not be set."""
    for _, below in node.walk():
        if below.place in reader.unset and reader.unset_path(below, path) is BAD:
            return BAD
        if not isinstance(below.value, (str, list, dict)):
            fact = f"names files by words, not {show(below.value)}."
            return reader.wrong(below, (*path, key), fact)
    return node.python()


def _data(
    reader: Reader, node: Node, block: dict[str, Node], path: tuple[str, ...]
) -> dict[str, Any]:
    """What `path:` of a data source means: the fields it decides."""
    word = node.value
    if not isinstance(word, str):
        reader.problem(node.place, path, f'"path" is a word, not {show(word)}.')
        return {"path": BAD}
    if node.place in reader.unset:
        return {"path": BAD if reader.unset_path(node, path) is BAD else word}
    if word in local.LOADERS and not os.path.exists(word):
        if "data_files" not in block:
            reader.problem(node.key, path, f'"{word}" needs "data_files": which files?')
            return {"path": BAD}
        return {"path": word}
    if "://" in word:
        reader.unchecked(path, f"{word} is not on this machine")
        return {"path": word}
    if is_path(word):
        _unversioned(reader, node, block, path)
        return {"path": _local_data(reader, node, path)}
    if word.count("/") == 1:
        return {"path": word, "revision": _commit(reader, "dataset", word, block, node, path)}
    reader.problem(node.place, path, f'"{word}" is neither a file nor a hub id (owner/name).')
    return {"path": BAD}


def _unversioned(reader: Reader, node: Node, block: dict[str, Node], path: tuple[str, ...]) -> None:
    """Refuse the revision of a path: it would change keys, and nothing that is read."""
    if "revision" in block and block["revision"].value is not None:
        fact = f'"{node.value}" is a path, which has no revisions. Leave "revision" out.'
        reader.problem(block["revision"].place, path, fact)


def _local_data(reader: Reader, node: Node, path: tuple[str, ...]) -> Any:
    word = str(node.value)
    found = shelf.find(word)
    if found is None:
        return reader.problem(node.place, path, f'There is no file "{word}".')
    files = local.below(found) if found.is_dir() else [found]
    try:
        if not any(file.stat().st_size for file in files if file.is_file()):
            return reader.problem(node.place, path, f'"{word}" is empty.')
    except OSError as error:
        fact = f'"{error.filename}" cannot be read: {error.strerror}.'
        return reader.problem(node.place, path, fact)
    return str(found)


def _commit(
    reader: Reader,
    kind: hub.Kind,
    name: str,
    block: dict[str, Node],
    node: Node,
    path: tuple[str, ...],
) -> Any:
    """The commit a hub id means: that which the recipe began with, else as the hub says now.

    `plan` asks nobody and takes what is known here; so does a run that cannot ask.
    """
    asked = block["revision"].value if "revision" in block else None
    if asked is not None and not isinstance(asked, str):
        place = block["revision"].place
        return reader.problem(place, path, f'"revision" is a word, not {show(asked)}.')
    reference = hub.reference(kind, name, asked)
    if (commit := reader.resolved.get(reference)) is not None:
        return commit
    kept = reader.kept.get(reference)
    commit = kept or hub.cached(kind, name, asked) or hub.noted(reader.store, kind, name, asked)
    here = hub.cached(kind, name, commit) if commit else None
    if not reader.strict:
        if here is None:
            reader.unchecked(path, f"{name} is on the hub and not in the local cache")
        return commit or asked
    if here is not None and here == asked:
        return here
    try:
        if reader.silent:
            raise LookupError(reader.silent)
        now = hub.resolve(kind, name, asked, 5 if here else 20)
        if here is None and kept not in (None, now):
            hub.resolve(kind, name, kept)  # is it still there? An adapter is fetched
    except LookupError as error:
        if isinstance(error, hub.Silent):
            reader.silent = str(error)
        if here is None:
            what = f"commit {kept}, with which this recipe began," if kept else "it"
            fact = f"{what} is not in the local cache, and {error} Or name a copy on this machine."
            return reader.problem(node.place, path, f'"{name}": {fact}')
        if not hub.offline():
            reader.told.append(f"{name} is commit {here}, as last known here: {error}")
        now = here
    else:
        if kept is None and now != asked:
            reader.told.append(f"{name} is commit {now}, as the hub says.")
        elif kept not in (None, now):
            reader.told.append(
                f"{name} is commit {now} on the hub by now. This recipe began with {kept} and "
                f"keeps it. To take the new one, write `revision: {now}` beside its path."
            )
    reader.resolved[reference] = kept or now
    return kept or now


# -- models --------------------------------------------------------------------------------------


def model(reader: Reader, node: Node, path: tuple[str, ...], wanted: Sequence[type[Model]]) -> Any:
    """A model from a directory or the hub: a `Model` or `RewardModel`, or BAD."""
    read = base(reader, node, path)
    if not isinstance(read, Base):
        return BAD
    folder = Path(read.path)
    got = RewardModel if _has_score_head(folder) else Model
    if not folder.is_dir():
        got = Model if Model in wanted else RewardModel
    elif got not in wanted:
        word = "a reward model" if got is Model else "a language model"
        return reader.wrong(node, path, f'names "{folder}", which is not {word}.')
    elif got is RewardModel and (labels := _labels(folder)) != 1:
        fact = f'names "{folder}", which has {labels} labels. A reward model has one: its score.'
        return reader.wrong(node, path, fact)
    return external(read, got)


def base(reader: Reader, node: Node, path: tuple[str, ...]) -> Any:
    """A block of `from_pretrained`'s keys and ours, or its `path` alone. A `Base`, or BAD."""
    block = node.value if isinstance(node.value, dict) else {"path": node}
    name = block.get("path")
    given: dict[str, Any] = {}
    if name is not None and isinstance(name.value, str):
        word = name.value
        if name.place in reader.unset:
            given["path"] = BAD if reader.unset_path(name, path) is BAD else word
        elif is_path(word):
            _unversioned(reader, name, block, path)
            given["path"] = _local_model(reader, name, path)
        elif word.count("/") == 1:
            given["revision"] = _commit(reader, "model", word, block, name, path)
        else:
            fact = f'"{word}" is neither a directory nor a hub id (owner/name).'
            given["path"] = reader.problem(name.place, path, fact)
    template = block.get("chat_template")
    if template is not None and isinstance(template.value, str):
        given["chat_template"] = _template(reader, template, path)
    if not isinstance(node.value, (dict, str)):
        fact = f"A model is a path, a hub id or a block, not {show(node.value)}."
        return reader.problem(node.place, path, fact)
    read = reader.block(Base, Node(block, node.place, node.key), path, given)
    if not isinstance(read, Base):
        return BAD
    wrong = [
        reader.problem(block.get(key, node).place, path, message)
        for key, message in list(adapters.misfits(read)) or [*_settled(read), *_tokens(read)]
    ]
    return BAD if wrong else read


def _settled(read: Base) -> Iterator[tuple[str, str]]:
    """(key, message) of what stands beside the path of a model that a stage made."""
    if (Path(read.path).expanduser() / "model.json").is_file():
        for key in read.model_dump(exclude_defaults=True, exclude={"path"}):
            fact = f"{read.path} was made by a stage, with all that belongs to it."
            yield key, f"{fact} Leave it out, or name it where the model is made."


def _tokens(read: Base) -> Iterator[tuple[str, str]]:
    """(key, message) of what is wrong with the tokenizer files of a directory, where it is sure.

    Only the classes that take their tokens from the files alone are known to lack one.
    """
    folder = Path(read.path).expanduser()
    if is_adapter(folder) and not (folder / "tokenizer_config.json").is_file():
        folder = Path(adapted_base(folder))
    files = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if (folder / "model.json").is_file() or not all(file.is_file() for file in files):
        return
    try:
        config = json.loads(files[0].read_text(encoding="utf-8"))
        plain = config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
        plain = plain and not (folder / "special_tokens_map.json").is_file()
        asked = {"pad_token": read.pad_token, "eos_token": read.eos_token}
        own = {key: config.get(key) or (None if plain else "") for key in asked}
        if all(word is None and own[key] is not None for key, word in asked.items()):
            return
        tokens = json.loads(files[1].read_text(encoding="utf-8"))
        words = tokens["model"]["vocab"]
        known = set(words if isinstance(words, dict) else (word for word, _ in words))
        added = [*tokens.get("added_tokens", ()), *config.get("added_tokens_decoder", {}).values()]
        known |= {token["content"] for token in added}
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        yield "path", f"The tokenizer files of {folder} cannot be read: {error!r}. Look at them."
        return
    for key, word in asked.items():
        if message := token_problem(read.path, key, word, own[key], known):
            yield key, message


def _local_model(reader: Reader, node: Node, path: tuple[str, ...]) -> Any:
    word = str(node.value)
    found = shelf.find(word)
    fact = ""
    if found is None:
        fact = f'There is no directory "{word}".'
    elif not found.is_dir():
        fact = f'"{word}" is a file. A model is a directory with config.json and safetensors.'
    elif (found / "model.json").is_file():
        return str(found)
    elif not is_adapter(found) and not (found / "config.json").is_file():
        fact = f'"{word}" holds no config.json, so it is no model.'
    elif not is_adapter(found) and not any(found.glob("*.safetensors")):
        fact = f'"{word}" holds no *.safetensors. Save it with save_pretrained once.'
    return reader.problem(node.place, path, fact) if fact else str(found)


def _template(reader: Reader, node: Node, path: tuple[str, ...]) -> Any:
    """A jinja file, or the name of a template that comes with this project."""
    word = str(node.value)
    known = sorted(file.stem for file in TEMPLATES.glob("*.jinja"))
    if word in known:
        return word
    found = shelf.find(word) if is_path(word) else None
    if found is not None and found.is_file():
        return str(found)
    fact = f'There is no chat template "{word}". Name a jinja file or one of: {", ".join(known)}.'
    return reader.problem(node.place, path, fact + nearest(word, known))


def _has_score_head(folder: Path) -> bool:
    """Whether a directory holds a sequence classification model."""
    names = ("adapter/adapter_config.json", "model/config.json", "config.json")
    found = [name for name in (*names, "adapter_config.json") if (folder / name).is_file()]
    if not found:
        return False
    config = json.loads((folder / found[0]).read_text(encoding="utf-8"))
    (kind, *_) = config.get("architectures") or [""]
    return config.get("task_type") == "SEQ_CLS" or "SequenceClassification" in kind


def _labels(folder: Path) -> int:
    """How many numbers a sequence classification model gives; of an adapter's base, one."""
    if is_adapter(folder) or not (folder / "config.json").is_file():
        return 1
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return len(config.get("id2label", ("LABEL_0", "LABEL_1")))  # two are not written
