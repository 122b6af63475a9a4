"""From a recipe to a plan: wiring, keys, records."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from recipe_world import HEAD, world

from align import artifacts, recipe, runner
from align.errors import RecipeError
from align.recipe import Plan

__all__ = ["world"]

CHAIN = """
base: {path: ./m, dtype: float32}
seed: 7
launch: {num_processes: 2}
defaults:
  tune: {model: base, trainer: {learning_rate: 1e-5, beta2: 1}, lora: &lora {r: 4}}
stages:
  sft: {use: my/tune.py, data: [d.jsonl, {path: e.jsonl, weight: 2.0}], trainer: {packing: false}}
  judge: {use: my/judge.py, model: base, data: d.jsonl}
  draw: {use: my/draw.py, model: sft, prompts: {path: d.jsonl, split: "train[:10]"}, stop: [x]}
  rate:
    use: my/rate.py
    samples: draw
    rewards: [{use: my/by_model.py, model: judge}, my/length.py]
  best: {use: my/pick.py, scores: rate}
  sft_2: {use: my/tune.py, model: sft, data: [{stage: best, weight: 1.5}, d.jsonl], seed: 8}
  exam:
    use: my/exam.py
    models: [sft, sft_2, judge]
    tasks: [{use: my/quiz.py, data: d.jsonl, reward: my/length.py}]
    gates: [{model: sft_2, task: quiz, may_lose: 0.01}]
