"""What the model hub's local cache holds, and which commit a name there means.

The cache is read as files: asking it must not cost an import.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align import credentials
from align.artifacts import read_json
from align.errors import Problem, RecipeError

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

Kind = Literal["model", "dataset"]

STRANGE = (ValueError, KeyError, TypeError)
"""What the client raises of a name that cannot be, and of answers that are none of a hub's."""

NOTES = ".hub"
"""In the store: which commit a name meant, in files as those of the hub's cache."""

COMMIT = re.compile(r"[0-9a-f]{40}")

LOGIN = "Log in (`hf auth login`), or set HF_TOKEN."


def cache() -> Path:
    """The directory of the hub's local cache."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return Path(home).expanduser() / "hub"


def cached(kind: Kind, name: str, revision: str | None) -> str | None:
    """The commit of a cached model or data set; None where it is not cached.

    Of a model that only its card was read of there is a directory, too.
    """
    folder = snapshot(kind, name, revision)
    if folder is None:
        return None
    configs = [folder / "config.json", folder / "adapter_config.json"]
    return folder.name if kind == "dataset" or any(map(Path.is_file, configs)) else None


def reference(kind: Kind, name: str, revision: str | None) -> str:
    """The file, below a cache's directory, that says which commit a name means."""
    return f"{kind}s--{name.replace('/', '--')}/refs/{revision or 'main'}"


def noted(store: Path, kind: Kind, name: str, revision: str | None) -> str | None:
    """The commit a name meant when it was last used in this store."""
    return _read(store / NOTES / reference(kind, name, revision))


def note(store: Path, resolved: dict[str, str]) -> None:
    """Keep in the store which commits names meant, by `reference`.

    Its cache does not know: what is fetched by its commit has no name there.
    """
    for name, commit in resolved.items():
        file = store / NOTES / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        temporary.write_text(commit, encoding="utf-8")
        os.replace(temporary, file)


def kept(file: Path) -> dict[str, str]:
    """The commits that a recipe began with, by `reference`: as this file says, else its stages.

    Raises:
        RecipeError: the file is damaged.
    """
    if not file.is_file():
        return _recorded(file.parent)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if isinstance(found, dict) and all(COMMIT.fullmatch(str(commit)) for commit in found.values()):
        return found
    message = "This file is damaged. Delete it alone: the recipe's stages know their commits, too."
    raise RecipeError([Problem(str(file), "", message)])


def _recorded(folder: Path) -> dict[str, str]:
    """The commits that stand in the records of a recipe's stages; the first that was begun counts.

    They do not say of which branch or tag they were.
    """
    found: dict[str, str] = {}

    def walk(value: Any) -> None:
        if isinstance(value, dict) and COMMIT.fullmatch(str(value.get("revision"))):
            kind: Kind = "dataset" if "split" in value else "model"
            found.setdefault(reference(kind, str(value.get("path")), None), value["revision"])
        for below in value.values() if isinstance(value, dict) else value:
            if isinstance(below, (dict, list)):
                walk(below)

    for file in sorted(folder.glob("*/stage.json"), key=lambda file: file.stat().st_mtime):
        walk(read_json(file)["settings"])
    return found


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def snapshot(kind: Kind, name: str, revision: str | None) -> Path | None:
    """The directory of what the cache has of a model or data set; None where it has nothing."""
    commit = revision
    if commit is None or not COMMIT.fullmatch(commit):
        commit = _read(cache() / reference(kind, name, revision))
    folder = cache() / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    return folder / commit if commit and (folder / commit).is_dir() else None


class Silent(LookupError):
    """The hub has not answered in time."""


def offline() -> bool:
    """Whether the user forbids going online."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def resolve(kind: Kind, name: str, revision: str | None, patience: float = 20) -> str:
    """The commit that a name means now, as the hub says; it may take `patience` seconds.

    The cache is not asked: its `main` is that of the last download. An adapter is fetched at once:
    it is small, and what it is put on stands in its files alone.

    Raises:
        LookupError: the hub cannot be asked or does not know; half a sentence and the remedy.
        Silent: it does not answer.
    """
    if offline():
        raise LookupError(
            "the environment says to stay offline (HF_HUB_OFFLINE). Download it, or go online."
        )
    from httpx2 import HTTPError, TimeoutException
    from huggingface_hub import HfApi, ModelInfo, snapshot_download

    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=patience)
        if info.gated:  # everyone may know of it: its files are what must be asked for
            HfApi().auth_check(name, repo_type=kind)
        if isinstance(info, ModelInfo) and _is_adapter(info):
            snapshot_download(name, revision=info.sha)
    except (HTTPError, OSError, *STRANGE) as error:
        silent = isinstance(error, (TimeoutException, TimeoutError))
        raise (Silent if silent else LookupError)("{}. {}".format(*reason(error))) from None
    return str(info.sha)


def _is_adapter(info: ModelInfo) -> bool:
    files = {file.rfilename for file in info.siblings or ()}
    return "adapter_config.json" in files and "config.json" not in files


def reason(error: Exception) -> tuple[str, str]:
    """Why the hub did not do what it was asked for, and the remedy.

    The first is half a sentence; the second is one or more, and ends with a full stop.
    """
    from httpx2 import TransportError
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the environment says to stay offline (HF_HUB_OFFLINE)", "Unset it to go online."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "nobody is logged in to the hub on this machine", LOGIN
    if isinstance(error, (TransportError, ConnectionError, TimeoutError)):
        fact = f"{constants.ENDPOINT} cannot be reached: {words(error)}"
        return fact.rstrip("."), "Look at the network, and at HF_ENDPOINT where it is set."
    if isinstance(error, errors.GatedRepoError):
        return "it is gated", f"Ask its owners for access, on its page. {LOGIN}"
    if isinstance(error, errors.DisabledRepoError):
        return "the hub has disabled it", "Look at its page."
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has no such revision of it", "Its page shows its branches and tags."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has none of that name, or only for others", f"Look at the name. {LOGIN}"
    if isinstance(error, errors.HFValidationError):
        return f"the name cannot be one of the hub: {words(error)}".rstrip("."), "Look at it."
    if isinstance(error, (json.JSONDecodeError, KeyError, TypeError)):
        remedy = "Look at HF_ENDPOINT where it is set, and at a network that wants a login first."
        return f"{constants.ENDPOINT} does not answer as a hub does", remedy
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if status == 401:
        return "the hub refuses the token of this machine", LOGIN
    if status in (409, 412):
        return "somebody else changes it at this moment", "Try again."
    if status == 429 or status >= 500:
        return f"the hub is busy (status {status})", "Try again later."
    return f"the hub says: {words(error)}".rstrip("."), "Look at its page."


def words(error: Exception) -> str:
    """What an error says: the hub's own words where it has some, in one line, without secrets."""
    from huggingface_hub.errors import HfHubHTTPError

    told = error.server_message if isinstance(error, HfHubHTTPError) else None
    line = " ".join(credentials.hidden(told or str(error)).split())[:200]
    return f"{(line or type(error).__name__).rstrip('.')}."
