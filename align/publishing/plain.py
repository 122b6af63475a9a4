"""Settings and texts as others may read them: without this machine's paths and hosts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from align.records import is_path

WHERE = ("launch", "workers")
"""Settings that say on which machines a stage ran; what it made does not depend on them."""

_ABSOLUTE = re.compile(r"""(?<![\w:/.}$…])(?:~|\.{1,2})?(?:/[^\s/'",:;(){}\[\]]+)+""")
_URL = re.compile(r"\b([a-z][a-z0-9+.-]*)://[^\s'\",}\]]*?([^\s'\",}\]/]*)(?=[\s'\",}\]]|$)")


def settings(value: Any) -> Any:
    """A stage's recorded settings, as they would stand in a recipe.

    Earlier stages are called by their names, files by theirs, without the directories that lead
    there; what was left out is left out.
    """
    if isinstance(value, Mapping):
        if "type" in value and value.keys() & {"artifact", "model", "path"}:
            return _artifact(value)
        kept = {key: _setting(key, inner) for key, inner in value.items() if key not in WHERE}
        return {key: inner for key, inner in kept.items() if inner not in (None, {}, [])}
    if isinstance(value, list):
        return [settings(inner) for inner in value]
    return name(value) if isinstance(value, str) else value


def name(word: str) -> str:
    """A path's last part, a URL without its host; other words as they are."""
    if "://" in word:
        return _URL.sub(r"\1://…/\2", word)
    if "/" in word and not any(map(str.isspace, word)) and is_path(word):
        return PurePath(word).name
    return word


def text(said: str) -> str:
    """A text with the last parts of the paths in it that begin at a root, `~` or `..`."""
    said = _URL.sub(r"\1://…/\2", said)
    return _ABSOLUTE.sub(lambda found: PurePath(found[0]).name, said)


def _setting(key: str, value: Any) -> Any:
    """One setting; the files of rewards and tasks keep their shelf's name."""
    if key == "use" and isinstance(value, str) and not PurePath(value).is_absolute():
        return value
    return settings(value)


def _artifact(value: Mapping[str, Any]) -> Any:
    if "artifact" in value:
        return value.get("name") or value["artifact"]
    return settings(value.get("model") or value["path"])
