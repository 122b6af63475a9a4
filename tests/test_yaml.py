"""YAML 1.2 with places: values, merges, overrides, variables, secrets."""

import math
from typing import Any

import pytest

from align import yaml
from align.errors import Problem
from align.yaml import Node


def load(text: str) -> Node:
    problems: list[Problem] = []
    node = yaml.load(text, "r.yaml", problems)
    assert not problems and node is not None
    return node


def at(node: Node, path: str) -> Node:
    for part in path.split("."):
        below = node.value[int(part)] if isinstance(node.value, list) else node.get(part)
        assert below is not None
        node = below
    return node


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1e5", 1e5),
        ("1.", 1.0),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        (".inf", math.inf),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ('"1"', "1"),
        ("2026-11-21", "2026-11-21"),
        ("12:30:45", "12:30:45"),
        ("!!str 5", "5"),
        ("[1, a]", [1, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: Any) -> None:
    read = load(f"key: {text}").python()["key"]
    assert read == value and type(read) is type(value)


def test_every_value_and_key_knows_its_place() -> None:
    root = load("a: 1\nb:\n  - x\n  - {c: d}\n")
    assert at(root, "a").key == "r.yaml:1:1" and at(root, "a").place == "r.yaml:1:4"
    assert at(root, "b.0").place == "r.yaml:3:5"
    assert at(root, "b.1.c").key == "r.yaml:4:6" and at(root, "b.1.c").place == "r.yaml:4:9"


def test_merge_keys_merge_and_keep_the_place_of_the_anchor() -> None:
    root = load("x: &x {r: 1, s: 2}\ny: &y {s: 3, t: 4}\nz: {<<: [*x, *y], r: 5}\n")
    assert at(root, "z").python() == {"r": 5, "s": 2, "t": 4}
    assert at(root, "z.s").place == "r.yaml:1:17"
    assert at(root, "z.r").place == "r.yaml:3:22"


def test_an_anchor_may_be_used_again_for_something_else() -> None:
    assert load("a: &x 1\nb: *x\nc: &x 2\nd: *x\n").python() == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_aliases_that_explode_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    problems: list[Problem] = []
    assert yaml.load("\n".join(lines), "r.yaml", problems) is None
    assert "grow to more than" in problems[0].message


def test_nesting_without_end_is_refused() -> None:
    problems: list[Problem] = []
    assert yaml.load("[" * 500 + "]" * 500, "r.yaml", problems) is None and problems


def test_a_block_is_laid_over_its_defaults_key_by_key() -> None:
    under = load("{model: base, trainer: {beta: 0.1, epochs: 1}, stop: [a, b]}")
    over = load("{trainer: {beta: 0.2}, stop: [c]}")
    merged = yaml.overlay(under, over).python()
    assert merged == {"model": "base", "trainer": {"beta": 0.2, "epochs": 1}, "stop": ["c"]}


def test_a_block_that_names_something_else_replaces_the_default() -> None:
    under = load("{data: {path: a.jsonl, split: train, weight: 2}}")
    assert yaml.overlay(under, load("{data: {path: b.jsonl}}")).python() == {
        "data": {"path": "b.jsonl"}
    }
    assert yaml.overlay(under, load("{data: {weight: 3}}")).python() == {
        "data": {"path": "a.jsonl", "split": "train", "weight": 3}
    }


def test_an_override_is_yaml_and_stands_where_it_was_said() -> None:
    problems: list[Problem] = []
    root = load("a: {b: [{c: 1}], d: x}")
    root = yaml.override(root, "a.b.0.c=1e-3", problems)
    root = yaml.override(root, "a.d={e: [1, two]}", problems)
    root = yaml.override(root, "a.f.g=no", problems)
    assert not problems
    assert root.python() == {"a": {"b": [{"c": 1e-3}], "d": {"e": [1, "two"]}, "f": {"g": "no"}}}
    assert at(root, "a.b.0.c").place == "--set a.b.0.c" and at(root, "a.d.e.1").place == "--set a.d"


def test_an_override_of_one_alias_leaves_the_others() -> None:
    root = load("x: &x {r: 1}\ny: *x\n")
    assert yaml.override(root, "y.r=2", []).python() == {"x": {"r": 1}, "y": {"r": 2}}


def test_variables_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("COUNT", "8")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NONE", raising=False)
    text = """
    path: ${env:DATA}/x-${env:COUNT}.jsonl
    number: ${env:COUNT}
    word: "${env:COUNT}"
    other: ${env:NONE:-1e-5}
    empty: ${env:EMPTY:-there}
    plain: $${env:DATA}
    """
    problems: list[Problem] = []
    root, unset = yaml.interpolate(load(text), problems)
    assert not problems and not unset
    assert root.python() == {
        "path": "/data/x-8.jsonl",
        "number": 8,
        "word": "8",
        "other": 1e-5,
        "empty": "there",
        "plain": "${env:DATA}",
    }


def test_an_unset_variable_is_noted_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NONE", raising=False)
    root, unset = yaml.interpolate(load("a: {b: '${env:NONE}/x'}"), [])
    assert root.python() == {"a": {"b": "${env:NONE}/x"}}
    (found,) = unset.values()
    assert str(found.problem()) == (
        "r.yaml:1:8: a.b: The variable NONE is not set. "
        "Set it, or give a default: ${env:NONE:-value}."
    )


@pytest.mark.parametrize(
    ("name", "secret"),
    [("HF_TOKEN", True), ("API_KEY", True), ("MAX_TOKENS", False), ("EOS_TOKEN", False)],
)
def test_a_variable_whose_name_is_a_secrets_is_never_filled_in(
    name: str, secret: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "12")
    problems: list[Problem] = []
    root, _ = yaml.interpolate(load(f"a: x${{env:{name}}}"), problems)
    assert bool(problems) is secret and ("12" in root.python()["a"]) is not secret


@pytest.mark.parametrize("key", ["token", "hub_token", "api_key", "openai_api_key", "password"])
def test_keys_of_secrets_are_refused(key: str) -> None:
    (problem,) = yaml.secrets(load(f"a: {{{key}: x}}"))
    assert problem.place == "r.yaml:1:5" and problem.path == "a"


@pytest.mark.parametrize(
    "key", ["pad_token", "eos_token", "max_new_tokens", "token_healing", "begin_suppress_tokens"]
)
def test_keys_that_only_sound_like_secrets_are_not(key: str) -> None:
    assert not list(yaml.secrets(load(f"a: {{{key}: x}}")))


def test_a_value_that_looks_like_a_token_is_refused() -> None:
    (problem,) = yaml.secrets(load("a: [hf_abcdefghijklmnopqrstuvwxyzABCD]"))
    assert problem.place == "r.yaml:1:5" and "a Hugging Face token" in problem.message


def test_an_address_with_a_password_in_it_is_refused() -> None:
    (problem,) = yaml.secrets(load("a: https://me:hunter2@example.com/v1"))
    assert "a password" in problem.message and "hunter2" not in problem.message
