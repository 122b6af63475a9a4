"""`align push` without a hub: the folder, the card, and everything that is refused."""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Hub
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from push_world import BASE, COMMIT, RECIPE, chain, made_chain  # noqa: F401  (fixtures)
from safetensors.torch import load_file, save_file

from align import named, recipe, store
from align.artifacts import Model
from align.cli import main
from align.errors import RecipeError
from align.publishing import checks, lineage, places
from align.publishing import push as publishing
from align.publishing.checks import Wish
from align.publishing.folder import build
from align.publishing.places import Place
from align.spec import Base

FILES = {
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "generation_config.json"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"),
}
TOKEN = "hf_" + "n0tReal" * 5

Pushed = tuple[int, str, str]
Push = Callable[..., Pushed]


@pytest.fixture
def push(chain: Path, capsys: pytest.CaptureFixture[str]) -> Push:  # noqa: F811
    """Runs `align push … --dry-run` in the world; exit code, stdout, stderr."""

    def run(*words: str) -> Pushed:
        code = main(["push", *words, "--dry-run"])
        return code, *capsys.readouterr()

    return run


def folder(stage: str) -> Path:
    """What would be pushed of a stage's model."""
    return Path("runs/.pushes") / Path(f"runs/chain/{stage}").resolve().name


def card(stage: str) -> str:
    return (folder(stage) / "README.md").read_text(encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


# -- the folder -----------------------------------------------------------------------------------


def test_an_adapter_is_pushed_on_its_base_by_id_and_commit(push: Push) -> None:
    code, said, _ = push("runs/chain/dpo", "me/mine")
    made, home = folder("dpo"), Path("runs/chain/dpo/adapter")
    assert code == 0 and {path.name for path in made.iterdir()} == FILES
    config = read(made / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, COMMIT)
    assert config["inference_mode"] and config["target_modules"] == sorted(config["target_modules"])
    for name in ("adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (made / name).read_bytes() == (home / name).read_bytes()
    assert os.path.samefile(made / "adapter_model.safetensors", home / "adapter_model.safetensors")
    assert read(made / "generation_config.json")["eos_token_id"] == [6], "the end of a turn"
    assert "19.4 KiB" in said and str((made / "README.md").resolve()) in said
    assert not list(Path("runs/.pushes").glob("*.json")), "nothing was pushed"


def test_a_recipe_is_its_last_model(push: Push) -> None:
    for word in ("chain", "chain.yaml", "runs/chain"):
        code, said, _ = push(word, "me/mine")
        assert code == 0 and "the last model is dpo, runs/chain/dpo" in said


def test_a_base_on_this_machine_alone_is_pushed_first_or_merged(push: Push) -> None:
    code, _, wrong = push("runs/chain/aside", "me/mine")
    assert code == 2 and "local, is on this machine alone: nobody could load" in wrong
    assert "--with-base OWNER/NAME" in wrong and "--merged" in wrong

    both = ("me/mine", "--with-base", "me/base", "--license", "apache-2.0")
    code, said, _ = push("runs/chain/aside", *both)
    assert code == 0 and said.index("me/base would hold") < said.index("me/mine would hold")
    config = read(folder("aside") / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", None)
    (base,) = Path("runs/.pushes").glob("local-*")
    assert (base / "model.safetensors").read_bytes() == Path("local/model.safetensors").read_bytes()
    text = (base / "README.md").read_text(encoding="utf-8")
    assert "no stage of the store made it" in text
    assert ModelCard(card("aside")).data.license == "apache-2.0"
    assert ModelCard(text).data.license is None, "a base may be somebody else's"


def test_a_merged_model_is_the_adapter_and_its_base(push: Push) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)
    assert push("runs/chain/aside", "me/mine", "--merged")[0] == 0
    assert logging.getLogger("bitsandbytes").level == logging.ERROR, "as in a dialog"
    made, ids = folder("aside"), torch.arange(8, 40)[None]
    assert not (made / "adapter_config.json").exists()
    base = AutoModelForCausalLM.from_pretrained("local")
    adapted = PeftModel.from_pretrained(base, "runs/chain/aside/adapter").eval()
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(made).eval()(input_ids=ids).logits
    assert torch.allclose(expected, found, atol=1e-5)
    assert "folded into the base" in card("aside")
    assert not list(Path("runs/.pushes").glob("*.merged"))


def test_a_model_that_went_on_from_an_adapter_of_the_hub_has_the_base_of_that(push: Push) -> None:
    first = Path("runs/chain/aside")
    made, asked = read(first / "model.json"), read(first / "stage.json")
    made["base"] |= {"path": BASE, "revision": COMMIT}
    (first / "model.json").write_text(json.dumps(made))
    asked["settings"]["model"] = {"model": {"path": "me/first", "revision": "a" * 40}}
    (first / "stage.json").write_text(json.dumps(asked))
    assert push("runs/chain/folded", "me/mine")[0] == 0
    assert f"base_model: {BASE}\n" in card("folded") and COMMIT in card("folded")
    assert f"the adapter `me/first` at commit `{'a' * 40}`" in card("folded")


def test_a_configuration_that_is_damaged_is_the_persons_own(push: Push) -> None:
    for text, fact in (("{", "cannot be read: Expecting"), ("[]", "holds no JSON object")):
        Path("local/generation_config.json").write_text(text)
        code, _, wrong = push("local", "me/mine")
        assert code == 1 and f"local/generation_config.json {fact}" in wrong
        assert "Mend it, or fetch the model again." in wrong


def test_a_model_without_a_tokenizer_is_a_sentence(push: Push) -> None:
    for file in Path("local").glob("tokenizer*"):
        file.unlink()
    code, _, wrong = push("local", "me/mine")
    assert code == 1 and "The tokenizer's files in " in wrong
    Path("no.yaml").write_text(
        "base: {path: local}\nstages: {sft: {use: sft, model: base, data: talks.jsonl}}\n"
    )
    assert main(["plan", "no.yaml"]) == 2, "before it is run"


def test_what_a_training_leaves_beside_the_weights_stays_here(push: Push) -> None:
    """Of a directory that no stage made, too: PEFT's own, with the reference that DPO saves."""
    shutil.copytree("runs/chain/dpo/adapter", "theirs")
    (Path("theirs") / "ref").mkdir()
    shutil.copy("theirs/adapter_model.safetensors", "theirs/ref")
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "events.out.tfevents"):
        (Path("theirs") / name).write_text("{}")
    code, _, _ = push("theirs", "me/mine")
    (made,) = Path("runs/.pushes").glob("theirs-*")
    assert code == 0 and {path.name for path in made.iterdir()} == FILES
    text = (made / "README.md").read_text(encoding="utf-8")
    assert "no stage of the store made it" in text and "not known here" in text
    assert ModelCard(text).data.base_model == BASE


def test_a_reward_model_goes_with_its_head(push: Push) -> None:
    assert push("runs/chain/reward", "me/judge")[0] == 0
    made = folder("reward")
    assert any("score" in name for name in load_file(made / "adapter_model.safetensors"))
    assert {path.name for path in made.iterdir()} == FILES - {"generation_config.json"}
    data = ModelCard(card("reward")).data
    assert (data.pipeline_tag, data.library_name) == ("text-classification", "peft")
    assert "held-out pairs" in card("reward")


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_the_code_on_the_card_runs(stage: str, push: Push) -> None:
    assert push(f"runs/chain/{stage}", "me/mine")[0] == 0
    (code,) = fences(card(stage), "python")
    snapshot = Path("hub/models--maker--tiny/snapshots") / COMMIT
    code = code.replace('"me/mine"', repr(str(folder(stage)))).replace(f'"{BASE}"', f'"{snapshot}"')
    values: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()):
        exec(code.replace("max_new_tokens=256", "max_new_tokens=2"), values)  # noqa: S102
    assert values["score"].ndim == 0 if stage == "reward" else values["ends"] == [6]


