"""From a recipe to the hub and back, by `align` and the real client in processes of their own.

The hub is on loopback. What is downloaded goes to processes that have never seen the store.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hub_server import WRITE, Hub, enter, environment, serve
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import models, recipe

INPUTS = torch.arange(7, 60)[None]

RECIPE = """
base: {path: BASE}
seed: 3
stages:
  sft:
    model: base
    data: {path: me/talks, revision: v1, split: train}
    lora: {r: 4, lora_alpha: 8, target_modules: all-linear}
    batch_size: 4
    trainer: {max_steps: 4, learning_rate: 1.0e-2}
  fails: {use: fails.py}
"""

FAILS = '''
import logging
from align.artifacts import Text
from align.out import Out
from align.settings import Stage

class Fails(Stage):
    """Fails, as stages do."""

    def run(self, out: Out) -> Text:
        out.say("about to fail")
        logging.getLogger().warning("about to fail")
        raise RuntimeError("failed")
'''

NEXT = """
base: {path: me/adapter, revision: COMMIT}
seed: 3
stages:
  more:
    use: sft
    model: base
    data: talks.jsonl
    batch_size: 4
"""

PUSHES = """
from align.cli import main
assert main(["push", "runs/chain/sft", "me/adapter", "--with-base", "me/base"]) == 0
assert main(["push", "chain", "me/merged", "--merged"]) == 0
"""

LOADS = """
import json
import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

def logits(network):
    with torch.no_grad():
        return network.eval()(torch.arange(7, 60)[None]).logits[0]

folder = snapshot_download("me/adapter", local_dir="down")
config = json.load(open(f"{folder}/adapter_config.json"))
base = AutoModelForCausalLM.from_pretrained(
    config["base_model_name_or_path"], revision=config["revision"]
)
found = {"base": logits(base), "adapter": logits(PeftModel.from_pretrained(base, "me/adapter"))}
for name in ("me/adapter", "me/merged"):
    found[name] = logits(AutoModelForCausalLM.from_pretrained(name))
