"""Room on the disk: how much a run needs, and what can go."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align import slurm, store
from align.adapters import carried
from align.artifacts import Artifact, Model, read_json
from align.errors import StageFailed
from align.estimate.anatomy import anatomy
from align.publishing import places
from align.shapes import Unknown

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

FLOOR = 16 << 20
"""Bytes for a stage's data, logs and numbers, whatever it is."""

CHECKPOINTS = 3
"""How many checkpoints of a training lie on the disk at once: the last two, and the next while it
is written. Each is the trained weights and two numbers of the optimizer for each of them: three
times their size."""

ADAPTER = 0.05
"""An adapter's share of a base whose shape is not known: rank 64 on all linear layers of an 8B
model is 4 %."""


def check(plan: Plan, missing: Sequence[Planned]) -> None:
    """See that the disk has room for what is missing.

    Counted are the models that stay, and once what the largest stage has on the disk while it runs:
    the checkpoints of a training, the folded models of an average. Not counted
    is a model whose shape is not known and whose files are not here.

    Raises:
        StageFailed: needed and free, in a sentence.
    """
    stay, checkpoints = 0.0, 0.0
    for stage in missing:
        begun = _size(store.partial(stage.artifact.path))
        stay += max(0.0, stays(stage) + FLOOR - begun)
        checkpoints = max(checkpoints, passes(stage) - begun)
    needed, free = stay + checkpoints, store.free(plan.store)
    if missing and needed > free:
        raise StageFailed(
            f"{plan.store} needs {human(needed)} for {len(missing)} stages and has "
            f"{human(free)} free. Free some space: `align clean` lists what no recipe needs."
        )


def stays(stage: Planned) -> float:
    """The bytes of the model that a stage makes; by its files where its shape is not known."""
    if not isinstance(stage.artifact, Model):
        return 0.0
    with contextlib.suppress(Unknown):
        made = anatomy(stage.artifact)
        if made.lora is None:
            return 4.0 * made.shape.parameters(made.head)
        return made.adapter / 2 if made.quantization else made.adapter
    consumed = [value for value in _models(stage) if isinstance(value, Model)]
    full = max((_weights(model) for model in consumed), default=0.0)
    adapted = stage.record["settings"].get("lora") or any(map(_adapter, consumed))
    whole = stage.kind in ("merge", "average") and carried(stage.artifact)[0] is None
    return full * ADAPTER if adapted and not whole else full


def passes(stage: Planned) -> float:
    """The bytes that a stage has on the disk only while it runs.

    The checkpoints of a training; of an average that is no adapter, the models with one but the
    first, which `weights.averaged` folds and writes.
    """
    if "trainer" in stage.record["settings"]:
        return 3 * CHECKPOINTS * stays(stage)
    made = stage.artifact
    if stage.kind != "average" or not isinstance(made, Model) or carried(made)[0] is not None:
        return 0.0
    settings = dict(stage.stage)
    shares = settings["weights"] or [1.0] * len(settings["models"])
    used = [model for model, share in zip(settings["models"], shares, strict=True) if share]
    return stays(stage) * sum(carried(model)[0] is not None for model in used[1:])


def _models(stage: Planned) -> Iterable[object]:
    for name in type(stage.stage).model_fields:
        value = getattr(stage.stage, name)
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _adapter(model: Model) -> bool:
    """Whether a model has an adapter, or will have one."""
    if (model.path / "model.json").is_file():
        return bool(model.spec()["adapter"])
    return bool(getattr(model.stage, "lora", None))


def _weights(model: Artifact) -> float:
    """The bytes of a model's full weights: its base's, where it is an adapter."""
    if not isinstance(model, Model):
        return 0.0
    if (model.path / "model.json").is_file():
        base = Path(read_json(model.path / "model.json")["base"]["path"]).expanduser()
        return float(_size(model.path / base, "*.safetensors"))
    if model.stage is None:
        return float(_size(model.path, "*.safetensors"))
    inner = [getattr(model.stage, name) for name in type(model.stage).model_fields]  # type: ignore[attr-defined]
    return max((_weights(one) for one in inner if isinstance(one, Model)), default=0.0)


def _size(path: Path, pattern: str = "*") -> int:
    return sum(file.stat().st_size for file in path.rglob(pattern) if file.is_file())


def human(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


# What can go


def unneeded(root: Path, plans: Iterable[Plan] = ()) -> dict[Path, int]:
    """Directories of the store that no recipe needs, with their sizes.

    Needed is what `runs/<recipe>/` links to for any recipe run here, what the given plans name, and
    whatever those were made from; a directory that is being written is left alone. Nobody needs the
    folders that pushes leave which were for looking at, or refused.
    """
    ahead = [stage.artifact.path for plan in plans for stage in plan.stages.values()]
    for link in root.glob("*/*"):
        if link.is_symlink():
            name = link.readlink().name
            ahead.append(root / name.removesuffix(store.PARTIAL))
    needed: set[Path] = set()
    while ahead:
        path = ahead.pop()
        if path in needed:
            continue
        needed.add(path)
        for record in (path / "stage.json", store.partial(path) / "stage.json"):
            if record.is_file():
                ahead += [root / key for key in read_json(record)["inputs"]]
        if path.is_dir():
            ahead += store.used([path])
    found = {}
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        own = root / path.name.removesuffix(store.PARTIAL)
        if path.is_symlink() or not (path / "stage.json").is_file():
            continue
        if path in needed or (path == store.partial(own) and own in needed and not own.exists()):
            continue
        if store.writer(root, own.name) is None:
            found[path] = _size(path)
    for path in sorted(root.glob(f"{places.PUSHES}/*/")):
        if store.writer(root, f"push.{path.name.removesuffix('.merged')}") is None:
            found[path] = _size(path)
    return found


def remove(paths: Iterable[Path]) -> None:
    """Remove artifacts, each at once: one that is being removed is not taken for a whole one."""
    for path in paths:
        gone = path.with_name(f"{path.name}.removed")
        path.rename(gone)
        shutil.rmtree(gone)
        shutil.rmtree(slurm.folder(path), ignore_errors=True)
        (path.parent / ".locks" / path.name.removesuffix(store.PARTIAL)).unlink(missing_ok=True)


def clean(root: Path, plans: Iterable[Plan] = (), yes: bool = False) -> list[str]:
    """Show what no recipe needs, and remove it if told `yes`; the lines to print."""
    found = unneeded(root, plans)
    if not found:
        return [f"Nothing in {root} is unneeded."]
    lines = [f"{human(size):>10}  {path}" for path, size in found.items()]
    total = human(sum(found.values()))
    if yes:
        remove(found)
        return [*lines, f"Removed {total}."]
    return [*lines, f"{total} in all. `align clean --yes` removes them."]