# -- bases ----------------------------------------------------------------------------------------


def test_a_directory_of_the_hubs_cache_is_what_it_was_downloaded_as(chain: Path) -> None:  # noqa: F811
    snapshot = chain / "hub/models--maker--tiny/snapshots" / COMMIT
    assert places.of(Base(path=str(snapshot))) == Place(BASE, COMMIT)
    assert places.of(Base(path=BASE, revision="main")) == Place(BASE, COMMIT)
    assert places.of(Base(path="local")) is None


def test_a_base_that_was_pushed_is_named_from_then_on(
    hub: Hub,
    chain: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["push", "runs/chain/aside", "me/mine", "--with-base", "me/base"]
    later = "The card and adapter_config.json get the commit of me/base when that is pushed."
    assert main([*words, "--dry-run"]) == 0 and capsys.readouterr().out.count(later) == 1
    assert main(words) == 0
    said = capsys.readouterr().out
    key = Path("runs/chain/aside").resolve().name
    (pushed,) = places.pushes(Path("runs"), key)
    at = {name: hub.repositories[f"models/me/{name}"].at("main").sha for name in ("mine", "base")}
    assert (pushed["repo"], pushed["commit"]) == ("me/mine", at["mine"])
    assert pushed["commit"] in said and pushed["url"] in said and not pushed["whole"]
    assert re.fullmatch(r"chain-aside-[0-9a-f]{8}", pushed["tag"])
    config = json.loads(hub.files("me/mine")["adapter_config.json"])
    named_base = (config["base_model_name_or_path"], config["revision"])
    assert named_base == ("me/base", at["base"])
    assert set(hub.files("me/mine")) == FILES and not folder("aside").exists()

    titles = hub.commits("me/mine"), hub.commits("me/base")
    assert "me/base, is private" in hub.files("me/mine")["README.md"].decode()
    for more in (["--with-base", "me/base"], []):
        assert main(["push", "runs/chain/aside", "me/mine", *more]) == 0
    assert (hub.commits("me/mine"), hub.commits("me/base")) == titles, "once more changes nothing"
    for more in (["--license", "mit"], []):
        capsys.readouterr()
        assert main(["push", "runs/chain/aside", "me/mine", *more]) == 0
    tagged = hub.repositories["models/me/mine"].at(pushed["tag"]).sha
    assert f", tag {pushed['tag']} at {tagged}, which holds the same" in capsys.readouterr().out

    assert main(["push", "runs/chain/aside", "me/again", "--dry-run"]) == 0
    config = read(folder("aside") / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == named_base


# -- what is refused ------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said_at_once(push: Push) -> None:
    weights = Path("runs/chain/aside/adapter/adapter_model.safetensors")
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights)
    code, _, wrong = push("runs/chain/aside", "mine", "--tag", "v1", "--pull-request")
    assert code == 2
    for fact in ("mine: A repository is OWNER/NAME", "is damaged", "A pull request has no branch"):
        assert fact in wrong
    assert not Path("runs/.pushes").exists()


def test_a_model_that_failed_a_gate_is_pushed_only_when_told(push: Push) -> None:
    file = Path("runs/.verdicts") / f"{Path('runs/chain/dpo').resolve().name}.json"
    file.write_text(file.read_text().replace('"passed"', '"failed"'))
    code, _, wrong = push("runs/chain/dpo", "me/mine")
    assert code == 2 and "dpo: It failed a gate. echo has of dpo minus that of sft" in wrong
    assert push("runs/chain/dpo", "me/mine", "--even-failed")[0] == 0
    first = card("dpo").partition("# mine")[2].strip().splitlines()[0]
    assert first.startswith("> **It failed a gate. echo has of dpo minus that of sft is 0.000")


def test_what_is_said_of_an_adapter_is_said_of_the_model_it_was_folded_into(push: Push) -> None:
    assert push("runs/chain/folded", "me/mine")[0] == 0
    assert "made from a model that is not on the hub" in card("folded")
    verdicts = Path("runs/.verdicts")
    said = read(verdicts / f"{Path('runs/chain/dpo').resolve().name}.json")
    said["verdicts"][0]["gates"][0]["verdict"] = "failed"
    file = verdicts / f"{Path('runs/chain/aside').resolve().name}.json"
    file.write_text(json.dumps(said))
    code, _, wrong = push("runs/chain/folded", "me/mine")
    assert code == 2 and "folded: It failed a gate." in wrong


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (
            ["runs/chain/evaluate", "me/mine"],
            "makes no model. Models here are: reward, aside, folded, sft, dpo.",
        ),
        (["nowhere", "me/mine"], "neither a directory nor a hub id"),
        (["runs/chain/dpo", "me/a b"], "A repository is OWNER/NAME"),
        (["runs/chain/dpo", "me/mine", "--with-base", "me/mine"], "a repository of its own"),
        (["runs/chain/dpo", "me/mine", "--with-base", "me/b"], f"The base is {BASE} on the hub"),
        (["local", "me/mine", "--merged"], "no adapter: leave --merged out"),
        ([BASE, "me/mine"], "is on the hub already"),
        (["pickled", "me/mine"], "safetensors"),
        (["half", "me/mine"], "It is not made yet"),
    ],
)
def test_a_push_that_cannot_be_is_a_sentence(words: list[str], fact: str, push: Push) -> None:
    shutil.copytree("local", "pickled")
    Path("pickled/model.safetensors").rename("pickled/pytorch_model.bin")
    shutil.copytree(Path("runs/chain/dpo").resolve(), "runs/dpo-1.partial")
    Path("runs/dpo-1.partial/artifact.json").unlink()
    Path("half").symlink_to("runs/dpo-1.partial")
    code, _, wrong = push(*words)
    assert code == 2 and fact in wrong and "Traceback" not in wrong


