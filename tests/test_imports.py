"""Which way imports go, and what `align plan` must never load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "numpy")

LAYERS = (
    {"errors"},
    {"yaml", "options", "artifacts"},
    {"models", "generation", "hub"},
    {"stages"},
    {"recipe"},
    {"runner", "worker"},
    {"verbs"},
    {"cli"},
)


def imports(body: list[ast.stmt], always: bool) -> Iterator[str]:
    """The modules of this project that statements import; `always`: whenever they are imported."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(node.orelse, always)
        elif not (always and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            for name in ("body", "orelse", "finalbody", "handlers"):
                yield from imports(getattr(node, name, []), always)


def graph(always: bool) -> dict[str, set[str]]:
    """Module -> the modules of align it imports; a stage is `stages.<kind>`."""
    files = {
        ".".join(path.relative_to(ROOT / "align").with_suffix("").parts): path
        for path in (ROOT / "align").rglob("*.py")
        if path.name != "__init__.py" and "_shelf" not in path.parts
    }
    return {
        name: {
            found.removeprefix("align.")
            for found in imports(ast.parse(path.read_text(encoding="utf-8")).body, always)
            if found.removeprefix("align.") in files and found.startswith("align.")
        }
        for name, path in files.items()
    }


def reached(name: str, edges: dict[str, set[str]]) -> set[str]:
    ahead, seen = [name], set[str]()
    while ahead:
        for found in edges[ahead.pop()] - seen:
            seen.add(found)
            ahead.append(found)
    return seen


def layer(name: str) -> int | None:
    name = name.partition(".")[0]
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


def test_every_module_the_layers_name_exists() -> None:
    names = {name.partition(".")[0] for name in graph(always=True)}
    assert set().union(*LAYERS) <= names


def test_imports_go_one_way() -> None:
    edges = graph(always=True)
    wrong = [
        f"{name} imports {found}"
        for name in edges
        for found in reached(name, edges)
        if (here := layer(name)) is not None
        and (there := layer(found)) is not None
        and (there > here or (there == here == LAYERS.index({"stages"}) and name != found))
    ]
    assert not wrong


def test_no_module_imports_itself_in_a_circle() -> None:
    edges = graph(always=True)
    assert not [name for name in edges if name in reached(name, edges)]


@pytest.mark.parametrize("shelf", ["recipes", "reward", "eval"])
def test_shelf_files_import_align_and_never_each_other(shelf: str) -> None:
    for path in (ROOT / shelf).rglob("*.py"):
        for name in imports(ast.parse(path.read_text(encoding="utf-8")).body, always=False):
            top = name.partition(".")[0]
            assert top not in ("recipes", "reward", "eval"), f"{path}: {name}"
            assert top in sys.stdlib_module_names or not (path.parent / f"{top}.py").exists()


def test_nothing_imports_the_shelf() -> None:
    for path in (ROOT / "align").rglob("*.py"):
        tops = {
            name.partition(".")[0]
            for name in imports(ast.parse(path.read_text(encoding="utf-8")).body, always=False)
        }
        assert not tops & {"recipes", "reward", "eval"}, path


def loaded(code: str) -> set[str]:
    """The heavy libraries that a program has loaded at its end."""
    code = f"import sys\n{code}\nprint(*({set(HEAVY)!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split("\n")[-2].split())


@pytest.mark.parametrize(
    "recipe", sorted(path.parent.name for path in (ROOT / "recipes").glob("*/recipe.yaml"))
)
def test_planning_a_shipped_recipe_loads_no_heavy_library(recipe: str, tmp_path: Path) -> None:
    arguments = ["plan", recipe, "--store", str(tmp_path)]
    assert loaded(f"from align.cli import main\nassert main({arguments!r}) == 0") == set()


@pytest.mark.parametrize("stage", sorted(p.stem for p in (ROOT / "align/stages").glob("[a-z]*.py")))
def test_importing_a_stage_loads_no_heavy_library(stage: str) -> None:
    assert loaded(f"import align.stages.{stage}") == set()


@pytest.mark.parametrize("command", ["--help", "schema", "clean"])
def test_other_light_commands_load_none_either(command: str) -> None:
    assert loaded(f"from align.cli import main\nassert main([{command!r}]) == 0") == set()
