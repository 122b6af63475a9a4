"""Write docs/stages.md: every stage's, reward's and task's keys, read from the classes.

`make docs` runs it; a test fails when the file is stale.
"""

import ast
import inspect
import sys
import textwrap
from pathlib import Path

from align.settings import Reward, Settings, Stage, Task
from align.shelf import load

ROOT = Path(__file__).parents[1]

HEAD = """\
# Stages, rewards and tasks

Every key of everything a recipe can use. Written by `make docs` from the classes; do not edit.

Types read as in Python. *options of X* is a block with the library's own keys, checked against the
installed version. `Model`, `Conversations` … are earlier stages that make one (`base` is the
recipe's base model); `Source` is a path, a hub id or a block (see [recipes](recipes.md)).
Keys marked *how it runs* are recorded and do not change what is made.
"""


def fields(cls: type[Settings]) -> list[tuple[str, str, str, str]]:
    """(key, type, default, purpose) of a class's own and inherited keys, its own first."""
    rows: dict[str, tuple[str, str, str, str]] = {}
    for owner in cls.__mro__:
        if owner in (Settings, Reward, Task) or not issubclass(owner, Settings):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, following in zip(body.body, [*body.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name = node.target.id
            if name not in cls.model_fields or name in rows:
                continue
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = " ".join(str(following.value.value).split())
            field = cls.model_fields[name]
            if field.exclude:
                text = f"*How it runs.* {text}"
            default = (
                "**required**"
                if field.is_required()
                else f"`{field.get_default(call_default_factory=True)!r}`"
            )
            rows[name] = (name, annotation(node.annotation), default, text)
    return list(rows.values())


def annotation(node: ast.expr) -> str:
    """The annotation as a person reads it: a library's block by the library's name."""
    source = ast.unparse(node)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and ast.unparse(inner.func) == "Library":
            target = ast.literal_eval(inner.args[0])
            return "options of `{}`'s `{}`".format(target.split(".")[0], target.split(":")[1])
    return f"`{source}`".replace("|", "\\|")


def section(path: Path) -> str:
    """One class's part of the page."""
    cls = load(path)
    lines = [f"### `{path.stem if path.parent.name == 'stages' else path.relative_to(ROOT)}`", ""]
    lines += [inspect.cleandoc(cls.__doc__ or ""), ""]
    if issubclass(cls, Stage):
        lines += [f"Makes `{inspect.get_annotations(cls.run)['return']}`.".replace("'", ""), ""]
    if rows := fields(cls):
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        lines += [f"| `{key}` | {kind} | {default} | {text} |" for key, kind, default, text in rows]
        lines += [""]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, folder in (("Stages", "align/stages"), ("Rewards", "reward"), ("Tasks", "eval")):
        files = [
            file for file in sorted((ROOT / folder).glob("*.py")) if file.name != "__init__.py"
        ]
        parts += [f"## {title}\n", *map(section, files)]
    return "\n".join(parts)


if __name__ == "__main__":
    target = ROOT / "docs" / "stages.md"
    target.write_text(page(), encoding="utf-8")
    sys.stderr.write(f"wrote {target}\n")
