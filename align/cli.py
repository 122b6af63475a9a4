"""The command `align`: which verb is asked for (verbs.py), and what its end means.

Exit codes: 0 done, 1 a stage failed, 2 the recipe or its inputs are wrong (nothing ran), 3 a gate
said stop, 130 interrupted. Whatever was made is kept.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

import align
from align import shelf
from align.errors import RecipeError, StageFailed
from align.options import nearest
from align.verbs import COMMANDS, listed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `align`; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs = {command.__name__: command for command in COMMANDS}
    if given[:1] == ["--version"]:
        print(f"align-recipes {align.__version__}")
        return 0
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if given else 2
    if given[0] not in verbs:
        hint = nearest(given[0], verbs)
        print(f"align: there is no command {given[0]!r}.{hint} See: align --help", file=sys.stderr)
        return 2
    gc.disable()  # reading a recipe makes many objects and little garbage: a fifth of its time
    try:
        code = verbs[given[0]](given[1:])
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return code
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    except StageFailed as failure:
        print(failure, file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        gc.enable()


def _help() -> str:
    lines = ["usage: align COMMAND ...", "", "Recipes for post-training, checked before they run."]
    lines += ["", "commands:"]
    for command in COMMANDS:
        summary = (command.__doc__ or "").split("\n")[0]
        lines.append(f"  {command.__name__:8} {summary}")
    lines += [
        "",
        "A recipe is a YAML file, a folder with a recipe.yaml, or the name of a shipped one:",
    ]
    lines += [f"  {listed(shelf.recipes())}", "", "More: align COMMAND --help"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
