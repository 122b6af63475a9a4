"""Parts of a model card: texts without this machine, the hub's results, how a model is loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Hub
from huggingface_hub import parse_eval_result_entries
from transformers import AutoTokenizer

from align.artifacts import Model
from align.errors import RecipeError
from align.publishing import (
    card,
    evidence,
    licences,
    lineage,
    markdown,
    plain,
    provenance,
    results,
    usage,
)
from align.publishing.card import Subject
from align.publishing.lineage import Lineage, Step
from align.publishing.places import Place

SHELF = Path(__file__).parent.parent / "recipes" / "tiny-real"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
EMPTY: dict[str, Any] = {
    key: [] for key in ("scores", "comparisons", "tasks", "overlap", "gates", "doubts")
}


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
        ('data: "/srv/ann lee/x/talks.jsonl" # new', 'data: "talks.jsonl" # new'),
        ("was ~ann/data/q.txt, PATH=/opt/a:/opt/b", "was q.txt, PATH=a:b"),
        ("{path: https://h.corp/x.jsonl?X-Sig=a,b}, c", "{path: https://…/x.jsonl}, c"),
        ("at HTTPS://gpu7.corp:8000#top.", "at HTTPS://…/"),
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


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"path": "/srv/ann lee/talks.jsonl"}, {"path": "talks.jsonl"}),
        ({"path": "ann lee/talks.jsonl"}, {"path": "talks.jsonl"}),
        ({"data_files": {"train": ["/a b/c d.csv"]}}, {"data_files": {"train": ["c d.csv"]}}),
        ({"mine": "~ann/my data/x.txt"}, {"mine": "x.txt"}),
        ({"mine": "/no_think Say a/b.txt"}, {"mine": "/no_think Say a/b.txt"}),
        ({"path": "s3://ann/x.jsonl?sig=1,2"}, {"path": "s3://…/x.jsonl"}),
        ({"path": "openai/gsm8k"}, {"path": "openai/gsm8k"}),
    ],
)
def test_a_blank_in_a_path_hides_no_path(asked: dict[str, Any], shown: dict[str, Any]) -> None:
    assert plain.settings(asked) == shown


def test_a_recipes_text_has_neither_paths_with_blanks_nor_machines() -> None:
    said = "# /srv/ann lee/old.jsonl\nstages:\n  sft: {data: /srv/ann lee/talks.jsonl}\n"
    shown = "# old.jsonl\nstages:\n  sft: {data: talks.jsonl}\n"
    sets = ["stages.sft.data=/srv/ann lee/b.jsonl"]
    assert plain.recipe(said, sets) == (shown, ["stages.sft.data=b.jsonl"])
    assert plain.recipe(f"{said}launch: {{main_process_ip: node17.corp}}\n", []) is None
    assert plain.recipe(said, ["stages.sft.workers.partition=ann"]) is None


def test_a_recipe_on_the_card_is_the_same_recipe_but_for_paths() -> None:
    kept = {
        "eos_token": "</s>",
        "template": "<q>{q}</q>",
        "stop": ["</answer>", "/no_think", "yes/no"],
        "pattern": "^<think>.*</think>.*$",
        "system": "Say </b>\nas /etc/motd would.\n",
        "use": "eval/gsm8k.py",
    }
    files = {"one": "/srv/ann lee/7", "two": ["/srv/b.jsonl", "~ann/x: y.csv", "s3://ann/x/z.csv"]}
    for style in (None, '"', "'"):
        said = yaml.safe_dump(kept | files, default_style=style, allow_unicode=True)
        sets = ["a.stop=['</s>', '/srv/b/x.csv']"]
        text, shown = plain.recipe(f"# see /srv/ann lee/old.jsonl\n{said}", sets) or ("", [])
        names = {"one": "7", "two": ["b.jsonl", "x: y.csv", "s3://…/z.csv"]}
        assert yaml.safe_load(text) == kept | names and text.startswith("# see old.jsonl\n")
        assert shown == ["a.stop=['</s>', x.csv]"]
    block = "a: |\n  see http://gpu7.corp/x\n  now\nb: </s>\n"
    text, _ = plain.recipe(block, []) or ("", [])
    assert yaml.safe_load(text) == {"a": "see http://…/x\nnow\n", "b": "</s>"}
    raw = (SHELF / "raw.yaml").read_text(encoding="utf-8")
    text, _ = plain.recipe(raw, []) or ("", [])
    assert yaml.safe_load(text) == yaml.safe_load(raw) and "eos_token: </s>" in text


def test_names_of_data_are_without_what_signs_their_address() -> None:
    files = {"train": "https://h.corp/a.csv?sig=1", "test": ["/srv/ann lee/b c.csv"]}
    assert [*lineage.names(files)] == ["https://…/a.csv", "b c.csv"]
    assert lineage.on_hub({"path": "gsm8k", "revision": COMMIT})
    assert not lineage.on_hub({"path": "my/gsm8k.jsonl", "revision": COMMIT})


def test_names_are_no_markup() -> None:
    row = markdown.table(["a"], [[markdown.plain("<img src=x>|b_c*")], [markdown.code("x|`y")]])
    assert row.splitlines()[2:] == ["| \\<img src=x\\>\\|b\\_c\\* |", "| `x\\|'y` |"]
    assert markdown.fenced("a\n```\nb").startswith("````\n")
    assert yaml.safe_load(markdown.yaml({"b": [1, {"a": "ü: x"}]})) == {"b": [1, {"a": "ü: x"}]}


# -- the hub's results ----------------------------------------------------------------------------


def stored(
    root: Path, name: str, made_at: str, mean: float, source: dict[str, Any], shots: int = 8
) -> None:
    """An evaluation in a store, of a model and the one before."""
    task = {"task": "gsm8k", "file": "eval/gsm8k.py", "n": 100, "settings": {"data": source}}
    task["settings"]["shots"] = shots
    ends = {"ci_low": mean - 0.0392, "ci_high": mean + 0.0392, "n": 100, "task": "gsm8k"}
    scores = [
        {"model": "dpo", "key": "dpo-1", "metric": metric, "mean": value, **ends}
        for metric, value in (("strict", mean), ("flexible", 0.9))
    ]
    scores.append({"model": "sft", "key": "sft-1", "metric": "strict", "mean": 0.3, **ends})
    about = {"model": "dpo", "key": "dpo-1", "against": "other", "against_key": "other-1"}
    delta = {"delta": mean - 0.3, "ci_low": -0.1, "ci_high": 0.7, "p": 0.2, "n": 100}
    compared = [{**about, "role": "step", "task": "gsm8k", "metric": "strict", **delta}]
    (root / name / "items" / "gsm8k").mkdir(parents=True)
    values = (round(mean), mean)
    rows = [{"id": i, "prompt": "?", "numbers": {"strict": values[i]}} for i in range(2)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / name / "items" / "gsm8k" / "dpo.jsonl").write_text(text)
    report = {"tasks": [task], "scores": scores, "comparisons": compared, "overlap": []}
    report |= {"models": ["dpo-1"], "files": ["dpo"]}
    (root / name / "report.json").write_text(json.dumps(report))
    (root / name / "artifact.json").write_text(json.dumps({"made_at": made_at}))


GSM8K = {"path": "openai/gsm8k", "name": "main", "split": "test", "revision": COMMIT}


def test_results_are_in_the_hubs_own_format(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K | {"revision": "1" * 40}, 0)
    stored(tmp_path, "evaluate-2", "2026-11-21T10:00:00Z", 0.612, GSM8K)
    about = {"model": "dpo", "task": "gsm8k", "metric": "strict"}
    judged = [
        {"report": f"evaluate-{n}", "gates": [{**about, "at_least": n / 10}]} for n in (2, 1, 2)
    ]
    (tmp_path / ".verdicts").mkdir()
    (tmp_path / ".verdicts" / "dpo-1.json").write_text(json.dumps({"verdicts": judged}))
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path)
    assert [one["mean"] for one in report["scores"]] == [0.612, 0.9], "the latest, of this model"
    assert [one["delta"] for one in report["comparisons"]] == [pytest.approx(0.312)]
    assert [gate["at_least"] for gate in report["gates"]] == [0.2]
    (file,) = results.write(report, "mine", tmp_path, tmp_path)
    assert file == tmp_path / ".eval_results" / "gsm8k.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == (
        "openai/gsm8k", "gsm8k", COMMIT,
    )  # fmt: skip
    assert (entry.value, entry.date) == (61.2, "2026-11-21"), "in percent, as the hub has them"
    assert entry.notes == "strict in %, 100 items, standard error 2, 8-shot"


def test_a_mean_below_one_of_numbers_above_it_is_no_share(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.98, GSM8K)
    items = tmp_path / "evaluate-1" / "items" / "gsm8k" / "dpo.jsonl"
    items.write_text(items.read_text().replace('"strict": 1}', '"strict": 7}'))
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path)
    (file,) = results.write(report, "mine", tmp_path, tmp_path)
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.value, entry.notes) == (0.98, "strict, 100 items, standard error 0.02, 8-shot")


def test_a_local_copy_of_a_benchmark_is_no_result_of_it(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, {"path": "my/gsm8k.jsonl"})
    (tmp_path / "my").mkdir()
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path)
    assert report["scores"] and not results.write(report, "mine", tmp_path, tmp_path)


def test_scores_of_the_models_before_stand_beside(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path, ["sft-1"])
    assert {one["model"] for one in report["scores"]} == {"mine", "sft"}
    folded = results.measured(tmp_path / "merge-1", "whole", tmp_path, merged=tmp_path / "dpo-1")
    assert {one["model"] for one in folded["scores"]} == {"whole"}, "what was folded in counts"


def test_limits_say_what_the_numbers_do_not(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    seen = {"task": "gsm8k", "items": 100, "exact": 7, "partial": 5, "by": {}}
    seen["not_read"] = ["json /srv/ann lee/x.jsonl", "gsm8k"]
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path) | {"overlap": [seen, seen]}
    about = replace(subject(tmp_path), measured=report, merged=True)
    said = evidence.limits(about)
    assert "Measured was: gsm8k." in said and "No control of it was evaluated" in said
    assert "12 of 100 items of gsm8k stand in the training data, 7 of them word for word" in said
    assert said.count("Of `x.jsonl` it is not known whether tasks stand in it") == 1
    assert "Items without a text of their own were not looked for: gsm8k" in said
    assert "before it was folded in" in said and "not known here" in said
    assert "before it was folded in" not in evidence.limits(replace(about, merged=False))
    assert "Nothing was measured" in evidence.limits(subject(tmp_path))


def test_what_the_report_distrusts_stands_in_the_limits(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    counts: dict[str, Any] = {"items.gsm8k": {"n": 200}, "dropped.gsm8k_no_room": {"n": 150}}
    counts["cut.mmlu"] = {"n": 9}
    manifest: dict[str, Any] = {
        "made_at": "2026-11-20T10:00:00Z",
        "counts": counts | {"items.mmlu": {"n": 9}},
    }
    (tmp_path / "evaluate-1" / "artifact.json").write_text(json.dumps(manifest))
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path)
    said = evidence.limits(replace(subject(tmp_path), measured=report))
    assert "* 150 of 200 items of gsm8k had no room after the prompt.\n" in said
    assert "Tied, not equal: mine with other on gsm8k." in said and "mmlu" not in said
    for name, n in (("items.gsm8k", 100), ("dropped.gsm8k_no_room", 75)):
        counts[name] |= {"by": dict.fromkeys(["dpo", "sft", "else"], n)}
    manifest["counts"] = counts
    (tmp_path / "evaluate-1" / "artifact.json").write_text(json.dumps(manifest))
    (said,) = results.measured(tmp_path / "dpo-1", "mine", tmp_path, ["sft-1"])["doubts"]
    assert said == "75 of 100 items of gsm8k had no room after the prompt, for mine and sft."


def change(root: Path, **more: Any) -> None:
    """Add to the lists of a stored evaluation."""
    file = root / "evaluate-1" / "report.json"
    report = json.loads(file.read_text())
    file.write_text(json.dumps(report | {key: report.get(key, []) + m for key, m in more.items()}))


def test_a_task_that_the_model_was_not_asked_is_not_told(tmp_path: Path) -> None:
    """Reward models are asked other tasks than language models, by the same evaluation."""
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    task = {"task": "prefs", "file": "eval/preferences.py", "n": 24, "settings": {}}
    score = {"model": "rm", "key": "rm-1", "task": "prefs", "metric": "accuracy", "mean": 1.0}
    score |= {"ci_low": 0.9, "ci_high": 1.0, "n": 24}
    shared = {"task": "prefs", "items": 24, "exact": 24, "partial": 0, "models": ["rm"]}
    shared |= {"by": {"rm": {"exact": 24, "partial": 0, "not_read": []}}, "not_read": {}}
    notes = ["prefs of rm: the judge goes by place."]
    change(tmp_path, tasks=[task], scores=[score], overlap=[shared], notes=notes)
    dpo = results.measured(tmp_path / "dpo-1", "mine", tmp_path, ["sft-1"])
    assert [one["task"] for one in dpo["tasks"]] == results.tasks(dpo) == ["gsm8k"]
    assert not dpo["overlap"] and notes[0] not in dpo["doubts"]
    rm = results.measured(tmp_path / "rm-1", "mine", tmp_path, ["sft-1"])
    assert [one["task"] for one in rm["tasks"]] == results.tasks(rm) == ["prefs"]
    assert rm["overlap"][0]["exact"] == 24 and rm["doubts"] == notes
    said = evidence.section(replace(subject(tmp_path), measured=rm))
    assert said.startswith("Means with 95 % intervals.\n"), "of no other model"


def test_what_was_measured_through_a_link_is_not_told_of_the_model_it_leads_to_now(
    tmp_path: Path,
) -> None:
    from align.artifacts import Model
    from align.asking.asked import identity

    link = tmp_path / "mine" / "dpo"
    link.parent.mkdir()
    link.symlink_to("../dpo-2")
    for name in ("dpo-1", "dpo-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stage.json").write_text("{}")
    assert identity(Model(link)) == "dpo-2"
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    assert results.measured(tmp_path / "dpo-1", "mine", tmp_path)["scores"]
    file = tmp_path / "evaluate-1" / "report.json"
    file.write_text(file.read_text().replace('"dpo-1"', json.dumps(str(link))))
    assert not results.measured(tmp_path / "dpo-2", "mine", tmp_path)["scores"]


def test_the_overlap_is_the_models_own(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    shared = {"task": "gsm8k", "items": 100, "exact": 9, "partial": 0, "not_read": {}}
    shared["models"] = ["dpo", "all"]
    old = results._overlap({"overlap": [shared]}, {"gsm8k": "dpo"})
    said = evidence.limits(replace(subject(tmp_path), measured=EMPTY | {"overlap": [*old]}))
    assert "* Up to 9 of 100 items of gsm8k stand in the training data, up to 9 of them" in said
    [clean] = results._overlap({"overlap": [shared]}, {"gsm8k": "sft"})
    assert clean["exact"] == 0
    shared["by"] = {"dpo": {"exact": 2, "partial": 1, "not_read": []}, "all": {}}
    change(tmp_path, overlap=[shared])
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path)
    said = evidence.limits(replace(subject(tmp_path), measured=report))
    assert "* 3 of 100 items of gsm8k stand in the training data, 2 of them" in said
    one = {**shared, "exact": 1}
    said = evidence.limits(replace(subject(tmp_path), measured=EMPTY | {"overlap": [one]}))
    assert "* 1 of 100 items of gsm8k stands in the training data, 1 of them" in said


def test_what_was_folded_in_speaks_only_where_the_whole_was_not_measured(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    file = tmp_path / "evaluate-1" / "report.json"
    report = json.loads(file.read_text())
    step, score = report["comparisons"][0], report["scores"][0]
    control = step | {"role": "control", "against": "more", "against_key": "more-1"}
    merge = {"model": "merged", "key": "merge-1"}
    own = step | merge | {"against": "dpo", "against_key": "dpo-1"}
    change(tmp_path, comparisons=[control, own], scores=[score | merge | {"mean": 0.5}])
    line = ["sft-1", "dpo-1", "merge-1"]
    found = results.measured(tmp_path / "merge-1", "whole", tmp_path, line, tmp_path / "dpo-1")
    compared = {(one["model"], one["role"], one["against"]) for one in found["comparisons"]}
    assert compared == {("whole", "step", "dpo"), ("whole", "control", "more")}
    means = {one["model"]: one["mean"] for one in found["scores"] if one["metric"] == "strict"}
    assert means == {"sft": 0.3, "dpo": 0.4, "whole": 0.5}


def test_a_model_that_is_listed_before_is_no_step_before(tmp_path: Path) -> None:
    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    (tmp_path / "other-1").mkdir()
    (tmp_path / "other-1" / "artifact.json").write_text("{}")
    for line, role in (([], "asked"), (["other-1"], "step")):
        [one] = results.measured(tmp_path / "dpo-1", "mine", tmp_path, line)["comparisons"]
        assert one["role"] == role


# -- where it comes from --------------------------------------------------------------------------


def made(root: Path, key: str, model: dict[str, Any], **asked: Any) -> Step:
    """A stage of a store that made a model."""
    record = {"name": key[:-2], "kind": key[:-2], "recipe": "next", "inputs": []}
    record["settings"] = {"model": model, **asked}
    return Step(root / key, record, {"counts": {"rows": {"n": 8}}})


def test_what_goes_on_from_an_adapter_of_the_hub_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    base = {"path": "me/adapter", "revision": COMMIT}
    history = Lineage((made(tmp_path, "sft-1", {"model": base, "name": "base"}),), ())
    spec = tmp_path / "sft-1" / "model.json"
    spec.parent.mkdir()
    spec.write_text(json.dumps({"base": {"path": "me/adapter"}, "adapter": True}))
    assert history.adapter is None, "a model"
    home = tmp_path / "hub" / "models--me--adapter" / "snapshots" / COMMIT
    home.mkdir(parents=True)
    (home / "adapter_config.json").write_text("{}")
    assert history.adapter == Place("me/adapter", COMMIT), "the cache says so"
    shutil.rmtree(home)
    spec.write_text(json.dumps({"base": {"path": "maker/tiny"}, "adapter": True}))
    about = replace(subject(tmp_path), lineage=history)
    start = f"recipe `next`: the adapter `me/adapter` at commit `{COMMIT}` → `sft`"
    assert start in card._chain(about)
    said = evidence.limits(about)
    assert "what that was trained with is told on [its card](" in said and "/me/adapter)" in said

    stored(tmp_path, "evaluate-1", "2026-11-20T10:00:00Z", 0.4, GSM8K)
    file = tmp_path / "evaluate-1" / "report.json"
    renamed = file.read_text().replace('"sft-1"', '"me/adapter"').replace('"sft"', '"base"')
    file.write_text(renamed.replace("other-1", "me/adapter"))
    report = results.measured(tmp_path / "dpo-1", "mine", tmp_path, ["me/adapter"])
    assert [one["against"] for one in report["comparisons"]] == ["me/adapter"]
    assert {one["model"] for one in report["scores"]} == {"mine", "me/adapter"}


def test_an_average_names_all_its_models(tmp_path: Path) -> None:
    base = {"model": {"path": "maker/tiny"}, "name": "base"}
    models = [{"artifact": "sft-1", "name": "sft"}, {"artifact": "dpo-1", "name": "dpo"}, base]
    said = card._step(made(tmp_path, "average-1", {}, models=models))
    assert said == "`average` (average of `sft`, `dpo` and `maker/tiny`)"


def test_data_whose_questions_are_removed_is_no_data_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "_unchanged", lambda step: False)
    source = {"columns": {}, "split": "train", "revision": COMMIT}
    task, talks = source | {"path": "maker/task"}, source | {"path": "maker/talks"}
    tasks = [{"use": "a", "data": task}, {"use": "b", "data": talks | {"split": "test"}}]
    clean = made(tmp_path, "clean-1", {}, data=talks, decontaminate=tasks)
    more = made(tmp_path, "sft-1", {}, data=talks)
    about = replace(subject(tmp_path), lineage=Lineage((clean, more), ()))
    rows = list(provenance._data(lineage.data(about.lineage)))
    at = f"revision `{COMMIT}`"
    assert rows == [
        ["`maker/talks`", "train", at, "`clean`; `sft`"],
        ["`maker/task`", "train", at, "`clean`, only to remove its questions"],
        ["`maker/talks`", "test", at, "`clean`, only to remove its questions"],
    ]
    assert card.metadata(about).datasets == ["maker/talks"]


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
        ({"r": 600}, "vLLM serves no adapter with a rank above 512"),
    ],
)
def test_vllm_is_given_the_room_it_needs_or_a_merged_model(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in usage.section(subject(tmp_path, **config))


def test_what_other_programs_do_not_see_is_said(tmp_path: Path) -> None:
    said = usage.section(subject(tmp_path, r=64, use_rslora=True))
    assert "--lora-scaled FILE.gguf:8`" in said
    uneven = usage.section(subject(tmp_path, use_rslora=True, alpha_pattern={"q_proj": 4}))
    assert "--lora-scaled" not in uneven and "--merged` for a GGUF" in uneven
    assert "rsLoRA" not in usage.section(subject(tmp_path))


def test_a_template_that_writes_the_date_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "template_hash", lambda tokenizer: "4f53")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda path: None)
    about, file = subject(tmp_path), tmp_path / "chat_template.jinja"
    file.write_text("{{ strftime_now('%d %b %Y') }}")
    assert "in training that was 26 Jul 2024" in usage.section(about)
    file.write_text("{{ messages }}")
    said = usage.section(about)
    assert "2024" not in said and "Its chat template is" in said, "how it was trained is not known"


# -- the base -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("license: [mit, apache-2.0]", {"license": ["mit", "apache-2.0"]}),
        (
            "license: other\nlicense_name: tiny\nlicense_link: LICENSE",
            {"license": "other", "license_name": "tiny", "license_link": "LICENSE"},
        ),
        ("license: [mit", {}),
        ("license: [1]", {}),
        ("tags: []", {}),
    ],
)
def test_a_bases_licence_is_kept_as_it_is(
    head: str, found: dict[str, Any], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its card in the cache, and from the hub, which brings no card into the cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--maker--tiny" / "snapshots" / COMMIT
    home.mkdir(parents=True)
    (home / "README.md").write_text(f"---\n{head}\n---\n# Tiny\n")
    terms = licences.of(Place("maker/tiny", COMMIT), ask=False)
    if "license_link" in found:
        found = found | {"license_link": f"{hub.url}/maker/tiny/blob/{COMMIT}/LICENSE"}
    assert terms == found
    written = card.metadata(replace(subject(tmp_path), terms=terms)).to_dict()
    assert {key: one for key, one in written.items() if key.startswith("license")} == found

    repository = hub.create("models/maker/told", private=False)
    repository.card = {"license": ["mit", "apache-2.0"]}
    place = Place("maker/told", repository.at("main").sha)
    assert licences.of(place, ask=True) == {"license": ["mit", "apache-2.0"]}
    assert licences.of(place, ask=False) == {}


def test_who_may_load_the_base_is_asked_of_the_hub(hub: Hub) -> None:
    repository = hub.create("models/maker/tiny", private=False)
    place = Place("maker/tiny", repository.at("main").sha)
    assert licences.access(place) is None
    repository.gated = True
    assert "is gated" in (licences.access(place) or "")
    with pytest.raises(RecipeError, match="Nobody could load the adapter"):
        licences.access(Place("maker/other", COMMIT))
