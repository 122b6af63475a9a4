"""The recipes for real models plan without a network, and read the real data sets' columns."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from align import data, recipe, shelf, yaml
from align.annotations import Annotation
from align.artifacts import Conversations, Preferences, Prompts, Rows, Text
from align.cli import main
from align.data import Source
from align.estimate import totals
from align.recipe import Plan
from align.stages.curate import Curate

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(
    path.parent
    for path in ROOT.glob("recipes/*/recipe.yaml")
    if path.parent.name not in ("quickstart", "tiny-real")
)
RECIPES = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
READMES = [folder / "README.md" for folder in FOLDERS]


def within(path: Path) -> str:
    """How a file is named in recipes/."""
    return path.relative_to(ROOT / "recipes").as_posix()


NAMES = [within(path) for path in RECIPES]

# -- what the data sets hold: columns, splits and configurations of their cards, rows made up -----


def say(*texts: str) -> list[dict[str, str]]:
    """A dialog; the user begins."""
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


TULU_PAIRS = [
    {
        "id": "a",
        "prompt": "Name a colour.",
        "chosen": say("Name a colour.", "Blue."),
        "rejected": say("Name a colour.", "No."),
        "source": "s",
    },
    {  # several questions, of which `prompt` holds the first; and a space that differs
        "id": "b",
        "prompt": "Hello ",
        "chosen": say("Hello", "Hi!", "Who are you?", "A program."),
        "rejected": say("Hello", "Hi!", "Who are you?", "You."),
        "source": "s",
    },
]
SETS: dict[str, tuple[set[str], set[str | None], list[dict[str, Any]]]] = {
    "HuggingFaceH4/ultrachat_200k": (
        {"train_sft", "test_sft", "train_gen", "test_gen"},
        {None},
        [
            {"prompt": "Hello", "prompt_id": "1", "messages": say("Hello", "Hi!", "Bye", "Bye!")},
            {"prompt": "One?", "prompt_id": "2", "messages": say("One?", "Two.")},
        ],
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {"train_prefs", "test_prefs", "train_sft", "test_sft", "train_gen", "test_gen"},
        {None},
        [
            {
                "prompt": f"Say {n}.",
                "prompt_id": n,
                "chosen": say(f"Say {n}.", n),
                "rejected": say(f"Say {n}.", "No."),
                "messages": say(f"Say {n}.", n),
                "score_chosen": 9.0,
                "score_rejected": 2.5,
            }
            for n in ("one", "two")
        ],
    ),
    "allenai/tulu-3-sft-mixture": (
        {"train"},
        {None},
        [
            {"id": "a", "messages": say("Hello", "Hi!", "Bye", "Bye!"), "source": "s"},
            {
                "id": "b",
                "messages": [{"role": "system", "content": "Be brief."}, *say("Hello", "Hi!")],
                "source": "s",
            },
        ],
    ),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": ({"train"}, {None}, TULU_PAIRS),
    "allenai/llama-3.1-tulu-3-70b-preference-mixture": ({"train"}, {None}, TULU_PAIRS),
    "HuggingFaceTB/smoltalk": (
        {"train", "test"},
        {"all"},
        [{"messages": say(text, "Yes."), "source": "s"} for text in ("One?", "Two?")],
    ),
    "HuggingFaceTB/smol-smoltalk": (
        {"train", "test"},
        {None},
        [{"messages": say(text, "Yes."), "source": "s"} for text in ("One?", "Two?")],
    ),
    "google/IFEval": (
        {"train"},
        {None},
        [
            {
                "key": 0,
                "prompt": "Say no without a comma.",
                "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{"num_words": None}],
            }
        ],
    ),
    "truthfulqa/truthful_qa": (
        {"validation"},
        {"generation", "multiple_choice"},
        [{"question": "One?", "mc1_targets": {"choices": ["Yes."], "labels": [1]}}],
    ),
    "wikimedia/wikipedia": (
        {"train"},
        {"20231101.en", "20231101.de"},
        [
            {"id": n, "url": f"https://en.wikipedia.org/wiki/{n}", "title": n, "text": "A town."}
            for n in ("1", "2")
        ],
    ),
    "openai/gsm8k": (
        {"train", "test"},
        {"main", "socratic"},
        [
            {"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
            {"question": "2 + 2?", "answer": "#### 4"},
        ],
    ),
}


@cache
def planned(name: str) -> Plan:
    """A recipe as it is read in a checkout."""
    return recipe.read(name, store=Path("runs"))


def sources(
    value: Any, kind: type[Rows] | None = None
) -> Iterator[tuple[type[Rows] | None, Source]]:
    """Every data set that a stage or task reads, with the type of row it asks for.

    A published benchmark's rows are read as they are: its task asks for none.
    """
    if isinstance(value, Source):
        yield kind, value
    elif isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            taken = Annotation.of(field.annotation, field.metadata)
            inner = Annotation.of(taken.items) if taken.items is not None else taken
            rows = [cls for cls in inner.artifacts if issubclass(cls, Rows)]
            yield from sources(getattr(value, name), rows[0] if rows else None)
    elif isinstance(value, list):
        for item in value:
            yield from sources(item, kind)


def outside(name: str) -> Iterator[tuple[str, type[Rows] | None, Source]]:
    """(stage's kind, type of row, source) of every hub data set of a recipe."""
    for stage in planned(name).stages.values():
        what: Any = stage.stage
        read = (what.data, what.makes()) if isinstance(what, Curate) else (what,)
        for kind, source in sources(*read):  # other data of `curate` are questions that it removes
            if source.path is not None:
                yield stage.kind, kind, source


# -- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_plans_anywhere_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["plan", name]) == 0
    said = capsys.readouterr().out
    (unchecked,) = re.findall(r"\nnot checked:\n(.*?)\n\n", said, flags=re.DOTALL)
    facts = [line for line in unchecked.splitlines() if "is on the hub and not in" not in line]
    assert all(re.search("GPU|CPU cores", fact) for fact in facts), facts


def test_a_folder_is_planned_by_its_name_and_copied_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in FOLDERS:
        assert main(["plan", folder.name]) == 0
        assert main(["new", f"my-{folder.name}", "--from", folder.name]) == 0
        copies = sorted(tmp_path.glob(f"my-{folder.name}/*.yaml"))
        assert [path.name for path in copies] == [p.name for p in sorted(folder.glob("*.yaml"))]
        for copy in copies:
            assert main(["plan", str(copy.relative_to(tmp_path))]) == 0


def commands(path: Path) -> list[list[str]]:
    """The `align` commands in a README's blocks or a recipe's head, as words, remarks left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [re.sub(r"^# +", "", line).partition(" #")[0] for line in lines]
    return [shlex.split(line)[1:] for line in found if line.startswith("align ")]


@pytest.mark.parametrize("path", [*RECIPES, *READMES], ids=within)
def test_the_commands_of_a_recipe_plan_and_it_fits_the_gpu_it_is_for(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands(path)
    assert any("--memory" in words for words in found)
    for _, name, *more in found:
        options = more[next((i for i, word in enumerate(more) if word[0] == "-"), len(more)) :]
        assert main(["plan", name, *options]) == 0
        assert "does not fit" not in capsys.readouterr().out


def costs(folder: Path) -> list[str]:
    """The table of a README: the largest estimate of each kind of stage, in GiB."""
    plans = {path.name: planned(f"{folder.name}/{path.name}") for path in folder.glob("*.yaml")}
    found = {
        name: [(stage.kind, totals.stage(stage)) for stage in plan.stages.values()]
        for name, plan in sorted(plans.items(), key=lambda one: (one[0] != "recipe.yaml", one[0]))
    }
    using = [kind for all_ in found.values() for kind, one in all_ if one.memory or one.why]
    kinds = list(dict.fromkeys(using))
    lines = [f"| | GPUs | {' | '.join(kinds)} |", "|---" * (len(kinds) + 2) + "|"]
    for name, stages in found.items():
        gpus = max(one.devices for _, one in stages)
        lines.append(f"| `{name}` | {gpus} | {' | '.join(_cell(k, stages) for k in kinds)} |")
    return lines


def _cell(kind: str, stages: list[tuple[str, totals.Estimate]]) -> str:
    peaks = [one.peak for name, one in stages if name == kind]
    if None in peaks:
        return "?"
    return f"{max(p or 0 for p in peaks) / 2**30:.1f}" if peaks else "–"


@pytest.mark.parametrize("folder", FOLDERS, ids=within)
def test_the_costs_in_a_readme_are_the_estimates(folder: Path) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    table = "\n".join(costs(folder))
    assert table in readme, f"The table of {folder.name}/README.md should be\n{table}"


def test_the_list_of_recipes_is_the_folders_and_every_link_leads_somewhere() -> None:
    listed = re.findall(r"^\| \[(.+?)\]\(", (ROOT / "recipes/README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == shelf.recipes()
    for readme in (ROOT / "recipes/README.md", *READMES):
        for link in re.findall(r"\]\(([^)]+)\)", readme.read_text(encoding="utf-8")):
            assert (readme.parent / link).exists(), f"{readme}: {link}"


def test_no_two_recipes_write_to_one_directory() -> None:
    shipped = [path for path in ROOT.glob("recipes/*/*.yaml") if path.parent.name != "launch"]
    names = [recipe.read(path).name for path in shipped]
    assert len(set(names)) == len(names) >= len(NAMES)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_every_number_that_trains_or_samples_says_where_it_comes_from(path: Path) -> None:
    head, body = re.split(r"\nbase:", path.read_text(encoding="utf-8"), maxsplit=1)
    explained = set(re.findall(r"^#   (\[\w+\]) ", head, flags=re.MULTILINE))
    used = {f"[{tag}]" for tag in re.findall(r"\[(\w+)(?: §[\d.]+)?\]", _comments(body))}
    assert explained and explained == used
    settings = "learning_rate|beta|lora_alpha|temperature|num_train_epochs|warmup_steps|max_length"
    lines = body.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.search(rf"\b({settings}|[^_]batch_size): ", line.partition("#")[0]):
            remark = _comments(line) or following
            assert re.search(r"# .*(\[\w|ours)", remark), line


def _comments(text: str) -> str:
    return "\n".join(re.findall(r"(?<=\s)# .*", text))


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_names_no_machine_and_holds_no_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])(~|/(home|root|mnt|data|tmp|work|Users))/|hf_\w{8}", text)


# -- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_columns_of_the_real_data_sets_become_the_rows_a_recipe_asks_for(
    name: str, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> None:
    found = list(outside(name))
    assert found
    for _, kind, source in found:
        splits, configurations, rows = SETS[str(source.path)]
        assert source.split.partition("[")[0] in splits, source
        assert source.name in configurations, source
        if kind is None:
            continue
        local = Source(path=str(write_rows("rows.jsonl", rows)), columns=source.columns)
        made = list(data.read(local, kind, None))
        assert len(made) == len(rows), source
        for row in made:
            if kind is Preferences:
                assert row["prompt"][-1]["role"] == "user"
                assert [m["role"] for m in row["chosen"] + row["rejected"]] == ["assistant"] * 2
            elif kind is Conversations:
                assert row["messages"][-1]["role"] == "assistant"
            elif kind is Text:
                assert row["text"] == "A town."
            else:
                assert kind is Prompts
                assert row["prompt"][-1]["role"] == "user"
                assert "question" not in row or row["question"] in row["prompt"][-1]["content"]


def test_qwen3s_template_is_its_own_with_thinking_switched_off() -> None:
    import trl
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs = Path(str(trl.__file__)).with_name("chat_templates") / "qwen3.jinja"
    ours = ROOT / "recipes/qwen3-1.7b/chat.jinja"
    for dialog in (say("One?"), say("One?", "Two.")):
        asked: dict[str, Any] = {"enable_thinking": False, "conversations": [dialog]}
        asked |= {"add_generation_prompt": len(dialog) == 1}
        rendered = [
            render_jinja_template(chat_template=file.read_text(encoding="utf-8"), **asked)[0]
            for file in (ours, theirs)
        ]
        assert rendered[0] == rendered[1]
        assert "<think>\n\n</think>\n\n" in rendered[0][0]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_trained_on_held_out_rows(name: str) -> None:
    for kind, _, source in outside(name):
        held_out = {
            "google/IFEval": "train",
            "truthfulqa/truthful_qa": "validation",
        }  # all they have
        wanted = held_out.get(str(source.path), "test") if kind == "evaluate" else "train"
        assert source.split.startswith(wanted), source


def test_the_rounds_preferences_hold_those_of_the_rounds_before(
    write_rows: Callable[[str, list[dict[str, Any]]], Path],
) -> None:
    rows = [{**TULU_PAIRS[0], "id": f"row {i}"} for i in range(1000)]
    path = str(write_rows("rows.jsonl", rows))
    stages = planned("llama-3.1-8b/rounds.yaml").stages
    drawn = []
    for number in ("1", "2", "3"):
        stage = stages[f"reward_{number}"].stage
        ((_, source),) = sources(stage)
        local = Source(path=path, weight=source.weight)
        drawn.append({row["id"] for row in data.mix([local], Preferences, stage.seed, None)})
    assert drawn[0] < drawn[1] < drawn[2]


# -- runs ----------------------------------------------------------------------------------------


def shrink(name: str, tiny_model: Path, folder: Path) -> list[str]:
    """Overrides that make a recipe small enough for a CPU: rows made up, a random model."""
    plan = planned(name)
    written = yaml.load(plan.path.read_text(encoding="utf-8"), name, [])
    assert written is not None
    stages = written.python()["stages"]
    settings = [f"base.path={tiny_model}", "base.pad_token=<pad>", "base.eos_token=<|end|>"]
    settings += ["base.chat_template=zephyr", "launch=null"]
    for stage in plan.stages.values():
        at = f"stages.{stage.name}"
        for key in ("data", "prompts", "tasks"):
            for i, (_, source) in enumerate(sources(getattr(stage.stage, key, None), Rows)):
                inside = f".{i}.data" if key == "tasks" else f".{i}"
                place = at + "." + key
                place += inside if isinstance(stages[stage.name].get(key), list) else ""
                if source.path is not None:
                    settings += [f"{place}.path={rows_file(source.path, folder)}"]
                    settings += [f"{place}.split=train", f"{place}.name=null"]
                    settings += [] if source.weight == 1.0 else [f"{place}.weight=1"]
        if stage.kind == "reward_model":
            settings.append(f"{at}.gate=null")
        elif stage.kind in ("reject", "pair"):
            settings.append(f"{at}.allow_cut=true")
        elif stage.kind == "sample":
            settings += [f"{at}.n=3", f"{at}.generation.max_new_tokens=16"]
        for i, reward in enumerate(getattr(stage.stage, "rewards", ())):
            if reward.model.stage is None:
                settings.append(f"{at}.rewards.{i}.model.path={scorer(tiny_model, folder)}")
        for i, task in enumerate(getattr(stage.stage, "tasks", ())):
            if task.ask == "answer":
                settings.append(f"{at}.tasks.{i}.generation.max_new_tokens=16")
    return [word for setting in settings for word in ("--set", setting)]


def scorer(tiny_model: Path, folder: Path) -> Path:
    """A reward model of random weights."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    for made in (model, AutoTokenizer.from_pretrained(tiny_model)):
        made.save_pretrained(folder / "scorer")
    return folder / "scorer"


def rows_file(path: str, folder: Path) -> Path:
    """24 rows with the columns of a data set, each with a number of its own before every text."""
    rows = SETS[path][2]
    numbered = [
        re.sub(
            r'"(content|prompt|id|question)": "', rf'"\1": "{i}. ', json.dumps(rows[i % len(rows)])
        ).replace('"key": 0', f'"key": {i}')
        for i in range(24)
    ]
    file = folder / f"{path.replace('/', '-')}.jsonl"
    file.write_text("\n".join(numbered) + "\n", encoding="utf-8")
    return file


def run(cwd: Path, *words: str) -> None:
    command = [sys.executable, "-m", "align.cli", "run", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_handbooks_second_adapter_is_trained_on_the_first_one_merged_and_quantized(
    tiny_model: Path, tmp_path: Path
) -> None:
    run(tmp_path, "zephyr-7b", "dpo", *shrink("zephyr-7b", tiny_model, tmp_path))
    made = tmp_path / "runs" / "zephyr-7b"
    sft, dpo = (json.loads((made / name / "model.json").read_text()) for name in ("sft", "dpo"))
    assert sft["lora"]["r"] == 16 and dpo["lora"]["r"] == 128
    assert sft["quantization"] == dpo["quantization"]
    assert sft["quantization"]["load_in_4bit"]
    base = (made / "dpo").resolve() / dpo["base"]["path"]
    assert base.resolve() == (made / "merged" / "model").resolve()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["zephyr-7b", "smollm2", "qwen3-1.7b", "llama-3.1-8b/full.yaml", "llama-3.1-8b/rounds.yaml"],
)
def test_a_whole_recipe_runs_on_a_tiny_model(name: str, tiny_model: Path, tmp_path: Path) -> None:
    run(tmp_path, name, *shrink(name, tiny_model, tmp_path))
    plan = planned(name)
    report = json.loads((tmp_path / "runs" / plan.name / "report.json").read_text())
    assert report["status"] == "done"
    evaluate: Any = plan.stages["evaluate"].stage
    assert {one["model"] for one in report["scores"]} == {m.name for m in evaluate.models}
    controls = {one["model"] for one in report["comparisons"] if one["role"] == "control"}
    assert controls == evaluate.controls.keys()
