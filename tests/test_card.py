"""Parts of a model card: texts without this machine, the hub's results, how a model is loaded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Hub
from huggingface_hub import parse_eval_result_entries

from align.artifacts import Model
from align.errors import RecipeError
from align.publishing import evidence, licences, markdown, plain, results, usage
from align.publishing.card import Subject
from align.publishing.lineage import Lineage
from align.publishing.places import Place

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EMPTY: dict[str, Any] = {key: [] for key in ("scores", "comparisons", "tasks", "overlap", "gates")}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('data: "/home/ann/x/talks.jsonl"', 'data: "talks.jsonl"'),
        ("see ../ann/q.txt and ~/notes.md", "see q.txt and notes.md"),
        ("[/data/a.jsonl, /data/b.jsonl]", "[a.jsonl, b.jsonl]"),
        ("engine: http://gpu7.corp:8000/v1", "engine: http://…/v1"),
        ("{path: s3://ann-bucket/raw/x.jsonl}", "{path: s3://…/x.jsonl}"),
        ('data: "${env:DATA}/hh/x.jsonl"', 'data: "${env:DATA}/hh/x.jsonl"'),
        ("use: eval/gsm8k.py", "use: eval/gsm8k.py"),
        ("maker/tiny, km/h, and/or, 3/4", "maker/tiny, km/h, and/or, 3/4"),
    ],
)
def test_texts_lose_the_directories_and_hosts_of_this_machine(text: str, shown: str) -> None:
    assert plain.text(text) == shown


def test_settings_are_shown_as_a_recipe_has_them() -> None:
    asked = {
        "model": {"artifact": "sft-1", "type": "Model", "name": "sft"},
        "data": [{"stage": None, "path": "/home/ann/talks.jsonl", "split": "train", "columns": {}}],
        "tasks": [{"use": "eval/gsm8k.py", "data": {"path": "openai/gsm8k"}}],
        "engine": "http://gpu7:8000/v1",
        "system": "Answer like /etc/motd would.",
        "launch": {"main_process_ip": "10.0.0.7"},
        "workers": {"on": "slurm", "partition": "ann"},
        "lora": None,
    }
    assert plain.settings(asked) == {
        "model": "sft",
        "data": [{"path": "talks.jsonl", "split": "train"}],
        "tasks": [{"use": "eval/gsm8k.py", "data": {"path": "openai/gsm8k"}}],
        "engine": "http://…/v1",
        "system": "Answer like /etc/motd would.",
    }


def test_names_are_no_markup() -> None:
    row = markdown.table(["a"], [[markdown.plain("<img src=x>|b_c*")], [markdown.code("x|`y")]])
    assert row.splitlines()[2:] == ["| \\<img src=x\\>\\|b\\_c\\* |", "| `x\\|'y` |"]
    assert markdown.fenced("a\n```\nb").startswith("````\n")
    assert yaml.safe_load(markdown.yaml({"b": [1, {"a": "ü: x"}]})) == {"b": [1, {"a": "ü: x"}]}


# -- the hub's results ----------------------------------------------------------------------------


def stored(root: Path, name: str, made_at: str, mean: float, source: dict[str, Any]) -> None:
    """An evaluation in a store, of a model and the one before."""
    task = {"task": "gsm8k", "file": "eval/gsm8k.py", "n": 100, "settings": {"data": source}}
    task["settings"]["shots"] = 8
    ends = {"ci_low": mean - 0.0392, "ci_high": mean + 0.0392, "n": 100, "task": "gsm8k"}
    scores = [
        {"model": "dpo", "key": "dpo-1", "metric": metric, "mean": value, **ends}
        for metric, value in (("strict", mean), ("flexible", 0.9))
    ]
    scores.append({"model": "sft", "key": "sft-1", "metric": "strict", "mean": 0.3, **ends})
    (root / name).mkdir(parents=True)
    report = {"tasks": [task], "scores": scores, "comparisons": [], "overlap": []}
    (root / name / "report.json").write_text(json.dumps(report))
    (root / name / "artifact.json").write_text(json.dumps({"made_at": made_at}))


GSM8K = {"path": "openai/gsm8k", "name": "main", "split": "test", "revision": COMMIT}


def test_results_are_in_the_hubs_own_format(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    stored(tmp_path, "evaluate-2", "2026-11-21T10:00:00Z", 0.612, GSM8K)
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path)
    assert [one["mean"] for one in report["scores"]] == [0.612, 0.9], "the latest, of this model"
    (file,) = results.write(report, "mine", tmp_path)
    assert file == tmp_path / ".eval_results" / "gsm8k.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == (
        "openai/gsm8k", "gsm8k", COMMIT,
    )  # fmt: skip
    assert (entry.value, entry.date) == (61.2, "2026-11-21"), "in percent, as the hub has them"
    assert entry.notes == "strict in %, 100 items, standard error 2, 8-shot"


def test_a_local_copy_of_a_benchmark_is_no_result_of_it(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, {"path": "my/gsm8k.jsonl"})
    (tmp_path / "my").mkdir()
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path)
    assert report["scores"] and not results.write(report, "mine", tmp_path)


def test_scores_of_the_models_before_stand_beside(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path, ["sft-1"])
    assert {one["model"] for one in report["scores"]} == {"mine", "sft"}
    folded = results.measured(tmp_path / "merge-1", "whole", tmp_path, merged=tmp_path / "dpo-1")
    assert {one["model"] for one in folded["scores"]} == {"whole"}, "what was folded in counts"


def test_limits_say_what_the_numbers_do_not(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    seen = {"task": "gsm8k", "items": 100, "exact": 7, "partial": 5, "found": True}
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path) | {"overlap": [seen]}
    about = replace(subject(tmp_path), measured=report, merged=True)
    said = evidence.limits(about)
    assert "Measured was: gsm8k." in said and "No control of it was evaluated" in said
    assert "12 of 100 items of gsm8k stand in the training data, 7 of them word for word" in said
    assert "before it was folded in" in said and "not known here" in said
    assert "before it was folded in" not in evidence.limits(replace(about, merged=False))
    assert "Nothing was measured" in evidence.limits(subject(tmp_path))


# -- how it is loaded -----------------------------------------------------------------------------


def subject(folder: Path, **config: Any) -> Subject:
    """An adapter of which nothing is known but its configuration."""
    asked = {"r": 24, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(asked))
    spec = {"base": {"path": "maker/tiny"}, "quantization": None, "adapter": False}
    (folder / "model.json").write_text(json.dumps({**spec, "adapter": True}))
    base, model = Place("maker/tiny", COMMIT), Model(folder)
    return Subject(model, "mine", "me/mine", base, folder, Lineage((), ()), EMPTY)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "--max-lora-rank 32 --lora-modules mine=./mine"),
        ({"rank_pattern": {"q_proj": 100}}, "--max-lora-rank 128"),
        ({"r": 4}, "--max-lora-rank 8"),
        ({"use_dora": True}, "vLLM serves no adapter with weight-decomposed matrices (DoRA)"),
        ({"modules_to_save": ["lm_head"]}, "vLLM serves no adapter with modules that are saved"),
        ({"lora_bias": True}, "vLLM serves no adapter with biases"),
    ],
)
def test_vllm_is_given_the_room_it_needs_or_a_merged_model(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in usage.section(subject(tmp_path, **config))


def test_who_may_load_the_base_is_asked_of_the_hub(hub: Hub) -> None:
    repository = hub.create("models/maker/tiny", private=False)
    place = Place("maker/tiny", repository.at("main").sha)
    assert licences.access(place) is None
    repository.gated = True
    assert "is gated" in (licences.access(place) or "")
    with pytest.raises(RecipeError, match="Nobody could load the adapter"):
        licences.access(Place("maker/other", COMMIT))
