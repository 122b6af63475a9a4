"""The quickstart's rounds: what the head of their recipe promises, and the people in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import recipe, shelf
from align.artifacts import Artifact
from align.out import Out
from align.settings import Reward, Stage
from align.world.made import World
from align.world.things import SKILLS
from align.world.truth import judge

FOLDER = Path(__file__).parents[1] / "recipes" / "quickstart"


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The rows of the prompts' stage with those settings."""

    def rows(**settings: Any) -> list[dict[str, Any]]:
        stage = shelf.load(FOLDER / "prompts.py", Stage)(**settings)
        assert isinstance(stage, Stage)
        stage.run(Out(tmp_path, tmp_path))
        text = (tmp_path / "data" / "rows.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    return rows


def test_the_first_round_is_the_quickstarts_so_that_it_is_not_made_again(tmp_path: Path) -> None:
    short = recipe.read(FOLDER / "recipe.yaml", store=tmp_path).stages
    long = recipe.read(FOLDER / "rounds.yaml", store=tmp_path).stages

    def key(artifact: Artifact) -> str:
        return artifact.key

    same = {"best": "best_1", "sft_best": "sft_1", "pairs": "pairs_1", "dpo": "dpo_1"}
    same |= {"reward": "reward_1", "sample_2": "own_1", "held_out": "held_out"}
    for theirs, ours in same.items():
        assert key(short[theirs].artifact) == key(long[ours].artifact), ours


def test_people_compare_answers_to_prompts_that_nothing_else_is_drawn_for(
    prompts: Callable[..., list[dict[str, Any]]],
) -> None:
    plan = recipe.read(FOLDER / "rounds.yaml").stages
    first, others = (dict(plan[name].stage) for name in ("prompts", "others"))
    assert others["after"] == first["rows"]
    whole = prompts(rows=40)
    assert prompts(rows=10, after=30) == whole[30:]


def test_people_find_no_fault_in_a_right_answer_and_one_at_least_in_a_wrong_one() -> None:
    import random

    people = shelf.load(FOLDER / "people.py", Reward)()
    assert isinstance(people, Reward)
    world, chance = World(0, SKILLS), random.Random(0)
    for item in world.prompts(50):
        answers = [world.answer(item, chance, faults) for faults in (0, 1, 3)]
        scores = people(
            prompts=[[{"role": "user", "content": item.prompt}]] * 3,
            completions=[[{"role": "assistant", "content": answer}] for answer in answers],
            subset=[item.skill] * 3,
            want=[dict(item.want)] * 3,
        )
        assert [score == 0 for score in scores] == [judge(item, a) == 1 for a in answers]
        assert scores[0] == 0 and all(isinstance(x, float) and x < 0 for x in scores[1:])
