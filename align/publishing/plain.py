"""Settings and texts as others may read them: without this machine's paths and hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.tokens import ScalarToken

from align import yaml
from align.records import is_path

WHERE = ("launch", "workers")
"""Settings that say on which machines a stage ran; what it made does not depend on them."""

FILES = ("path", "data_dir", "data_files", "chat_template", "tokenizer", "use")
"""Settings that name files: a blank in one of them is part of the name."""

_ROOTED = r"(?:(?:~[\w.-]*|\.{1,2})/|/[^\s/'\"]+/)"
"""How a path begins: `~/`, `~ann/`, `../`, `/home/`."""

_PATH = re.compile(rf"{_ROOTED}[^\n]*")
_QUOTED = re.compile(rf"([\"'])({_ROOTED}[^\"'\n]*)\1")
_ABSOLUTE = re.compile(r"""(?<![\w/.}$…<])(?:~[\w.-]*|\.{1,2})?(?:/[^\s/'",:;(){}\[\]]+)+/?""")
_URL = re.compile(
    r"\b([a-z][a-z0-9+.-]*)://[^\s'\",}\]/?#]*([^\s'\",}\]?#]*)"
    # commas and brackets may be part of what signs an address
    r"(?:[?#][^\s'\"]*?(?=[,}\])]*(?:[\s'\"]|$)))?",
    re.IGNORECASE,
)


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
    """A path's last part, a URL without its host and what signs it; other words as they are."""
    if "://" in word:
        return _URL.sub(_address, word)
    blanks = any(map(str.isspace, word))
    if _PATH.fullmatch(word) or ("/" in word and not blanks and is_path(word)):
        return PurePath(word).name
    return word


def file(word: str) -> str:
    """The name of what a setting leads to that names files; ids of the hub as they are."""
    blanks = any(map(str.isspace, word))
    return PurePath(word).name if blanks and "://" not in word else name(word)


def text(said: str) -> str:
    """A text with the last parts of the paths in it that begin at a root, `~` or `..`."""
    said = _URL.sub(_address, said)
    said = _QUOTED.sub(lambda found: f"{found[1]}{PurePath(found[2]).name}{found[1]}", said)
    return _ABSOLUTE.sub(lambda found: PurePath(found[0]).name, said)


def recipe(said: str, overrides: Iterable[str]) -> tuple[str, list[str]] | None:
    """A recipe's text and its overrides; None where they say on which machines it was run."""
    root = yaml.load(said, "", [])
    below = [] if root is None else list(root.walk())
    sets = [setting.partition("=") for setting in overrides]
    keys = {key for path, _ in below for key in path}
    if not keys.union(*(key.split(".") for key, _, _ in sets)).isdisjoint(WHERE):
        return None
    paths = (node.value for _, node in below if isinstance(node.value, str))
    folders = {path.rpartition("/")[0] for path in paths if _PATH.fullmatch(path)}
    blanks = sorted((one for one in folders if " " in one), key=len, reverse=True)
    return _written(said, blanks), [f"{key}={_written(value, blanks)}" for key, _, value in sets]


def _written(said: str, folders: Sequence[str]) -> str:
    """A text in YAML with names for the values that are paths, and no paths in its comments.

    Any other value stays to the letter: `</answer>` and `yes/no` are what a model learns to write.

    Args:
        said: the text.
        folders: directories with blanks in their names, at which a path in a comment would end.
    """
    found, at = [], 0

    def between(end: int) -> str:
        part = said[at:end]
        for folder in folders:
            part = part.replace(f"{folder}/", "")
        return text(part)

    for token in YAML(typ="safe", pure=True).scan(said):
        if not isinstance(token, ScalarToken):
            continue
        start, end, shown = token.start_mark.index, token.end_mark.index, token.value
        if _PATH.fullmatch(shown) or "://" in shown:
            shown = name(shown)
        asis = said[start:end]
        ends = "\n" if asis.endswith("\n") else ""  # of a text over several lines
        found += [between(start), asis if shown == token.value else f"{_scalar(shown)}{ends}"]
        at = end
    return "".join(found) + between(len(said))


def _setting(key: str, value: Any) -> Any:
    """One setting; the files of rewards and tasks keep their shelf's name."""
    if key == "use" and isinstance(value, str) and not PurePath(value).is_absolute():
        return value
    return _files(value) if key in FILES else settings(value)


def _files(value: Any) -> Any:
    """Names of files, as `data_files` has them: one, several, or several by split."""
    if isinstance(value, Mapping):
        return {key: _files(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_files(inner) for inner in value]
    return file(value) if isinstance(value, str) else value


def _scalar(word: str) -> str:
    """A word as YAML that reads as this word again."""
    plain = re.fullmatch(r"[\w.-]+", word) and YAML(typ="safe", pure=True).load(word) == word
    return word if plain else json.dumps(word, ensure_ascii=False)


def _address(found: re.Match[str]) -> str:
    return f"{found[1]}://…/{found[2].rpartition('/')[2]}"


def _artifact(value: Mapping[str, Any]) -> Any:
    if "artifact" in value:
        return value.get("name") or value["artifact"]
    return settings(value.get("model") or value["path"])
