"""A stage that asks for the recipe's own tasks gets those of its `evaluate` stages."""

import re
from pathlib import Path
from typing import Any

import pytest
from recipe_world import HEAD, world

from align import recipe
from align.recipe import Plan

__all__ = ["world"]

SIFT = """
from align.settings import RecipeTasks

class Sift(Stage):
    data: list[Conversations | Source]
    against: Annotated[list[Task] | None, RecipeTasks()] = None

    def run(self, out: Out) -> Conversations: ...
"""

ASK = """
class Ask(Task):
    ask = "answer"
    data: Conversations | Source
    reward: Reward

    def items(self):
        yield {"id": "1", "prompt": "1+1?"}
"""

CHAIN = """
base: {path: ./m, dtype: float32}
stages:
  sift: {use: my/sift.py, data: d.jsonl}
  sft: {use: my/tune.py, model: base, data: sift}
  judge: {use: my/judge.py, model: base, data: d.jsonl}
  evaluate: {models: [sft], tasks: [{use: my/ask.py, data: e.jsonl, reward: {use: my/by_model.py, model: judge}}]}
"""  # noqa: E501


@pytest.fixture
def sift(world: Path) -> None:
    Path("my/sift.py").write_text(HEAD + SIFT)
    Path("my/ask.py").write_text(HEAD + ASK)


def read(text: str = CHAIN, **options: Any) -> Plan:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return recipe.read("r.yaml", **options)


def against(plan: Plan) -> list[Any]:
    found: list[Any] = plan.stages["sift"].stage.against  # type: ignore[attr-defined]
    return found


def test_the_tasks_of_a_later_evaluation_are_there_although_its_judge_is_not_made(
    sift: None,
) -> None:
    plan = read(strict=True)
    (task,) = against(plan)
    assert type(task).__name__ == "Ask" and task.data.path == "e.jsonl"
    assert plan.stages["sift"].inputs == ()
    again = recipe.restore(plan.stages["sift"].record, plan.store)
    assert against_names(again) == ["Ask"]


def against_names(stage: Any) -> list[str]:
    return [type(task).__name__ for task in stage.against]


def test_what_the_recipe_says_comes_before_its_evaluation(sift: None) -> None:
    assert against(read(CHAIN.replace("data: d.jsonl}", "data: d.jsonl, against: []}", 1))) == []


def test_how_a_task_is_asked_and_judged_makes_no_data_anew(sift: None) -> None:
    def key(text: str) -> str:
        return read(text).stages["sift"].artifact.key

    asked = CHAIN.replace("{use: my/ask.py,", "{use: my/ask.py, generation: {max_new_tokens: 9},")
    judged = CHAIN.replace("judge: {use: my/judge.py,", "judge: {use: my/judge.py, seed: 5,")
    other = re.sub(r"data: e\.jsonl", "data: d.jsonl", CHAIN)
    assert key(CHAIN) == key(asked) == key(judged) != key(other)


def test_a_task_about_rows_that_are_made_later_is_named_as_not_compared(sift: None) -> None:
    text = CHAIN.replace("data: e.jsonl", "data: sift")
    plan = read(text)
    assert against(plan) == []
    assert any("stages.sift.against" in line for line in plan.not_checked)


def test_a_task_that_is_wrong_is_said_once_and_where_it_stands(sift: None) -> None:
    with pytest.raises(recipe.RecipeError) as error:
        read(CHAIN.replace("my/ask.py", "my/nothing.py"))
    assert len(error.value.problems) == 1
    assert error.value.problems[0].path == "stages.evaluate.tasks.0"
