"""Every malformed recipe gets its sentences, with line and column; nothing gets a traceback."""

import random
import re
from pathlib import Path

import pytest
from recipe_world import world

from align import recipe
from align.errors import RecipeError

__all__ = ["world"]

CASES = {
    title: tuple(part.strip("\n") for part in body.split("--->"))
    for title, body in re.findall(
        r"^=== (.*?)\n(.*?)(?=^=== |\Z)",
        Path(__file__).with_name("malformed.txt").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
}


def test_there_are_at_least_sixty_of_them() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("title", CASES)
def test_a_malformed_recipe_is_explained(title: str, world: Path) -> None:
    text, expected = CASES[title]
    lines = text.split("\n")
    overrides = [line.removeprefix("$ --set ") for line in lines if line.startswith("$ --set ")]
    text = "\n".join(line for line in lines if not line.startswith("$ --set ")) + "\n"
    (world / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        recipe.read("r.yaml", overrides)
    found = [str(problem).removeprefix("r.yaml:") for problem in error.value.problems]
    assert len(found) == len(expected.split("\n")), "\n".join(found)
    for line in expected.split("\n"):  # a star at the end: what follows depends on the project
        start = line.removesuffix("*").rstrip() if line.endswith("*") else None
        assert any(f == line or (start and f.startswith(start)) for f in found), "\n".join(found)


def test_problems_come_in_the_order_of_the_file(world: Path) -> None:
    text = "base: ./no\nsead: 1\nstages:\n  a: {use: x}\n  b: {use: my/tune.py, n: 1, z: 2}\n"
    (world / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        recipe.read("r.yaml")
    places = [tuple(map(int, p.place.split(":")[1:])) for p in error.value.problems]
    assert places == sorted(places) and len(places) >= 5


GOOD = """
base: {path: ./m, dtype: auto}
seed: 7
defaults:
  tune: {model: base, trainer: {learning_rate: 1e-5}, lora: &lora {r: 4}}
stages:
  sft: {use: my/tune.py, data: [d.jsonl, {path: e.jsonl, weight: 2.0}]}
  judge: {use: my/judge.py, model: base, data: d.jsonl}
  draw: {use: my/draw.py, model: sft, prompts: d.jsonl, generation: {top_k: 0}}
  rate: {use: my/rate.py, samples: draw, rewards: [{use: my/by_model.py, model: judge}]}
  best: {use: my/pick.py, scores: rate}
  sft_2: {use: my/tune.py, data: {stage: best, weight: 1.5}}
  exam:
    models: [sft, sft_2, judge]
    tasks: [{use: my/quiz.py, data: d.jsonl, reward: my/length.py}]
    use: my/exam.py
"""
PIECES = [*"{}[],:-?|#$~\n\t\x07'é", '"', "  ", "- ", "*lora", "&x ", "<<: ", "null", "base", "sft"]
PIECES += ["1e9", "!!int ", "${env:X}", "[[", "0x", ".inf", "use: ", "stages", "-1", "true", ""]
PIECES += ["%YAML 1.1\n", "--- ", "../", "my/"]


@pytest.mark.parametrize("seed", range(4))
def test_a_recipe_damaged_at_random_is_never_answered_with_a_traceback(
    seed: int, world: Path
) -> None:
    (world / "r.yaml").write_text(GOOD)
    assert len(recipe.read("r.yaml").stages) == 7
    numbers = random.Random(seed)
    refused = 0
    for _ in range(60):
        text = GOOD
        for _ in range(numbers.randint(1, 4)):
            at, length = numbers.randrange(len(text)), numbers.choice([0, 0, 1, 3, 12])
            text = text[:at] + numbers.choice(PIECES) + text[at + length :]
        (world / "r.yaml").write_text(text, encoding="utf-8")
        try:
            recipe.read("r.yaml")
        except RecipeError as error:
            refused += 1
            assert error.problems and all(problem.message for problem in error.problems)
    assert refused > 20
