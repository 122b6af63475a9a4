"""What a stage was asked, as JSON: its record (all of it) and its key (what the result depends on).

In a record an artifact is `{"artifact": "sft-ab12…", "type": "Model"}`, a model from elsewhere
`{"model": {…Base}, "type": "Model"}`, a reward or a task `{"use": "reward/model.py", …}`.
In a key, names of files give way to what is in them, and what only says how a stage runs is left
out. So is what has its default value: a setting added in a later version remakes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from align import artifacts, shelf
from align.artifacts import Artifact, Model
from align.data import Source
from align.errors import StageFailed
from align.models import Base
from align.settings import Reward, Settings, Stage, Task
from align.sources import local
from align.sources.local import data_files as data_files
from align.spec import adapted_base, is_adapter

# -- content -------------------------------------------------------------------------------------


class Contents:
    """Hashes of local files, remembered in the store by path, size and time of change."""

    def __init__(self, store: Path) -> None:
        self.file = store / ".cache" / "hashes.json"
        self.known: dict[str, list[Any]] = {}
        self.changed = False
        if self.file.is_file():
            try:
                self.known = json.loads(self.file.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                self.changed = True  # a cache may be damaged: it is written anew

    def of(self, path: Path) -> str:
        """The hash of a file, or of every file below a directory with its name.

        Of a directory of the store its manifest is enough: it holds the hash of every file.
        """
        if path.is_file():
            return self._file(path)
        if (path / "artifact.json").is_file():
            return self._file(path / "artifact.json")
        files = sorted(local.below(path))
        names = [file.relative_to(path).as_posix() for file in files]
        seen = [
            (name, self._file(file))
            for name, file in zip(names, files, strict=True)
            if not any(part.startswith(".") for part in Path(name).parts)
        ]
        return digest(seen)

    def _file(self, path: Path) -> str:
        path = path.resolve()
        state = path.stat()
        known = self.known.get(str(path))
        if known is not None and known[:2] == [state.st_size, state.st_mtime_ns]:
            return str(known[2])
        sha = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                sha.update(chunk)
        self.known[str(path)] = [state.st_size, state.st_mtime_ns, sha.hexdigest()]
        self.changed = True
        return sha.hexdigest()

    def save(self) -> None:
        """Write what was learnt, if anything was."""
        if not self.changed:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f"hashes.json.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.known), encoding="utf-8")
        os.replace(temporary, self.file)


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# -- keys ----------------------------------------------------------------------------------------


def key(stage: Stage, kind: str, attempt: int, contents: Contents) -> str:
    """`<kind>-<12 hex digits>`: the name of what the stage makes."""
    asked: dict[str, Any] = {
        "kind": kind,
        "seed": stage.seed,
        "settings": {k: v for k, v in _settings(stage, contents).items() if k != "seed"},
        "inputs": [artifact.key for artifact in inputs(stage)],
    }
    if attempt:
        asked["attempt"] = attempt
    return f"{kind}-{digest(asked)[:12]}"


def inputs(value: Any) -> tuple[Artifact, ...]:
    """The artifacts of the store that a stage consumes, each once, in the order of its fields."""
    found: dict[str, Artifact] = {}
    for artifact in consumed(value):
        if artifact.stage is not None:
            found.setdefault(artifact.key, artifact)
    return tuple(found.values())


def consumed(value: Any) -> list[Artifact]:
    """The artifacts a stage consumes, those from outside the store too, in order."""
    found: list[Artifact] = []

    def walk(value: Any) -> None:
        if isinstance(value, Artifact):
            found.append(value)
        elif isinstance(value, Settings):
            for name in type(value).model_fields:
                walk(getattr(value, name))
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)

    walk(value)
    return found


def _settings(block: Settings, contents: Contents) -> dict[str, Any]:
    """A block's part of the key."""
    asked: dict[str, Any] = {}
    for name, field in type(block).model_fields.items():
        value = getattr(block, name)
        if not field.exclude and value != field.get_default(call_default_factory=True):
            asked[name] = _canonical(value, contents)
    if isinstance(block, (Stage, Reward, Task)):
        file = shelf.source(type(block))
        asked["use"] = file.stem
        if not shelf.is_shipped(file):
            asked["bytes"] = hashlib.sha256(file.read_bytes()).hexdigest()
    if isinstance(block, (Base, Source)):
        asked |= _local(block, contents)
    return asked


def _local(block: Base | Source, contents: Contents) -> dict[str, Any]:
    """The contents of the files a block names, instead of their names."""
    asked: dict[str, Any] = {}
    if isinstance(block, Base):
        if is_path(block.path) and Path(block.path).exists():
            asked["path"] = {"content": contents.of(Path(block.path))}
            if is_adapter(Path(block.path)):
                named = Path(adapted_base(Path(block.path)))
                asked["adapts"] = contents.of(named) if named.is_dir() else str(named)
        if block.chat_template and (file := Path(block.chat_template)).is_file():
            asked["chat_template"] = {"content": contents.of(file)}
        return asked
    if data_files(block):
        held = {
            split: [contents.of(Path(file)) if os.path.isfile(file) else file for file in files]
            for split, files in local.named(block).items()
        }
        asked["data_files"] = held["train"] if held.keys() == {"train"} else held
        where = None if Path(block.path or "").is_dir() else block.path
        return asked | {"data_dir": None, "path": where}
    if block.path and Path(block.path).exists():
        asked["path"] = {"content": contents.of(Path(block.path))}
    return asked