""".replace(", beta2: 1", "")


def read(text: str = CHAIN, *overrides: str, **options: Any) -> Plan:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return recipe.read("r.yaml", overrides, **options)


def keys(plan: Plan) -> dict[str, str]:
    return {name: stage.artifact.key for name, stage in plan.stages.items()}


def changed(one: Plan, other: Plan) -> set[str]:
    return {name for name in one.stages if keys(one)[name] != keys(other)[name]}


def test_a_plan_has_every_stage_with_what_it_makes_and_needs(world: Path) -> None:
    plan = read()
    assert plan.name == "r" and plan.seed == 7 and plan.store == Path("runs")
    assert {name: type(stage.artifact).__name__ for name, stage in plan.stages.items()} == {
        "sft": "Model",
        "judge": "RewardModel",
        "draw": "Samples",
        "rate": "Scored",
        "best": "Conversations",
        "sft_2": "Model",
        "exam": "Report",
    }
    names = {artifact: name for name, artifact in keys(plan).items()}
    inputs = {
        name: [names[artifact.key] for artifact in stage.inputs]
        for name, stage in plan.stages.items()
    }
    assert inputs["sft"] == [] and inputs["draw"] == ["sft"]
    assert inputs["rate"] == ["draw", "judge"] and inputs["sft_2"] == ["sft", "best"]
    assert inputs["exam"] == ["sft", "sft_2", "judge"]


def test_settings_come_from_the_stage_then_its_defaults_then_the_class(world: Path) -> None:
    sft: Any = read().stages["sft"].stage
    assert sft.trainer == {"learning_rate": 1e-5, "packing": False} and sft.lora == {"r": 4}
    assert sft.batch_size == 32 and sft.seed == 7 and sft.launch == {"num_processes": 2}
    assert sft.quantization == "inherit"
    assert [source.weight for source in sft.data] == [1.0, 2.0]
    assert read(CHAIN).stages["sft_2"].stage.seed == 8


def test_an_override_wins_over_the_file_and_the_file_over_its_defaults(world: Path) -> None:
    text = CHAIN.replace("packing: false", "packing: false, learning_rate: 2e-5")
    plan = read(text, "stages.sft.trainer.learning_rate=3e-5", "defaults.tune.batch_size=4")
    sft: Any = plan.stages["sft"].stage
    sft_2: Any = plan.stages["sft_2"].stage
    assert sft.trainer["learning_rate"] == 3e-5 and sft_2.trainer["learning_rate"] == 1e-5
    assert sft.batch_size == sft_2.batch_size == 4
    assert plan.overrides == [
        "stages.sft.trainer.learning_rate=3e-5",
        "defaults.tune.batch_size=4",
    ]


def test_the_same_recipe_has_the_same_keys_wherever_it_lies(world: Path) -> None:
    one = read()
    Path("other.yaml").write_text("# a comment\n" + CHAIN)
    assert keys(recipe.read("other.yaml", store=Path("elsewhere"))) == keys(one)


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("stages.exam.gates.0.may_lose=0.02", {"exam"}),
        ("stages.rate.rewards.1={use: my/length.py, target: 3}", {"rate", "best", "sft_2", "exam"}),
        ("stages.draw.n=4", {"draw", "rate", "best", "sft_2", "exam"}),
        ("stages.sft_2.data.0.weight=3", {"sft_2", "exam"}),
        ("stages.judge.seed=1", {"judge", "rate", "best", "sft_2", "exam"}),
        ("base.dtype=bfloat16", {"sft", "judge", "draw", "rate", "best", "sft_2", "exam"}),
        ("stages.sft.launch={num_processes: 4}", set()),
        ("launch=null", set()),
        ("stages.sft.batch_size=32", set()),
    ],
)
def test_a_change_remakes_what_depends_on_it_and_nothing_else(
    override: str, stages: set[str], world: Path
) -> None:
    assert changed(read(), read(CHAIN, override)) == stages


def test_data_counts_by_content_and_not_by_name(world: Path) -> None:
    one = read()
    Path("moved.jsonl").write_bytes(Path("d.jsonl").read_bytes())
    assert changed(one, read(CHAIN.replace("d.jsonl", "moved.jsonl"))) == set()
    os.utime("d.jsonl", (1, 1))
    assert changed(one, read()) == set()
    Path("e.jsonl").write_text('{"prompt": "new", "completion": "row"}\n')
    assert changed(one, read()) == {"sft", "draw", "rate", "best", "sft_2", "exam"}


def test_base_is_the_recipes_own_even_beside_a_directory_of_that_name(world: Path) -> None:
    (world / "m").rename(world / "base")
    (world / "m").symlink_to("base")
    plan = read()
    judge: Any = plan.stages["judge"].stage
    assert Path(judge.model.spec()["base"]["path"]).name == "m"
    assert judge.model.spec()["base"]["dtype"] == "float32"


def test_the_weights_of_a_local_base_are_in_the_key(world: Path) -> None:
    one = read()
    Path("m/model.safetensors").write_bytes(b"\1" * 8)
    assert "sft" in changed(one, read())


def test_the_users_own_reward_is_in_the_key_and_so_is_their_stage(world: Path) -> None:
    one = read()
    with Path("my/length.py").open("a") as file:
        file.write("\n# another thought\n")
    assert changed(one, read()) == {"rate", "best", "sft_2", "exam"}
    with Path("my/pick.py").open("a") as file:
        file.write("\n# another thought\n")
    assert "best" in changed(one, read())


def test_hashes_are_remembered_in_the_store_and_a_damaged_memory_is_dropped(world: Path) -> None:
    one = read()
    cache = Path("runs/.cache/hashes.json")
    assert str(Path("d.jsonl").resolve()) in json.loads(cache.read_text())
    assert {path.name for path in Path("runs").iterdir()} == {".cache"}
    cache.write_text("{")
    assert keys(read()) == keys(one) and json.loads(cache.read_text())


def test_again_remakes_a_stage_and_what_follows_and_is_remembered(world: Path) -> None:
    one = read()
    again = read(again=["best"])
    assert changed(one, again) == {"best", "sft_2", "exam"}
    assert keys(read()) == keys(one)  # nothing ran yet
    runner.remember(again)
    assert keys(read()) == keys(again)
    assert json.loads(Path("runs/r/attempts.json").read_text()) == {"best": 1}
    assert changed(again, read(again=["best", "sft"])) == set(keys(one)) - {"judge"}
    with pytest.raises(
        RecipeError, match='--again bst: There is no such stage. Did you mean "best"'
    ):
        read(again=["bst"])


def test_again_is_not_remembered_where_the_recipe_is_wrong(world: Path) -> None:
    with pytest.raises(RecipeError):
        read(CHAIN, "stages.best.keep=worst", again=["best"])
    assert not Path("runs/r").exists()


def test_a_stage_is_restored_from_its_record_alone(world: Path) -> None:
    plan = read()
    for stage in plan.stages.values():
        folder = plan.store / stage.artifact.key
        folder.mkdir(parents=True)
        record = json.dumps(stage.record)
        (folder / "stage.json").write_text(record)
        restored = recipe.restore(json.loads(record), plan.store)
        assert repr(restored) == repr(stage.stage)
        assert type(restored).__name__ == type(stage.stage).__name__
    sft_2: Any = recipe.restore(plan.stages["sft_2"].record, plan.store)
    assert sft_2.model.stage.lora == {"r": 4}, "the producer of an input is restored with it"
    assert sft_2.model.name == "sft" and sft_2.model.stage.model.name == "base"
    assert sft_2.model.stage.model.spec()["base"]["dtype"] == "float32"
    rate: Any = recipe.restore(plan.stages["rate"].record, plan.store)
    assert type(rate.rewards[0].model) is artifacts.RewardModel and rate.rewards[1].target == 100


def test_a_record_says_what_was_asked_after_defaults_and_overrides(world: Path) -> None:
    record = read(CHAIN, "stages.sft.batch_size=8").stages["sft"].record
    assert record["settings"]["batch_size"] == 8
    assert record["settings"]["trainer"] == {"learning_rate": 1e-5, "packing": False}
    assert record["use"] == "my/tune.py" and record["kind"] == "tune" and record["recipe"] == "r"
    assert record["recipe_file"] == "r.yaml"
    assert json.loads(json.dumps(record)) == record
    rate = read().stages["rate"].record
    assert [reward["use"] for reward in rate["settings"]["rewards"]] == [
        "my/by_model.py",
        "my/length.py",
    ]


def test_a_hub_id_is_not_checked_until_it_is_cached(world: Path) -> None:
    text = CHAIN.replace("path: ./m", "path: org/model").replace("path: e.jsonl", "path: org/data")
    plan = read(text)
    assert plan.not_checked == [
        "org/model is on the hub and not in the local cache: base",
        "org/data is on the hub and not in the local cache: stages.sft.data.1",
    ]
    commit = "a" * 40
    for kind, name in (("models", "model"), ("datasets", "data")):
        folder = world / "hub" / f"{kind}--org--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
    cached = read(text)
    sft: Any = cached.stages["sft"].stage
    assert cached.not_checked == [] and sft.data[1].revision == commit
    assert sft.model.spec()["base"]["revision"] == commit
    assert "sft" in changed(plan, cached)
    assert read(text, strict=True).not_checked == []


def test_run_refuses_a_hub_id_that_it_cannot_have(world: Path) -> None:
    with pytest.raises(RecipeError) as error:
        read(CHAIN.replace("path: ./m", "path: org/model"), strict=True)
    (problem,) = error.value.problems
    assert problem.place == "r.yaml:2:14" and "HF_HUB_OFFLINE" in problem.message


def test_data_that_a_task_has_by_default_is_read_as_if_it_were_written(world: Path) -> None:
    (world / "my/hub.py").write_text(
        HEAD + "class Hub(Task):\n    ask: ClassVar[Literal['answer']] = 'answer'\n"
        "    data: Source = Source(path='org/exam', name='main', split='test')\n"
    )
    text = CHAIN.replace("tasks: [", "tasks: [my/hub.py, ")
    fact = "org/exam is on the hub and not in the local cache: stages.exam.tasks.0.data"
    assert fact in read(text).not_checked
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE"):
        read(text, strict=True)
    instead = text.replace("my/hub.py", "{use: my/hub.py, data: e.jsonl}")
    assert fact not in read(instead).not_checked
    behind = text.replace("my/hub.py", "{use: my/hub.py, data: '${env:DATA}/some/folder'}")
    unset = "the variable DATA is not set: stages.exam.tasks.0.data"
    assert unset in read(behind).not_checked and fact not in read(behind).not_checked


def test_data_behind_an_unset_variable_is_listed_by_plan_and_refused_by_run(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CHAIN.replace("path: e.jsonl", 'path: "${env:DATA}/e.jsonl"').replace(
        "path: ./m", "path: '${env:DATA}/m'"
    )
    plan = read(text)
    assert plan.not_checked == [
        "the variable DATA is not set: base, stages.sft.data.1",
    ]
    with pytest.raises(RecipeError) as error:
        read(text, strict=True)
    assert [problem.place for problem in error.value.problems] == ["r.yaml:2:14", "r.yaml:8:49"]
    monkeypatch.setenv("DATA", str(world))
    assert keys(read(text)) == keys(read())


def test_stages_that_hang_on_no_unset_variable_are_checked_all_the_same(world: Path) -> None:
    """`sft_2` comes from `sft`, whose data is not there; `alone` does not."""
    text = CHAIN.replace("path: e.jsonl", 'path: "${env:DATA}/e.jsonl"')
    wrong = "trainer: {max_length: 5000}"
    text = text.replace("trainer: {packing: false}", wrong).replace("seed: 8", f"seed: 8, {wrong}")
    assert read(text).not_checked
    with pytest.raises(RecipeError, match="stages.alone.trainer.max_length: Longer than") as error:
        read(f"{text}  alone: {{use: my/tune.py, data: [d.jsonl], {wrong}}}\n")
    assert len(error.value.problems) == 1


def test_an_override_can_stand_in_for_an_unset_variable(world: Path) -> None:
    text = CHAIN.replace("path: e.jsonl", 'path: "${env:DATA}/e.jsonl"')
    assert read(text, "stages.sft.data.1.path=e.jsonl", strict=True).not_checked == []


def test_what_several_types_may_be_is_what_goes_in(world: Path) -> None:
    text = CHAIN + "  mean: {use: my/blend.py, models: [judge, judge]}\n"
    text += "  mean_2: {use: my/blend.py, models: [sft, sft_2]}\n"
    plan = read(text)
    assert type(plan.stages["mean"].artifact) is artifacts.RewardModel
    assert type(plan.stages["mean_2"].artifact) is artifacts.Model
    assert recipe.makes_model(plan.stages["mean_2"].stage)
    assert not recipe.makes_model(plan.stages["draw"].stage)


def test_models_from_elsewhere_are_language_models_or_reward_models(world: Path) -> None:
    text = CHAIN.replace("models: [sft, sft_2, judge]", "models: [./m, {path: ./rm}]")
    exam: Any = read(text.replace("model: sft_2,", "model: ./m,")).stages["exam"].stage
    assert [type(model).__name__ for model in exam.models] == ["Model", "RewardModel"]
    assert exam.models[1].spec() == {
        "base": {**exam.models[1].spec()["base"], "path": "rm"},
        "quantization": None,
        "adapter": False,
    }


def test_a_directory_of_the_store_is_a_model_too(world: Path) -> None:
    made = Path("runs/sft-0123")
    (made / "adapter").mkdir(parents=True)
    (made / "model.json").write_text('{"base": {"path": "../../m"}, "adapter": true}')
    (made / "artifact.json").write_text("{}")
    draw: Any = read(CHAIN.replace("model: sft,", "model: runs/sft-0123,", 1)).stages["draw"].stage
    assert draw.model.spec()["adapter"] is True


def test_a_recipe_is_found_by_file_folder_or_name(world: Path) -> None:
    read()
    Path("mine").mkdir()
    Path("mine/recipe.yaml").write_text(CHAIN)
    assert recipe.read("mine").name == recipe.read("mine/recipe.yaml").name == "mine"
    Path("recipes/yours").mkdir(parents=True)
    Path("recipes/yours/recipe.yaml").write_text(CHAIN)
    assert recipe.read("yours").name == "yours"
    Path("ours.yaml").write_text(CHAIN)
    assert recipe.read("ours").name == recipe.read("ours.yaml").name == "ours"
    with pytest.raises(RecipeError, match="nowhere: There is no such recipe here. Shipped ones"):
        recipe.read("nowhere")
    with pytest.raises(RecipeError, match="my: This folder holds no recipe.yaml"):
        recipe.read("my")


def test_a_file_that_is_no_text_is_refused(world: Path) -> None:
    Path("r.yaml").write_bytes(b"base: \xff\xfe")
    with pytest.raises(RecipeError, match="r.yaml: This file is no UTF-8 text"):
        recipe.read("r.yaml")


def test_a_byte_order_mark_is_no_mistake(world: Path) -> None:
    Path("r.yaml").write_text("\ufeff" + CHAIN.strip(), encoding="utf-8")
    assert len(recipe.read("r.yaml").stages) == 7
