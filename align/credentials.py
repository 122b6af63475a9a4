"""What keys and tokens look like: for what is read, and for what leaves this machine.

Tokens of services are told by the beginning their makers gave them for that purpose, and by what
must follow; random letters alone are no sign (a hash is as random).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator

LOOKS: dict[str, str] = {
    "a Hugging Face token": r"(?:hf_|api_org_)[A-Za-z0-9]{30,}",
    # one capital letter and one digit: not every hyphenated word behind "sk-" is a key
    "an OpenAI or Anthropic key": r"sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}",
    "a GitLab token": r"glpat-[\w-]{20,}",
    "an AWS key": r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "a Google key": r"AIza[\w-]{35}",
    "a Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a Stripe key": r"[rs]k_live_[A-Za-z0-9]{24,}",
    "a Weights & Biases key": r"wandb_v\d_\w{20,}",
    "a package index's token": r"npm_[A-Za-z0-9]{36}|pypi-AgEI[\w-]{50,}",
    "a signed token (JWT)": r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
}
"""What it is called, and its pattern, which begins where no word goes on."""

PRIVATE_KEY = (
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
    r"(?:-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)"
)
"""A private key from its first line to its last."""

USERINFO = r"(?<=://)[^\s/:@\"'<>]+:[^\s/@\"'<>]+(?=@[\w.-])"
"""User and password in an address."""

_NAMES = tuple(LOOKS)
_TOKEN = re.compile(r"(?<![A-Za-z0-9])(?:" + "|".join(f"({look})" for look in LOOKS.values()) + ")")
_OTHERS = ((re.compile(PRIVATE_KEY), "a private key"), (re.compile(USERINFO), "a password"))
_SECRET_NAME = re.compile(r"(?i)token|key|secret|passw|passphrase|credential")
_QUERY = re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]+")

SHORTEST = 8
"""Letters of a variable's value from which on it is searched for: shorter ones are in any text."""


def found(text: str) -> Iterator[tuple[int, int, str]]:
    """Where a text holds what looks like a key: begin, end, and what it is."""
    for match in _TOKEN.finditer(text):
        assert match.lastindex is not None
        yield match.start(), match.end(), _NAMES[match.lastindex - 1]
    for pattern, name in _OTHERS:
        for match in pattern.finditer(text):
            yield match.start(), match.end(), name


def values() -> dict[str, str]:
    """The secrets in this process's environment: the variable's name for each value.

    A variable is secret by its name. Paths, which such variables hold too, are none.
    """
    return {
        value: name
        for name, value in sorted(os.environ.items())
        if _SECRET_NAME.search(name) and len(value) >= SHORTEST and not os.path.isabs(value)
    }


def encoded(value: str) -> list[str]:
    """What base64 makes of a value wherever it stands in what is encoded: the part that is its own.

    Three bytes become four letters, so there are three ways, by the place it begins at.
    """
    ways = []
    for shift in range(3):
        data = b"\0" * shift + value.encode()
        whole = base64.b64encode(data[: len(data) // 3 * 3]).decode()
        ways.append(whole[(0, 2, 3)[shift] :])
    return [form for way in ways for form in {way, way.translate(str.maketrans("+/", "-_"))}]


def hidden(text: str) -> str:
    """A text without keys, tokens, the environment's secrets, and what signs an address."""
    text = _QUERY.sub(r"\1", text)
    for value in sorted(values(), key=len, reverse=True):
        text = text.replace(value, "***")
    for begin, end, _ in sorted(found(text), reverse=True):
        text = f"{text[:begin]}***{text[end:]}"
    return text