def test_a_token_in_the_recipes_text_is_never_pushed(push: Push) -> None:
    Path("chain.yaml").write_text(f"# mine: {TOKEN}\n{RECIPE}")
    code, said, wrong = push("runs/chain/dpo", "me/mine")
    assert code == 2 and "README.md" in wrong and TOKEN not in said + wrong


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        *((f"me/{name}", True) for name in ("a", "a.b-c_d", "v1.git2", "n" * 96)),
        *((f"me/{name}", False) for name in ("-x", "x.git", "n" * 97, "x-", ".x", "a--b", "a..b")),
        *((name, False) for name in ("-me/x", "me./x", "me/x/y", "me", "me/a b")),
    ],
)
def test_a_repository_has_a_name_that_the_client_takes(name: str, fine: bool) -> None:
    try:
        validate_repo_id(name)
        taken = name.count("/") == 1
    except HFValidationError:
        taken = False
    assert taken == fine == (not list(checks._names(name, Wish())))


@pytest.mark.parametrize("option", ["branch", "tag"])
def test_a_branch_and_a_tag_have_names_that_git_takes(option: str) -> None:
    names = ("v1", "run/1", "a.b", "ü", "v1.lock2", "@a", "v 1", "a..b", ".a", "a/.b", "a.lock")
    names += ("a.lock/b", "a/", "/a", "a//b", "a.", "@", "a@{b", "a~1", "a^", "a:b", "a?", "a*")
    for name in (*names, "a[", "a\\b", "a\x7f", "", "a\n", "-a"):
        git = subprocess.run(["git", "check-ref-format", f"refs/heads/{name}"]).returncode
        taken = git == 0 and name not in ("@", "-a")  # no names for `git branch`
        found = list(checks._names("me/mine", Wish(**{option: name})))
        assert taken == (not found), name


