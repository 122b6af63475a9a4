"""Arguments of the commands: a verb's docstring is its help."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path

from align import store


def parser_of(command: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    """The parser of a verb, without arguments: its help is the verb's docstring."""
    text = inspect.cleandoc(command.__doc__ or "")
    description, _, examples = text.partition("examples:")
    return argparse.ArgumentParser(
        prog=f"align {command.__name__}",
        description=description.strip(),
        epilog="examples:" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def recipe_parser(command: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    """The parser of a verb that takes a recipe, overrides and a store."""
    parser = parser_of(command)
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, a folder with recipe.yaml, or a shipped one"
    )
    parser.add_argument(
        "--set",
        metavar="a.b.c=VALUE",
        action="append",
        default=[],
        help="override a value of the recipe; VALUE is YAML",
    )
    add_store(parser)
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    """Where artifacts lie."""
    parser.add_argument(
        "--store",
        metavar="DIR",
        type=Path,
        default=store.RUNS,
        help=f"where artifacts lie (default: {store.RUNS})",
    )
