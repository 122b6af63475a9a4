"""What a base's own card says of it: its licence, and who may load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from align import hub, yaml
from align.errors import Problem, RecipeError
from align.publishing.places import Place

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

Terms = dict[str, Any]
"""`license`, an identifier or several, and perhaps `license_name` and `license_link`."""

PRIVATE = "The base, {}, is private: only who may see it can load this adapter."


def of(base: Place, ask: bool) -> Terms:
    """What the base's card says of its licence; nothing where it says nothing.

    With `ask` the hub is asked: loading a model brings no card into the cache. Else, or where the
    hub does not answer, the card in the cache counts.
    """
    from httpx2 import HTTPError

    if ask and base.commit is not None and not hub.offline():
        try:
            card = _info(base).card_data
        except (HTTPError, OSError):  # a push has other reasons to fail than a licence
            return _cached(base)
        return _terms(vars(card) if card else {}, base)
    return _cached(base)


def _cached(base: Place) -> Terms:
    """What the card in the hub's cache says."""
    home = hub.snapshot("model", base.repo, base.commit)
    if home is None or not (home / "README.md").is_file():
        return {}
    text = (home / "README.md").read_text(encoding="utf-8", errors="replace")
    head = re.match(r"\s*---\s*?\n(.*?)\n---", text, re.DOTALL)
    root = yaml.load(head[1], "README.md", []) if head else None  # None where it is no YAML, too
    card = root.python() if root else None
    return _terms(card if isinstance(card, dict) else {}, base)


def _terms(card: Mapping[str, Any], base: Place) -> Terms:
    """The licence in a card's head, a link into its repository as one that leads there."""
    from huggingface_hub import constants

    said = card.get("license")
    several = said if isinstance(said, list) else [said]
    if not several or not all(isinstance(one, str) for one in several):
        return {}
    found: Terms = {"license": said}
    for key in ("license_name", "license_link"):
        if isinstance(card.get(key), str):
            found[key] = card[key]
    link = found.get("license_link")
    if link and "://" not in link:
        at = f"{constants.ENDPOINT}/{base.repo}/blob/{base.commit or 'main'}"
        found["license_link"] = f"{at}/{link}"
    return found


def access(base: Place) -> str | None:
    """A sentence about a base that is not for everyone; None: it is.

    Raises:
        RecipeError: the hub does not have it, or cannot be asked.
    """
    from httpx2 import HTTPError

    try:
        info = _info(base)
    except (HTTPError, OSError) as error:
        fact, remedy = hub.reason(error)
        message = f"Nobody could load the adapter: of its base, {fact}. {remedy}"
        raise RecipeError([Problem(base.repo, "", message)]) from None
    if info.private:
        return PRIVATE.format(base.repo)
    if info.gated:
        return f"The base, {base.repo}, is gated: who loads this adapter has to be let in there."
    return None


def _info(base: Place) -> ModelInfo:
    from huggingface_hub import HfApi

    return HfApi().model_info(base.repo, revision=base.commit, timeout=20)