def test_the_tag_of_a_push_is_one_that_git_takes(chain: Path) -> None:  # noqa: F811
    model = Model(Path("local"))
    model.name = ".a..b c"
    parcel = checks.Parcel(model, "me/mine", Path("runs"), None, merged=False)
    parcel.folder.mkdir(parents=True)
    (parcel.folder / "README.md").write_text("# A card")
    tag = publishing._tag(parcel)
    assert tag.startswith("a-b-c-") and not list(checks._names("me/mine", Wish(tag=tag)))


def test_two_pushes_do_not_share_the_folder_of_their_base(push: Push) -> None:
    base = places.key(Model(Path("local").resolve()), Path("runs"))
    with store.lock(Path("runs").resolve(), f"push.{base}", "busy"):
        code, _, wrong = push("runs/chain/aside", "me/mine", "--with-base", "me/base")
    assert code == 1 and f"local ({base}) is being pushed by process" in wrong


def test_a_damaged_record_of_pushes_is_named_alone(push: Push) -> None:
    base = places.key(Model(Path("local").resolve()), Path("runs"))
    file = Path("runs/.pushes") / f"{base}.json"
    file.parent.mkdir()
    file.write_text('{"pushes": [')
    code, _, wrong = push("runs/chain/aside", "me/mine")
    assert code == 2 and f"{base}.json is damaged" in wrong and "remove this file alone" in wrong