def is_path(word: str) -> bool:
    """Whether a word names a file: `.`, `/` or `~` first, a file suffix, or it exists here."""
    suffix = Path(word).suffix[1:]
    named = word[:1] in ("/", "~") or word.startswith(("./", "../")) or word in (".", "..")
    return named or (suffix.isalnum() and suffix.islower()) or os.path.exists(word)


def _canonical(value: Any, contents: Contents) -> Any:
    if isinstance(value, Settings):
        return _settings(value, contents)
    if (
        isinstance(value, Model)
        and value.stage is None
        and not (value.path / "model.json").exists()
    ):
        spec = dict(value.spec())
        base = Base.model_validate(spec.pop("base"))
        return {"base": _settings(base, contents), **spec, "type": type(value).__name__}
    if isinstance(value, Artifact):
        if value.stage is None:
            return {"content": contents.of(value.path)}
        return {"artifact": value.key}
    if isinstance(value, Path):
        return {"content": contents.of(value)} if value.exists() else str(value)
    if isinstance(value, dict):
        return {str(k): _canonical(v, contents) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item, contents) for item in value]
    return value


def identity(artifact: Artifact, contents: Contents) -> str:
    """What an artifact is, wherever it lies: the same content has the same identity."""
    return digest(_canonical(artifact, contents))


# -- records -------------------------------------------------------------------------------------


def dump(value: Any) -> Any:
    """A value of a stage as JSON, so that `revive` makes the same value of it."""
    if isinstance(value, Settings):
        fields = {name: dump(getattr(value, name)) for name in type(value).model_fields}
        if isinstance(value, (Reward, Task)):
            return {"use": shelf.name(shelf.source(type(value))), **fields}
        return fields
    if isinstance(value, Artifact):
        about = {"type": type(value).__name__, **({"name": value.name} if value.name else {})}
        if value.stage is not None:
            return {"artifact": value.key, **about}
        if isinstance(value, Model) and not (value.path / "model.json").exists():
            return {"model": dump(value.spec()["base"]), **about}
        return {"path": str(value.path), **about}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(k): dump(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    return value


def external(base: Base, cls: type[Model]) -> Model:
    """A model from outside the store: the recipe's base, a directory or a hub id."""
    path = Path(os.path.expanduser(base.path))
    if (path / "model.json").is_file():
        return cls(path)
    spec = {"base": base.model_dump(), "quantization": None, "adapter": False}
    return cls(path, spec=spec)


def restore(record: dict[str, Any], store: Path) -> Stage:
    """The stage of a record, alone: its inputs lie in the store.

    Raises:
        StageFailed: a file that the stage was made of is gone.
        RecipeError: a file of the user's cannot be imported any more.
    """
    made: dict[str, Stage | None] = {}

    def producer(name: str) -> Stage | None:
        """The stage that made an artifact, as its own record says."""
        if name not in made:
            made[name] = None
            for folder in (store / name, store / f"{name}.partial"):
                if (folder / "stage.json").is_file():
                    made[name] = build(artifacts.read_json(folder / "stage.json"))
        return made[name]

    def handle(form: str, value: Any, cls: type[Artifact]) -> Artifact:
        if form == "artifact":
            return cls(store / value, stage=producer(value))
        if form == "model":
            assert issubclass(cls, Model)
            return external(Base.model_validate(value), cls)
        return cls(Path(value))

    def revive(value: Any) -> Any:
        if isinstance(value, list):
            return [revive(item) for item in value]
        if not isinstance(value, dict):
            return value
        for form in ("artifact", "model", "path"):
            if {form, "type"} <= value.keys() <= {form, "type", "name"}:
                artifact = handle(form, value[form], getattr(artifacts, value["type"]))
                artifact.name = value.get("name", "")
                return artifact
        values = {name: revive(item) for name, item in value.items()}
        if isinstance(use := values.get("use"), str) and use.endswith(".py"):
            del values["use"]
            return _class(use).model_validate(values, strict=False)
        return values

    def build(record: dict[str, Any]) -> Stage:
        stage = _class(record["use"]).model_validate(revive(record["settings"]), strict=False)
        assert isinstance(stage, Stage)
        return stage

    return build(record)


def _class(use: str) -> type[Settings]:
    """The class of a `use`: a kind of stage, or a file."""
    file = shelf.STAGES / f"{use}.py" if "." not in use else shelf.find(use)
    if file is None or not file.is_file():
        raise StageFailed(f"{use} is gone. Put it back, or run from the directory it was in.")
    return shelf.load(file)
