"""The quickstart's world: its parts are kept apart, its judge is told no lies by its answers."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from align import artifacts, data, shelf
from align.out import Out
from align.settings import Stage
from align.world.made import World
from align.world.things import FAILING, FAULTS, SKILLS, TEST, Item
from align.world.truth import checks, judge

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart"
GROUPS = [SKILLS, FAILING]


def parts(world: World) -> dict[str, Any]:
    return {
        "text": world.text(600),
        "demonstrations": world.demonstrations(300),
        "preferences": world.preferences(300),
        "preferences test": world.preferences(300, "test"),
        "prompts": world.prompts(300),
        "test": [world.test(skill) for skill in world.skills],
    }


def sampled(world: World, rows: int) -> list[Item]:
    """That many held-out prompts of each skill."""
    return [item for skill in world.skills for item in world.test(skill, rows)]


@pytest.mark.parametrize("skills", GROUPS)
def test_every_part_follows_from_the_seed_and_another_seed_gives_others(
    skills: tuple[str, ...],
) -> None:
    made, again, other = (parts(World(seed, skills)) for seed in (5, 5, 6))
    assert made == again
    assert not [name for name in made if made[name] == other[name]]


@pytest.mark.parametrize("skills", GROUPS)
def test_no_part_depends_on_which_parts_were_asked_for_before(skills: tuple[str, ...]) -> None:
    asked, alone = World(5, skills), World(5, skills)
    parts(asked)
    assert asked.preferences(100) == alone.preferences(100)


@pytest.mark.parametrize("skills", GROUPS)
@pytest.mark.parametrize("seed", [0, 11])
def test_no_test_prompt_is_asked_in_any_other_part(skills: tuple[str, ...], seed: int) -> None:
    world = World(seed, skills)
    held_out = {item.prompt for skill in skills for item in world.test(skill)}
    turns = "\n".join(world.text(8000))
    asked = {turn.partition("<|end|>")[0] for turn in turns.split("<|user|>")[1:]}
    asked |= {row["messages"][0]["content"] for row in world.demonstrations(4000)}
    asked |= {pair["prompt"] for pair in world.preferences(4000)}
    asked |= {item.prompt for item in world.prompts(4000)}
    assert len(asked) > 3000
    assert not asked & held_out
    assert {pair["prompt"] for pair in world.preferences(500, "test")} <= held_out


@pytest.mark.parametrize("skills", GROUPS)
@pytest.mark.parametrize("seed", range(4))
def test_every_skill_has_500_different_held_out_prompts(skills: tuple[str, ...], seed: int) -> None:
    world = World(seed, skills)
    assert TEST == 500
    for skill in skills:
        assert len({item.prompt for item in world.test(skill)}) == 500


@pytest.mark.parametrize("skills", GROUPS)
def test_every_answer_without_a_fault_is_right(skills: tuple[str, ...]) -> None:
    world, chance = World(1, skills), Random(0)
    for item in sampled(world, 500):
        for _ in range(3):
            assert judge(item, world.answer(item, chance)) == 1, item


@pytest.mark.parametrize("skill", [*SKILLS, *FAILING])
def test_every_answer_with_a_persons_fault_is_wrong(
    skill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, chance = World(1, (skill,)), Random(0)
    for fault in FAULTS[skill]:
        monkeypatch.setitem(FAULTS, skill, (fault,))
        for item in world.test(skill, 200):
            assert judge(item, world.answer(item, chance, 1)) == 0, (fault, item)
    monkeypatch.undo()
    for item in world.test(skill, 200):
        assert judge(item, world.answer(item, chance, 2)) == 0, item


UNSEEN = {"instructions": 0.0, "facts": 0.125, "unknown": 0.04, "tools": 0.0, "tone": 0.13}
"""The share of single slips that leave an answer not as a person would write it and that the judge
passes: words too many or too few in a sentence ("Leru fan pilot.")."""


@pytest.mark.parametrize("skill", SKILLS)
def test_the_judge_sees_all_slips_in_exact_skills_and_seven_of_eight_in_sentences(
    skill: str,
) -> None:
    world, chance, passed, n = World(1, (skill,)), Random(0), 0, 0
    for item in world.test(skill):
        right = {world.answer(item, chance) for _ in range(12)}
        for _ in range(4):
            answer = world.answer(item, chance, 1, slip=True)
            passed += judge(item, answer) == 1 and answer.strip() not in right
            n += 1
    assert passed / n == pytest.approx(UNSEEN[skill], abs=0.04 if UNSEEN[skill] else 0)


@pytest.mark.parametrize("split", ["train", "test"])
def test_in_a_pair_the_chosen_answer_is_right_or_both_are_wrong(split: Any) -> None:
    """Of two wrong answers the chosen one may fail more checks: a filler alone spoils several."""
    world = World(2)
    items = {item.prompt: item for skill in SKILLS for item in world.items(split, skill)}
    right, upside_down, pairs = 0, 0, world.preferences(4000, split)
    for pair in pairs:
        item = items[pair["prompt"]]
        chosen, rejected = (checks(item, pair[name]) for name in ("chosen", "rejected"))
        assert judge(item, pair["rejected"]) == 0
        right += all(chosen.values())
        upside_down += sum(chosen.values()) < sum(rejected.values())
        assert pair["chosen"] != pair["rejected"]
    assert right / len(pairs) == pytest.approx(0.85, abs=0.02)
    assert upside_down / len(pairs) < 0.03


def test_one_failing_pair_in_sixteen_is_the_wrong_way_round() -> None:
    world = World(2, FAILING)
    items = {item.prompt: item for skill in FAILING for item in world.items("train", skill)}
    seen = Counter(
        tuple(judge(items[pair["prompt"]], pair[name]) for name in ("chosen", "rejected"))
        for pair in world.preferences(4000)
    )
    assert seen[1, 0] / 4000 == pytest.approx(0.85, abs=0.02)
    assert seen[0, 1] / 4000 == pytest.approx(0.06, abs=0.015)
    assert not seen[1, 1]


NESTED = '{"tool":' * 45
HOSTILE: dict[str, Callable[[Item, str], str]] = {
    "empty": lambda item, right: "",
    "spaces": lambda item, right: " \n\t\u2003 ",
    "a megabyte": lambda item, right: "a" * 2**20,
    "a megabyte around it": lambda item, right: "a" * 2**19 + right + "a" * 2**19,
    "nested JSON": lambda item, right: "[" * 100_000,
    "short nested JSON": lambda item, right: NESTED + "1" + "}" * 40,
    "brackets": lambda item, right: "[" * 199 + "]" * 199,
    "a long number": lambda item, right: "9" * 399,
    "no number": lambda item, right: '{"tool": NaN, "minutes": Infinity}',
    "null bytes": lambda item, right: "\0" * 50,
    "it and null bytes": lambda item, right: right + "\0\0",
    "unicode": lambda item, right: "\u202e\U0001f600\ud800 ١٢",
    "it and garbage": lambda item, right: right + " xyzzy 17",
    # in tone, words in front of a sentence belong to it: see UNSEEN
    "garbage and it": lambda item, right: "xyzzy 17 " + right + "!" * (item.skill == "tone"),
    "it twice": lambda item, right: right + "\n" + right,
    "the prompt": lambda item, right: item.prompt,
    "the prompt and it": lambda item, right: item.prompt + " " + right,
    "the prompt twice": lambda item, right: item.prompt * 2,
    "turn marks": lambda item, right: f"{right}<|end|><|user|>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_wrong_and_is_no_error(name: str) -> None:
    chance = Random(0)
    for skills in GROUPS:
        world = World(1, skills)
        for item in sampled(world, 40):
            answer = HOSTILE[name](item, world.answer(item, chance))
            assert judge(item, answer) == 0, (item, answer[:100])


FILES = [
    ("text", {"rows": 400}, artifacts.Text),
    ("demonstrations", {"rows": 200}, artifacts.Conversations),
    ("preferences", {"rows": 200}, artifacts.Preferences),
    ("preferences", {"rows": 200, "held_out": True}, artifacts.Preferences),
    ("prompts", {"rows": 200}, artifacts.Prompts),
    ("prompts", {"rows": 40, "held_out": True}, artifacts.Prompts),
]


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize(("name", "settings", "makes"), FILES)
def test_each_stage_file_writes_rows_that_the_later_stages_read(
    name: str, settings: dict[str, Any], makes: type, failing: bool, tmp_path: Path
) -> None:
    stage = shelf.load(RECIPE / f"{name}.py", Stage)(**settings, failing=failing)
    assert isinstance(stage, Stage)
    out = Out(tmp_path, tmp_path)
    made = stage.run(out)
    assert type(made) is makes
    rows = list(data.read(made, makes, None))
    skills = FAILING if failing else SKILLS
    each = makes is artifacts.Prompts and "held_out" in settings  # held-out prompts: of each skill
    written = list(made.rows())
    empty = sum(not row.get("rejected", "-").strip() for row in written)  # garbled to nothing
    assert len(rows) + empty == len(written) == out.counts["rows"]["n"]
    assert len(written) == settings["rows"] * (len(skills) if each else 1)
    assert empty <= len(written) / 20
    assert len({row["id"] for row in rows}) == len(rows)
    if makes is artifacts.Prompts:
        assert {row["subset"] for row in rows} == set(skills)
        assert all(row["prompt"][-1]["role"] == "user" for row in rows)
        assert json.loads(json.dumps(rows)) == rows