torch.save(found, "logits.pt")
names = ("me/adapter", "me/base", "me/merged")
tokenizers = [AutoTokenizer.from_pretrained(name) for name in names]
print(json.dumps([[one.chat_template, one("it is <|end|>")["input_ids"]] for one in tokenizers]))
"""

CANARIES = {
    "HF_TOKEN": WRITE,
    "OPENAI_API_KEY": "sk-proj-" + "canary1Of2Secrets" * 2,
    "WANDB_API_KEY": "canary" * 6,
}
"""What must be found nowhere; the first is the token that the hub takes."""


@dataclass
class World:
    """A working directory, the hub, and everything that commands have shown."""

    folder: Path
    hub: Hub = field(repr=False)
    heard: list[str] = field(default_factory=list, repr=False)
    commands: set[bytes] = field(default_factory=set, repr=False)
    """The command lines of all processes while ours ran."""

    def run(self, *words: str, home: str = "home", code: int = 0) -> str:
        """Run Python in a process of its own, and return what it shows."""
        child = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env=os.environ | CANARIES | environment(self.hub, self.folder / home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with watched(self.commands):
            shown, _ = child.communicate()
        self.heard.append(shown)
        assert child.returncode == code, shown
        return shown

    def align(self, *words: str, code: int = 0) -> str:
        return self.run("-m", "align.cli", *words, code=code)


@contextmanager
def watched(commands: set[bytes]) -> Iterator[None]:
    """Collect the command lines of all processes, again and again."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    commands.add(file.read_bytes())
                except OSError:  # it has ended
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A chain that was run, and pushed three times: its base, its adapter, both as one."""
    folder = tmp_path_factory.mktemp("world")
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"},
                      {"role": "assistant", "content": f"it is {i}"}]} for i in range(8)
    ]  # fmt: skip
    talks = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "talks.jsonl").write_text(talks)
    (folder / "chain.yaml").write_text(RECIPE.replace("BASE", str(tiny_model)))
    (folder / "fails.py").write_text(FAILS)
    (folder / "loads.py").write_text(LOADS)
    (folder / "hub").mkdir()
    with serve(folder / "hub") as hub:
        made = World(folder, hub)
        data = hub.create("datasets/me/talks")
        kept = {"train.jsonl": hub.keep(talks.encode())}
        data.refs["refs/tags/v1"] = hub.commit(data, "refs/heads/main", "talks", kept)
        assert "about to fail" in made.align("run", "chain.yaml", code=1)
        made.run("-c", PUSHES)
        yield made


def logits(world: World, tiny_model: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the base and of base and adapter, as they lie in the store."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        plain = base(INPUTS).logits[0]
        adapted = PeftModel.from_pretrained(base, str(world.folder / "runs/chain/sft/adapter"))
        return plain, adapted.eval()(INPUTS).logits[0]


def test_what_is_downloaded_has_the_same_logits_and_the_same_template(
    world: World, tiny_model: Path
) -> None:
    adapter = world.folder / "runs/chain/sft/adapter"
    plain, adapted = logits(world, tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    shown = world.run("loads.py", home="empty")  # which has never seen the store, nor a cache
    here = torch.load(world.folder / "logits.pt")
    assert torch.equal(here["base"], plain) and torch.equal(here["adapter"], adapted)
    assert torch.equal(here["me/adapter"], adapted)
    assert torch.allclose(here["me/merged"], adapted, rtol=0, atol=1e-5)
    assert not torch.allclose(plain, adapted, rtol=0, atol=1e-2)
    ids = tokenizer("it is <|end|>")["input_ids"]
    assert json.loads(shown.splitlines()[-1]) == [[tokenizer.chat_template, ids]] * 3
    template = (adapter / "chat_template.jinja").read_bytes()
    for name in ("me/adapter", "me/base", "me/merged"):
        assert world.hub.files(name)["chat_template.jinja"] == template


def test_every_model_is_whole_private_and_of_one_commit(world: World) -> None:
    for name in ("me/adapter", "me/base", "me/merged"):
        repository = world.hub.repositories[f"models/{name}"]
        assert repository.private and len(repository.commits) == 2
        assert not [path for path in world.hub.files(name) if path.endswith((".bin", ".pt"))]
    assert "adapter_model.safetensors" in world.hub.files("me/adapter")
    assert "model.safetensors" in world.hub.files("me/base")
    assert "model.safetensors" in world.hub.files("me/merged")


def test_the_card_names_base_and_data_by_their_commits(world: World) -> None:
    card = world.hub.files("me/adapter")["README.md"].decode()
    for name in ("models/me/base", "datasets/me/talks"):
        assert name.partition("/")[2] in card
        assert world.hub.repositories[name].at("main").sha in card


def test_nothing_that_is_pushed_names_a_path_of_this_machine(world: World) -> None:
    base = world.hub.repositories["models/me/base"].at("main")
    for name in ("me/adapter", "me/base", "me/merged"):
        for path, data in world.hub.files(name).items():
            assert b"/tmp/" not in data and str(world.folder).encode() not in data, path
    config = json.loads(world.hub.files("me/adapter")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/base"
    assert config["revision"] == base.sha


def test_a_pushed_adapter_is_the_base_of_another_recipe(
    world: World, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(world.hub, world.folder / "another", monkeypatch)
    monkeypatch.chdir(world.folder)
    commit = world.hub.repositories["models/me/adapter"].at("main").sha
    Path("next.yaml").write_text(NEXT.replace("COMMIT", commit))
    model = dict(recipe.read("next.yaml", strict=True).stages["more"].stage)["model"]
    assert model.spec()["base"]["revision"] == commit
    network = models.load(model, train=True)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained and all(".lora_" in name for name in trained)  # the one that was pushed goes on
    _, adapted = logits(world, tiny_model)
    with torch.no_grad():
        assert torch.equal(network.eval()(INPUTS).logits[0], adapted)


def test_no_token_is_in_any_file_output_or_command_line(world: World) -> None:
    world.align("push", "runs/chain/sft", "other/adapter", code=2)
    world.align("report", "chain.yaml")
    files = {str(path): path for path in world.folder.rglob("*") if path.is_file()}
    held = {name: path.read_bytes() for name, path in files.items()}
    held["what was shown"] = "\n".join(world.heard).encode()
    held["a command line"] = b"\n".join(world.commands)
    for name, data in held.items():
        for variable, canary in CANARIES.items():
            assert canary.encode() not in data, f"{variable} is in {name}"
    assert any(b"align.cli\0run\0chain.yaml" in command for command in world.commands)
    assert any(name.endswith("log.txt") for name in held)
    assert any(WRITE in asked.headers.get("authorization", "") for asked in world.hub.log)
