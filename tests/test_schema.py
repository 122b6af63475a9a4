"""The schema that editors use is the one this project and the pinned libraries give."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from align import recipe, schema, shelf, yaml
from align.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if p.parent.name != "launch")
MADE: dict[str, Any] = schema.schema()


def test_the_schema_on_disk_is_not_stale() -> None:
    assert json.loads(shelf.SCHEMA.read_text(encoding="utf-8")) == MADE, "run: make schema"


def test_align_schema_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == MADE


def test_it_knows_every_kind_of_stage_every_reward_and_every_task() -> None:
    assert MADE["properties"]["stages"]["properties"].keys() == set(shelf.kinds())
    for folder in ("reward", "eval"):
        for path in (ROOT / folder).glob("[a-z]*.py"):
            assert path.relative_to(ROOT).as_posix() in MADE["$defs"]
    assert set(MADE["x-shipped"]) == {
        path.relative_to(ROOT).as_posix()
        for folder in ("recipes", "reward", "eval")
        for path in (ROOT / folder).rglob("[a-z]*.py")
    }


def test_every_reference_in_it_leads_somewhere() -> None:
    found = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(MADE)))
    names = {name.replace("%20", " ").replace("~1", "/") for name in found}
    assert names and names <= MADE["$defs"].keys()


def fits(value: Any, rule: Any) -> bool:
    """Whether a value fits a schema: the few keywords ours is made of."""
    if "$ref" in rule:
        name = rule["$ref"].removeprefix("#/$defs/").replace("%20", " ").replace("~1", "/")
        if not fits(value, MADE["$defs"][name]):
            return False
    if "if" in rule and not fits(value, rule["then" if fits(value, rule["if"]) else "else"] if "else" in rule or fits(value, rule["if"]) else {}):  # fmt: skip # noqa: E501
        return False
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    allowed = rule.get("type", list(types))
    allowed = [allowed] if isinstance(allowed, str) else allowed
    if not any(
        isinstance(value, types[name])  # type: ignore[arg-type]
        and not (isinstance(value, bool) and name in ("integer", "number"))
        for name in allowed
    ):
        return False
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        return False
    if isinstance(value, list) and not all(fits(item, rule.get("items", {})) for item in value):
        return False
    if isinstance(value, dict):
        known, other = rule.get("properties", {}), rule.get("additionalProperties", {})
        if not set(rule.get("required", ())) <= value.keys():
            return False
        for key, item in value.items():
            if key in known:
                if not fits(item, known[key]):
                    return False
            elif other is False or not fits(item, other):
                return False
    return (
        ("enum" not in rule or value in rule["enum"])
        and ("const" not in rule or value == rule["const"])
        and all(fits(value, part) for part in rule.get("allOf", ()))
        and ("anyOf" not in rule or any(fits(value, part) for part in rule["anyOf"]))
    )


def tree(text: str) -> Any:
    node = yaml.load(text, "r", [])
    assert node is not None
    return node.python()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shipped_recipe_plans_and_fits_the_schema_it_points_to(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = path.read_text(encoding="utf-8")
    if "stages" not in (tree(text) or {}):
        pytest.skip("a launch profile")
    (name,) = re.findall(r"\A# yaml-language-server: \$schema=(.*)\n", text)
    assert (path.parent / name).resolve() == shelf.SCHEMA.resolve()
    assert recipe.read(path, store=tmp_path).stages
    assert fits(tree(text), MADE)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("{base: ./m, stages: {sft: {model: base, data: d.jsonl}}}", True),
        ("{stages: {a: {use: sft, trainer: {learning_rate: 1e-5, packing: true}}}}", True),
        ("{stages: {a: {use: my/own.py, anything: 1}}}", True),
        ("{stages: {sft: {trainer: {learning_rate: '${env:LR}'}}}}", True),
        ("{stages: {sft: {data: [{stage: x, weight: 2}, d.jsonl]}}}", True),
        ("{stages: {score: {rewards: [reward/length.py, {use: reward/length.py}]}}}", True),
        ("{stages: {sft: }}", True),
        ("{stages: {a: {model: base}}}", False),
        ("{stages: {sft: {modell: base}}}", False),
        ("{stages: {sft: {trainer: {learning_rat: 1}}}}", False),
        ("{stages: {sft: {trainer: {learning_rate: high}}}}", False),
        ("{stages: {sft: {trainer: {output_dir: x}}}}", False),
        ("{stages: {sft: {lora: {bias: some}}}}", False),
        ("{stages: {score: {rewards: [{use: reward/length.py, nonsense: 1}]}}}", False),
        ("{defaults: {dpo: {trainer: {beta: x}}}, stages: {sft: {}}}", False),
        ("{base: ./m}", False),
        ("{sead: 1, stages: {}}", False),
    ],
)
def test_the_schema_tells_right_from_wrong(text: str, good: bool) -> None:
    assert fits(tree(text), MADE) is good
