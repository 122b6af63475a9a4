"""A small world for tests of recipes: stages, rewards and tasks by path that do nothing."""

import json
from pathlib import Path

import pytest

HEAD = """
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from pathlib import Path

from pydantic import Field

from align.artifacts import (
    Conversations, Model, Preferences, Prompts, Report, RewardModel, Samples, Scored, Text
)
from align.data import Source
from align.settings import Library, Reward, Settings, Stage, Task

if TYPE_CHECKING:
    from align.out import Out

OWNED = {"max_steps": "the number of epochs decides"}
Lora = Annotated[dict[str, Any], Library("peft:LoraConfig")]
"""

FILES = {
    "my/tune.py": """
class Tune(Stage):
    model: Model
    data: list[Conversations | Source]
    held_out: list[Conversations | Source] = []
    trainer: Annotated[dict[str, Any], Library("trl:SFTConfig", OWNED)] = {}
    lora: Lora | None = None
    quantization: Annotated[
        dict[str, Any] | None | Literal["inherit"], Library("transformers:BitsAndBytesConfig")
    ] = "inherit"
    batch_size: int = Field(default=32, gt=0)
    train_on: Literal["assistant", "all"] = "assistant"
    template: Path | None = None
    launch: str | dict[str, Any] | None = Field(default=None, exclude=True)

    def check(self):
        if self.lora and "r" not in self.lora:
            yield "lora", "Say how large it is: r: 16."
        if self.trainer.get("max_length", 1) > 4096:
            yield "trainer.max_length", "Longer than the model's context of 4096 tokens."

    def run(self, out: Out) -> Model: ...
""",
    "my/judge.py": """
class Judge(Stage):
    model: Model
    data: list[Preferences | Source]

    def run(self, out: Out) -> RewardModel: ...
""",
    "my/draw.py": """
class Draw(Stage):
    model: Model
    prompts: Prompts | Source
    n: int = Field(default=8, ge=1)
    generation: Annotated[dict[str, Any], Library("transformers:GenerationConfig")] = {}
    stop: list[str] = []

    def run(self, out: Out) -> Samples: ...
""",
    "my/rate.py": """
class Rate(Stage):
    samples: Samples
    rewards: list[Reward]
    combine: dict[str, float] = {}

    def run(self, out: Out) -> Scored: ...
""",
    "my/pick.py": """
class Pick(Stage):
    scores: Scored
    keep: Literal["best", "random"] = "best"
    like: Conversations | None = None

    def run(self, out: Out) -> Conversations: ...
""",
    "my/prefer.py": """
class Prefer(Stage):
    scores: Scored
    margin: float = 0.0

    def run(self, out: Out) -> Preferences: ...
""",
    "my/blend.py": """
class Blend(Stage):
    models: list[Model | RewardModel]
    weights: list[float] | None = None

    def run(self, out: Out) -> Model | RewardModel: ...
""",
    "my/network.py": """
class Network(Stage):
    text: list[Text | Source]
    config: Annotated[dict[str, Any], Library("transformers:AutoConfig")]

    def run(self, out: Out) -> Model: ...
""",
    "my/exam.py": """
class Gate(Settings):
    model: Model
    task: str
    may_lose: float = 0.0


class Exam(Stage):
    models: list[Model | RewardModel]
    tasks: list[Task]
    gates: list[Gate] = []

    def run(self, out: Out) -> Report: ...
""",
    "my/length.py": """
class Length(Reward):
    target: int = 100

    def __call__(self, *, prompts, completions, **columns): ...
""",
    "my/by_model.py": """
class ByModel(Reward):
    model: RewardModel

    def __call__(self, *, prompts, completions, **columns): ...
""",
    "my/quiz.py": """
class Quiz(Task):
    ask: ClassVar[Literal["answer"]] = "answer"
    data: Prompts | Source
    reward: Reward
""",
}


def build(folder: Path) -> None:
    """Write the world into a folder."""
    (folder / "my").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(HEAD + text, encoding="utf-8")
    (folder / "my/broken.py").write_text("from align.settings import Stage\n\nx = 1 / 0\n")
    (folder / "my/syntax.py").write_text("class Half(\n")
    (folder / "my/nothing.py").write_text("from align.settings import Stage\n")
    two = "class A(Stage): ...\n\n\nclass B(Stage): ...\n"
    (folder / "my/two.py").write_text("from align.settings import Stage\n\n\n" + two)
    row = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "text": "a b"}
    for name in ("d.jsonl", "e.jsonl"):
        (folder / name).write_text(json.dumps({**row, "id": name}) + "\n")
    (folder / "empty.jsonl").touch()
    for name, kind in (("m", "LlamaForCausalLM"), ("rm", "LlamaForSequenceClassification")):
        (folder / name).mkdir()
        config = {"architectures": [kind], "id2label": {"0": "LABEL_0"}}
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "model.safetensors").write_bytes(b"\0" * 8)
        (folder / name / "tokenizer.json").write_text("{}")
    (folder / "bin").mkdir()
    (folder / "bin" / "config.json").write_text("{}")
    (folder / "bin" / "pytorch_model.bin").write_bytes(b"\0")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world in an empty working directory, with an empty hub cache and nothing in DATA."""
    build(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("DATA", raising=False)
    return tmp_path
