"""Libraries that only some settings need: named when the recipe is read, with what mends it."""

from __future__ import annotations

import importlib.util


def need(module: str, extra: str) -> None:
    """Refuse settings whose library is missing. For a pydantic validator; nothing is imported.

    Args:
        module: what is going to be imported, as `math_verify`.
        extra: the extra of this package that brings it.

    Raises:
        ValueError: the module is not installed. Its sentence says which extra to install.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"It needs {module}, which is not installed: pip install 'align-recipes[{extra}]'."
        )
