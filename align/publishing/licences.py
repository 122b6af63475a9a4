"""What a base's own card says of it: its licence, and who may load it."""

from __future__ import annotations

from align import hub
from align.errors import Problem, RecipeError
from align.publishing.places import Place

PRIVATE = "The base, {}, is private: only who may see it can load this adapter."


def of(base: Place) -> str | None:
    """The licence that the base's card in the hub's cache states."""
    from huggingface_hub import ModelCard

    home = hub.snapshot("model", base.repo, base.commit)
    if home is None or not (home / "README.md").is_file():
        return None
    try:
        data = ModelCard((home / "README.md").read_text(encoding="utf-8")).data
    except ValueError:  # no card, or one that is no YAML
        return None
    said = data.get("license")
    return said if isinstance(said, str) else None


def access(base: Place) -> str | None:
    """A sentence about a base that is not for everyone; None: it is.

    Raises:
        RecipeError: the hub does not have it, or cannot be asked.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(base.repo, revision=base.commit, timeout=20)
    except (HTTPError, OSError) as error:
        fact, remedy = hub.reason(error)
        message = f"Nobody could load the adapter: of its base, {fact}. {remedy}"
        raise RecipeError([Problem(base.repo, "", message)]) from None
    if info.private:
        return PRIVATE.format(base.repo)
    if info.gated:
        return f"The base, {base.repo}, is gated: who loads this adapter has to be let in there."
    return None
