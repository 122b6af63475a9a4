"""Where keys, tokens and passwords stand in a text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

_TOKEN = re.compile(
    r"""
      -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
    | (?<![A-Za-z0-9_])(?:
        A(?:KIA|SIA)[A-Z0-9]{16}                                       # AWS
      | AIza[\w-]{35}                                                  # Google
      | gh[pousr]_[A-Za-z0-9]{36,} | github_pat_\w{60,}                # GitHub
      | glpat-[\w-]{20,}                                               # GitLab
      | xox[abeoprs]-[A-Za-z0-9-]{10,}                                 # Slack
      | hf_[A-Za-z0-9]{30,}                                            # Hugging Face
      | sk-(?=[\w-]*\d)[\w-]{20,}                                      # OpenAI, Anthropic
      | [sr]k_live_[A-Za-z0-9]{16,}                                    # Stripe
      | npm_[A-Za-z0-9]{36}
      | eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}                       # JSON web token
      )(?![A-Za-z0-9_])
    """,
    re.VERBOSE | re.DOTALL,
)

_ASSIGNED = re.compile(
    r"(?:key|token|secret|passw(?:or)?d)[\"']?\s{0,3}[:=]\s{0,3}[\"']?([A-Za-z0-9+/_-]{16,}={0,2})",
    re.IGNORECASE,
)

BITS, TURNS = 3.5, 3
"""The least of what is random: bits per character (Shannon, of its own characters; hexadecimal
digits reach 4), and turns from letters to digits or back, of which a name like `version_2_final`
has few."""


def keys(text: str, known: int) -> Iterator[tuple[int, int, str]]:
    """Tokens by the form that services give them, private keys, and random values with a name.

    A text without digits (`known` is their number) has none but a private key.
    """
    if "PRIVATE KEY" in text or (known and _marked(text)):
        for match in _TOKEN.finditer(text):
            yield match.start(), match.end(), match[0]
    if known >= TURNS // 2 + 1 and ("=" in text or ":" in text):
        low = text.lower()
        if "key" in low or "token" in low or "secret" in low or "passw" in low:
            for match in _ASSIGNED.finditer(text):
                if _random(match[1]):
                    yield match.start(1), match.end(1), match[1]


def _marked(text: str) -> bool:
    """Whether a text holds what one of the services' tokens begins with, or a part of that."""
    if "AKIA" in text or "ASIA" in text or "AIza" in text or "eyJ" in text:
        return True
    if "_" in text and ("gh" in text or "hf_" in text or "k_live_" in text or "npm_" in text):
        return True
    return "-" in text and ("sk-" in text or "xox" in text or "glpat-" in text)


def _random(value: str) -> bool:
    shares = [n / len(value) for n in Counter(value).values()]
    turns = sum(a.isdigit() != b.isdigit() for a, b in pairwise(value))
    return turns >= TURNS and -sum(p * math.log2(p) for p in shares) >= BITS