def test_where_a_configuration_within_another_was_loaded_from_stays_here(push: Push) -> None:
    config = read(Path("local/config.json"))
    config["text_config"] = {"_name_or_path": "/mnt/nfs/joe/base", "layers": [{"n": 1}]}
    Path("local/config.json").write_text(json.dumps(config))
    made = Path("made")
    build(named.model("local", Path("runs")), None, made)
    assert read(made / "config.json")["text_config"] == {"layers": [{"n": 1}]}


def test_a_private_repository_stays_private_and_that_is_said(
    hub: Hub,
    chain: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["push", "runs/chain/aside", "me/mine", "--with-base", "me/base", "--public"]
    hub.create("models/me/base", private=True)
    hub.create("models/me/mine", private=True)
    assert main(words) == 2
    assert "me/mine: This model is private, and a push does not change that." in (
        capsys.readouterr().err
    )
    del hub.repositories["models/me/mine"]
    assert main(words) == 0
    assert not hub.repositories["models/me/mine"].private
    assert "The base, me/base, is private" in hub.files("me/mine")["README.md"].decode()


def test_the_weights_of_others_are_not_pushed_over(
    hub: Hub,
    chain: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["push", "runs/chain/aside", "me/mine", "--with-base", "me/base"]
    theirs = hub.create("models/me/base")
    files = {"model.safetensors": hub.keep(b"theirs")}
    hub.commit(theirs, "refs/heads/main", "theirs", files)
    assert main(words) == 2
    assert "me/base: It holds model.safetensors" in capsys.readouterr().err
    assert "models/me/mine" not in hub.repositories and theirs.at("main").files == files
    del hub.repositories["models/me/base"]
    assert main(words) == 0
    shutil.rmtree("runs/.pushes")
    capsys.readouterr()
    assert main([*words, "--license", "mit"]) == 0, "their cards say whose they are"


@pytest.mark.parametrize(
    ("way_on", "branch"), [(["--branch", "mine"], "mine"), (["--pull-request"], None)]
)
def test_the_ways_on_do_not_open_the_branch_of_others(
    hub: Hub,
    chain: Path,  # noqa: F811
    way_on: list[str],
    branch: str | None,
) -> None:
    words = ["push", "local", "lab/shared"]
    theirs = hub.create("models/lab/shared")
    files = {"model.safetensors": hub.keep(b"theirs")}
    hub.commit(theirs, "refs/heads/main", "theirs", files)
    for more, code in (([], 2), (way_on, 0), ([], 2), (way_on, 0)):
        assert main([*words, *more]) == code
    assert places.branches(Path("runs")) == {("lab/shared", branch)}
    assert theirs.at("main").files == files


def test_a_tag_of_another_state_is_found_before_the_base_goes(hub: Hub, chain: Path) -> None:  # noqa: F811
    theirs = hub.create("models/me/mine")
    theirs.refs["refs/tags/v1"] = theirs.at("main")
    words = ["push", "runs/chain/aside", "me/mine", "--with-base", "me/base"]
    assert main([*words, "--tag", "v1"]) == 1
    assert "models/me/base" not in hub.repositories


# -- the card -------------------------------------------------------------------------------------


def test_the_cards_head_is_what_the_hub_reads(push: Push) -> None:
    assert push("runs/chain/dpo", "me/mine")[0] == 0
    data = ModelCard(card("dpo")).data.to_dict()
    assert data == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["align-recipes", "lora", "sft", "dpo"],
    }
    assert push("runs/chain/dpo", "me/mine", "--license", "apache-2.0")[0] == 0
    assert ModelCard(card("dpo")).data.license == "apache-2.0"


def test_the_card_tells_what_the_store_knows(push: Push) -> None:
    assert push("runs/chain/dpo", "me/mine")[0] == 0
    text = card("dpo")
    assert "`sft` on `talks.jsonl` → `dpo` on `pairs.jsonl`" in text
    for name in ("talks.jsonl", "pairs.jsonl"):
        assert hashlib.sha256(Path(name).read_bytes()).hexdigest() in text
    template = Path("runs/chain/dpo/adapter/chat_template.jinja").read_bytes()
    assert hashlib.sha256(template).hexdigest() in text
    assert "| echo | has | 12 | 0.000 [0.000, 0.242] | 0.000" in text
    assert "| tied with `sft` | the step before | echo | 12 | +0.000" in text
    assert "* passed: echo has of dpo minus that of sft" in text
    assert "8 of 12 items of echo stand in the training data" in text
    about = read(Path("runs/chain/sft/artifact.json"))
    assert f"torch {about['versions']['torch']}" in text and about["device"] in text
    assert "8 rows, 152 tokens" in text
    assert fences(text, "yaml")[-1] == RECIPE, "variables stay unexpanded"


def test_nothing_that_is_pushed_says_where_it_lay(
    push: Push,
    chain: Path,  # noqa: F811
    made_chain: Path,  # noqa: F811
) -> None:
    for words in (["dpo", "me/mine"], ["aside", "me/b", "--with-base", "me/c"], ["reward", "me/d"]):
        assert push(f"runs/chain/{words[0]}", *words[1:])[0] == 0
    for file in Path("runs/.pushes").rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert str(chain.parent).encode() not in data, file
            assert str(made_chain).encode() not in data, file


def test_the_settings_on_the_card_are_a_recipe_that_makes_the_same(push: Push) -> None:
    Path("chain.yaml").write_text(RECIPE.replace("seed: 7", "seed: 8"))
    assert push("runs/chain/dpo", "me/mine")[0] == 0
    text = card("dpo")
    assert "The recipe's file makes something else now. The settings above" in text
    stages: dict[str, Any] = {}
    for block in fences(text, "yaml"):
        found = yaml.safe_load(block)
        stages |= {name: one for name, one in found.items() if name in ("sft", "dpo")}
    Path("again.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    planned = recipe.read("again.yaml").stages
    assert {planned[name].artifact.path.resolve() for name in ("sft", "dpo")} == {
        Path(f"runs/chain/{name}").resolve() for name in ("sft", "dpo")
    }


def test_a_card_without_its_recipe_has_the_reason(chain: Path) -> None:  # noqa: F811
    (*_, step) = lineage.of(Path("runs/chain/dpo").resolve()).steps
    Path("sub").mkdir()
    moved = Path("chain.yaml").rename("sub/mine.yaml")
    assert lineage.text(step) == "The recipe's file is not where it was run any more."
    step.record["recipe_file"] = "sub/mine.yaml"
    assert lineage.text(step) == (RECIPE, [])
    for more, reason in (
        ("launch: null\n", "says on which machines it runs"),
        ("nothing: 1\n", "or something it names, is changed or gone"),
    ):
        moved.write_text(RECIPE + more)
        assert reason in str(lineage.text(step))


def test_data_that_changed_since_has_no_hash(push: Push) -> None:
    Path("pairs.jsonl").write_text(Path("pairs.jsonl").read_text().replace("say 1", "say one"))
    assert push("runs/chain/dpo", "me/mine")[0] == 0
    assert "| `pairs.jsonl` | train | changed or gone since | `dpo` |" in card("dpo")
    assert "| `talks.jsonl` | train | sha256" in card("dpo")


def test_a_history_that_was_cleaned_away_is_said(push: Push) -> None:
    key = Path("runs/chain/sft").resolve().name
    shutil.rmtree(Path("runs") / key)
    assert push("runs/chain/dpo", "me/mine")[0] == 0
    assert f"no longer in the store it was pushed from: `{key}`" in card("dpo")
    found = lineage.of(Path("runs/chain/dpo").resolve())
    assert [step.name for step in found.line] == ["dpo"] and found.gone == (key,)


# -- which model ----------------------------------------------------------------------------------


def test_a_word_names_a_model_as_on_every_command(chain: Path) -> None:  # noqa: F811
    made = named.model("runs/chain/dpo", Path("runs"))
    assert isinstance(made, Model) and made.name == "dpo" and made.path.name.startswith("dpo-")
    assert named.place("me/chain", Path("runs")) == "me/chain", "a hub id is no recipe"
    report = read(Path("runs/chain/report.json"))
    report["comparisons"].append({"model": "sft", "against": "dpo", "role": "control"})
    Path("runs/chain/report.json").write_text(json.dumps(report))
    assert named.place("chain", Path("runs")) == "runs/chain/sft", "a control is nobody's result"
    report["comparisons"] = []  # the last run was asked for an earlier stage
    Path("runs/chain/report.json").write_text(json.dumps(report))
    before = read(Path("runs/chain/evaluate/report.json"))
    before["comparisons"].append({"model": "sft", "against": "dpo", "role": "control"})
    Path("runs/chain/evaluate/report.json").write_text(json.dumps(before))
    assert named.place("chain", Path("runs")) == "runs/chain/sft"
    report["stages"] = [one for one in report["stages"] if one["name"] == "evaluate"]
    Path("runs/chain/report.json").write_text(json.dumps(report))
    with pytest.raises(RecipeError, match="has made no model yet"):
        named.place("chain", Path("runs"))


def test_a_last_model_of_other_settings_than_the_latest_run_is_not_taken(chain: Path) -> None:  # noqa: F811
    report = read(Path("runs/chain/report.json"))
    (dpo,) = [one for one in report["stages"] if one["name"] == "dpo"]
    dpo["key"] = "dpo-of-another-seed"
    Path("runs/chain/report.json").write_text(json.dumps(report))
    with pytest.raises(RecipeError, match="runs/chain/dpo, is of other settings than the latest"):
        named.place("chain", Path("runs"))
    assert named.place("runs/chain/dpo", Path("runs")) == "runs/chain/dpo"


def test_a_stage_that_is_called_as_another_recipe_is_itself(chain: Path) -> None:  # noqa: F811
    shutil.copytree("runs/chain", "runs/dpo", symlinks=True)
    assert named.place("runs/chain/dpo", Path("runs")) == "runs/chain/dpo"


def test_recipes_of_one_stem_are_told_apart_as_a_run_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("other.yaml", "mine/recipe.yaml", "mine/other.yaml", "new/recipe.yaml"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("stages: {}")
    for run in ("other", "mine", "mine-other", "tiny-real-raw"):
        stage = Path("runs", run, "sft")
        stage.mkdir(parents=True)
        (stage / "artifact.json").write_text("{}")
        (stage / "stage.json").write_text('{"name": "sft", "makes": "Model"}')
        report = {"comparisons": [], "stages": [{"name": "sft", "key": "sft"}]}
        (stage.parent / "report.json").write_text(json.dumps(report))
    words = {"other": "other", "other.yaml": "other", "mine": "mine", "mine/recipe.yaml": "mine"}
    words |= {"mine/other.yaml": "mine-other", "mine-other": "mine-other"}
    words |= {"tiny-real/raw.yaml": "tiny-real-raw"}
    for word, run in words.items():
        assert named.place(word, Path("runs")) == f"runs/{run}/sft", word
    for word in ("new", "new/recipe.yaml", "quickstart"):
        with pytest.raises(RecipeError, match=f"has not been run here: align run {word}"):
            named.place(word, Path("runs"))
    Path("new/config.json").write_text("{}")
    assert named.place("new", Path("runs")) == "new", "a folder with a model is that model"
    Path("zephyr-7b").mkdir()
    assert named.place("zephyr-7b", Path("runs")) == "zephyr-7b", "not the shipped recipe"
