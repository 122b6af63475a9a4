"""What keys and tokens look like: for what is read, and for what leaves this machine.

Tokens of services are told by the beginning their makers gave them for that purpose, and by what
must follow; random letters alone are no sign (a hash is as random).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator

FORMS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("a Hugging Face token", ("hf_", "api_org_"), r"[A-Za-z0-9]{30,}"),
    # one capital letter and one digit: not every hyphenated word behind "sk-" is a key
    ("an OpenAI or Anthropic key", ("sk-",), r"(?=[\w-]{,200}\d)(?=[\w-]{,200}[A-Z])[\w-]{20,}"),
    ("a GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"[A-Za-z0-9]{36,}"),
    ("a GitHub token", ("github_pat_",), r"\w{22,}"),
    ("a GitLab token", ("glpat-",), r"[\w-]{20,}"),
    ("an AWS key", ("AKIA", "ASIA"), r"[A-Z0-9]{16}"),
    ("a Google key", ("AIza",), r"[\w-]{35}"),
    ("a Google token", ("ya29.",), r"[\w-]{20,}"),
    ("a SendGrid key", ("SG.",), r"[\w-]{22}\.[\w-]{43}"),
    ("a Slack token", ("xox",), r"[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("a Stripe key", ("sk_live_", "rk_live_"), r"[A-Za-z0-9]{16,}"),
    ("a Weights & Biases key", ("wandb_v",), r"\d_\w{20,}"),
    ("a package index's token", ("npm_",), r"[A-Za-z0-9]{36}"),
    ("a package index's token", ("pypi-AgEI",), r"[\w-]{50,}"),
    ("a signed token (JWT)", ("eyJ",), r"[\w-]{10,500}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
)
"""What it is called, how it begins, and the pattern of what follows.

What is looked for far ahead has an end: else `sk-sk-sk-…` takes time in the square of its length.
"""

PRIVATE_KEY = (
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
    r"(?:-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)"
)
"""A private key from its first line to its last."""

USERINFO = r"(?<=://)[^\s/:@\"'<>]+:[^\s/@\"'<>]+(?=@[\w.-])"
"""User and password in an address."""

_BEGINS = [begin for _, begins, _ in FORMS for begin in begins]
_MARKED = (
    ("_", [begin for begin in _BEGINS if "_" in begin]),
    ("-", [begin for begin in _BEGINS if "-" in begin]),
    (".", [begin for begin in _BEGINS if "." in begin]),
    ("", [begin for begin in _BEGINS if begin.isalnum()]),
)
"""How they begin, by a character that most texts have none of."""

_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    + "|".join(f"((?:{'|'.join(map(re.escape, begins))}){rest})" for _, begins, rest in FORMS)
    + r")(?![A-Za-z0-9_])",
    re.ASCII,  # a token ends where Chinese goes on
)
_PRIVATE_KEY, _USERINFO = re.compile(PRIVATE_KEY), re.compile(USERINFO)
_SECRET_NAME = re.compile(r"(?i)(token|keys?|secrets?|passw(or)?ds?|passphrase|credentials?)(_|$)")
_QUERY = re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]+")

SHORTEST = 8
"""Letters of a variable's value from which on it is searched for: shorter ones are in any text."""


def tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """Where a text holds tokens and private keys: begin, end, and what it is."""
    if _marked(text):
        for match in _TOKEN.finditer(text):
            assert match.lastindex is not None
            yield match.start(), match.end(), FORMS[match.lastindex - 1][0]
    if "PRIVATE KEY" in text:
        for match in _PRIVATE_KEY.finditer(text):
            yield match.start(), match.end(), "a private key"


def _marked(text: str) -> bool:
    """Whether a text holds what a token begins with: ten times as fast as the pattern."""
    for mark, begins in _MARKED:
        if mark in text:
            for begin in begins:
                if begin in text:
                    return True
    return False


def found(text: str) -> Iterator[tuple[int, int, str]]:
    """Where a text holds tokens, private keys, or passwords in addresses. See `tokens`."""
    yield from tokens(text)
    if "://" in text:
        for match in _USERINFO.finditer(text):
            yield match.start(), match.end(), "a password"


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
