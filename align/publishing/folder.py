"""The folder that is pushed: weights, tokenizer and template, as transformers and PEFT read them.

What a training leaves besides (checkpoints, optimizers, logs, arguments as pickles, the copy of an
adapter that was DPO's reference) has no way in: files are taken by what they are for.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from align import headers, models
from align.artifacts import Model, RewardModel
from align.errors import StageFailed
from align.out import Out
from align.publishing.places import Place

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
GENERATION = "generation_config.json"
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


def build(model: Model, base: Place | None, folder: Path) -> None:
    """Write the folder of an adapter on `base`, or of a model with all its weights.

    Weights are linked where the file system can, never loaded.

    Args:
        model: as it lies in the store, or in a directory.
        base: where everyone finds the adapter's base; None: all weights are the model's own.
        folder: made anew.

    Raises:
        StageFailed: a file is missing.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spec, tokenizer = models.describe(model), models.tokenizer(model)
    if spec.adapter:
        assert base is not None, "an adapter has a base"
        _link(spec.adapter / ADAPTER, folder)
        _write(folder / CONFIG, _named(_read(spec.adapter / CONFIG), base))
    else:
        home = Path(spec.base.path)
        for name in weights(home):
            _link(home / name, folder)
        _write(folder / "config.json", _nowhere(_read(home / "config.json")))
    tokenizer.save_pretrained(str(folder))
    if not isinstance(model, RewardModel):
        _write(folder / GENERATION, _generation(headers.folder(spec.base), tokenizer))


def merged(model: Model, work: Path, cache: Path, say: Callable[[str], None]) -> Model:
    """The model with its adapter folded in, compared and refused as by the stage `merge`."""
    from align.stages.merge import Merge

    class Told(Out):
        """Says lines without the mark that they have in a log."""

        def say(self, message: str) -> None:
            say(message)

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return Merge(model=model).run(Told(work, cache))


def weights(home: Path) -> list[str]:
    """The files of a directory's weights: those that its index names, or the one there is.

    Raises:
        StageFailed: there are none.
    """
    if (home / INDEX).is_file():
        return [INDEX, *sorted(set(_read(home / INDEX)["weight_map"].values()))]
    if not (home / WHOLE).is_file():
        raise StageFailed(
            f"{home} has neither {WHOLE} nor {INDEX}. Save the model with `save_pretrained` once "
            "and push that."
        )
    return [WHOLE]


def sizes(folder: Path) -> dict[str, int]:
    """The files of a folder with their bytes, in order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _nowhere(value: Any) -> Any:
    """A configuration, and those within it, without where they were loaded from on this machine."""
    if isinstance(value, list):
        return [_nowhere(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _nowhere(one) for key, one in value.items() if key != "_name_or_path"}


def _named(config: dict[str, Any], base: Place) -> dict[str, Any]:
    """An adapter's configuration with its base by id and commit; the same bytes every time."""
    config |= {"base_model_name_or_path": base.repo, "revision": base.commit}
    config["inference_mode"] = True
    config = dict(_nowhere(config))
    for key in ("target_modules", "modules_to_save"):  # sets: their order changes from run to run
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    return dict(sorted(config.items()))


def _generation(home: Path | None, tokenizer: Any) -> dict[str, Any]:
    """The base's way of drawing answers, which ends where the template ends a turn.

    As JSON: transformers refuses to write some of what it reads (a temperature without sampling).
    """
    file = None if home is None else home / GENERATION
    config = _read(file) if file and file.is_file() else {}
    ends = SimpleNamespace(eos_token_id=config.get("eos_token_id"))
    models.stop_at(ends, tokenizer)
    config.pop("_from_model_config", None)  # true means that another may be made of config.json
    return dict(_nowhere(config)) | vars(ends)


def _read(file: Path) -> dict[str, Any]:
    """A configuration. A stage's were verified before: one that is damaged is not of the store."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fact = f"cannot be read: {error}"
    else:
        if isinstance(value, dict):
            return value
        fact = "holds no JSON object"
    raise StageFailed(f"{file} {fact}. Mend it, or fetch the model again.")


def _link(file: Path, folder: Path) -> None:
    """A second name for a file, or a copy where that cannot be."""
    if not file.is_file():
        raise StageFailed(f"{file} is missing. Run the stage that makes it again.")
    try:
        os.link(file.resolve(), folder / file.name)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, folder / file.name)


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
