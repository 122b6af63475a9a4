"""What must never leave this machine with a model: keys, passwords, pickles, paths of its disk."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from align import credentials

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
"""Files that hold, or may hold, objects which run code when they are loaded."""

PICKLE = re.compile(rb"\x80[\x02-\x05]")
"""How a pickle of protocol 2 to 5 begins."""

SIGNED = re.compile(
    r"(?:[?&]|&amp;|\\u0026)(?:X-Amz-Signature|X-Goog-Signature|Signature|sig)=[\w%/+-]{16,}"
)
"""What signs an address: who has it can fetch what it names."""

ELSEWHERE = re.compile(
    r"(?<![\w.-])(?<!:/)(?:/(?:home|Users|root|mnt|media|data|scratch|nfs)/"
    r"|[A-Za-z]:[\\/]+Users[\\/]+)[\w.-]"
)
"""Where people and shared disks have their directories, on whatever machine a file was written."""

WORDS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "special_tokens_map.json")
"""Whose texts a tokenizer and a template give: any word may stand there."""


def find(folder: Path, places: Sequence[Path] = ()) -> list[str]:
    """What in a folder must not be pushed: a sentence for each, which says never the secret.

    Looked for: tokens and keys by their makers' forms, private keys, passwords in addresses, the
    values of this process's environment variables that are called a token, key, secret or password
    (as they are, and in base64), signed addresses, pickles by name and by content, links that lead
    out of the folder, paths below the home, the working directory and `places` (the store), and in
    configurations and the heads of weights paths of other machines, too.
    """
    looking = _Looking(folder, places)
    return [sentence for path in sorted(folder.rglob("*")) for sentence in looking.at(path)]


class _Looking:
    """What is looked for, made once for all files."""

    def __init__(self, folder: Path, places: Sequence[Path]) -> None:
        self.folder = folder
        self.values = {
            form: name
            for value, name in credentials.values().items()
            for form in (value, *credentials.encoded(value))
        }
        homes = {str(place.resolve()) for place in (Path.home(), Path.cwd(), *places)} - {"/"}
        ours = "|".join(map(re.escape, sorted(homes, key=len, reverse=True)))
        self.paths = re.compile(rf"(?<![\w.-])(?<!:/)(?:{ours})/[\w.-]") if ours else None

    def at(self, path: Path) -> Iterator[str]:
        name = path.relative_to(self.folder).as_posix()
        if not path.resolve().is_relative_to(self.folder.resolve()):
            yield f"{name}: This is a link out of the folder. Put the file itself there."
            return
        if not path.is_file():
            return
        if _pickled(path):
            remedy = "Save it as safetensors, or leave it out."
            yield f"{name}: This holds pickled objects, which run code when loaded. {remedy}"
            return
        try:
            text = _text(path)
        except SafetensorError:
            yield f"{name}: This is no safetensors file, or a damaged one. Make it anew."
            return
        seen = set[tuple[int, str]]()
        found = [*self.within(text), *(_elsewhere(text) if _describes(path) else ())]
        for start, what in sorted(found):
            line = text.count("\n", 0, start) + 1
            if (line, what) not in seen:
                seen.add((line, what))
                yield f"{name}:{line}: {what}"

    def within(self, text: str) -> Iterator[tuple[int, str]]:
        """Where a text says something that it must not, and the sentence about it."""
        remedy = "Remove it, and revoke it if it was shared."
        for begin, _, what in credentials.found(text):
            yield begin, f"This looks like {what}. {remedy}"
        for form, name in self.values.items():
            begin = text.find(form)
            while begin >= 0:
                yield begin, f"This is the value of {name}, a secret of this machine. {remedy}"
                begin = text.find(form, begin + 1)
        for match in SIGNED.finditer(text):
            yield match.start(), f"This looks like a signed address. {remedy}"
        for match in self.paths.finditer(text) if self.paths else ():
            yield match.start(), "This is a path of this machine. Name what others can reach."


def _describes(path: Path) -> bool:
    """Whether a file's words are a program's about the model: a configuration, or weights' head."""
    return path.suffix == ".safetensors" or (path.suffix == ".json" and path.name not in WORDS)


def _elsewhere(text: str) -> Iterator[tuple[int, str]]:
    for match in ELSEWHERE.finditer(text):
        yield match.start(), "This looks like a path of a machine. Name what others can reach."


def _pickled(path: Path) -> bool:
    if path.suffix == ".safetensors":  # 4 of its possible lengths look like a pickle's first bytes
        return False
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" and zipfile.is_zipfile(path):  # what torch.save writes
        with zipfile.ZipFile(path) as packed:
            return any(name.endswith((".pkl", ".npy")) for name in packed.namelist())
    return path.suffix in PICKLED or PICKLE.match(start) is not None


def _text(path: Path) -> str:
    """All that a file says: of safetensors the header, of other binary files nothing."""
    if path.suffix == ".safetensors":
        with safe_open(str(path), framework="numpy") as file:
            return "\n".join(f"{key}: {value}" for key, value in (file.metadata() or {}).items())
    data = path.read_bytes()
    return "" if b"\0" in data[:8192] else data.decode("utf-8", errors="replace")
