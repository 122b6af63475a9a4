"""A stage by path whose shards need no model, and that dies where a test says."""

import json
from pathlib import Path
from typing import Any

import pytest

from align import records, shelf
from align.artifacts import Samples
from align.data import Source
from align.out import Out
from align.settings import Stage

STAGE = '''
import functools
import os
import re
import signal
import sys
from pathlib import Path

from pydantic import Field

from align.artifacts import Prompts, Samples
from align.data import Source, mix
from align.errors import StageFailed
from align.parallel import shards
from align.parallel.workers import Workers
from align.settings import Stage


class Shout(Stage):
    """Every prompt in capitals."""

    prompts: list[Prompts | Source]
    shard: int = Field(2, exclude=True)
    workers: Workers | None = Field(None, exclude=True)

    def run(self, out) -> Samples:
        rows = mix(self.prompts, Prompts, self.seed, out)
        shards.make(out, shards.cut(rows, self.shard), self, self.workers)
        return Samples(out.path)

    def worker(self, out):
        print("loaded")  # as libraries do: it must not be taken for a number
        if lives := {path: path.read_text() for path in Path("lives").iterdir()}:
            sys.addaudithook(functools.partial(listen, lives))

        def work(number, rows):
            for i, row in enumerate(rows):
                text = row["prompt"][0]["content"]
                out.progress(i, len(rows), "prompts", tokens=i)
                open(f"turn-{text}", "a").close()
                if text == "refuse":
                    raise StageFailed('"refuse" is not shouted. Take it out.')
                out.count("shouted", example=text)
                out.count("tokens", len(text))
                yield {"id": row["id"], "text": text.upper()}

        return work


def listen(lives, event, arguments):
    """Kill this process when it touches a file that a life names, which is lost."""
    names = " ".join(map(str, arguments[:2])) if event in ("open", "os.rename") else ""
    for life, pattern in lives.items():
        if re.search(pattern, names) and os.access(life, os.F_OK):
            life.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the stage."""
    (tmp_path / "shout.py").write_text(STAGE, encoding="utf-8")
    (tmp_path / "lives").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shout(
    project: Path, texts: list[str], name: str = "shout", **settings: Any
) -> tuple[Stage, Out]:
    """The stage on these prompts, and the directory it is made in, ready to be run."""
    file = project / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    cls = shelf.load(project / "shout.py", Stage)
    stage = cls(prompts=[Source(path=str(file))], **settings)
    return stage, prepare(stage, project / "runs" / f"{name}.partial", "./shout.py")


def prepare(stage: Stage, work: Path, use: str) -> Out:
    """A stage's directory as a runner would make it."""
    work.mkdir(parents=True, exist_ok=True)
    record = {
        "name": "one",
        "recipe": "tests",
        "kind": "samples",
        "use": use,
        "settings": records.dump(stage),
        "attempt": 0,
        "inputs": [],
    }
    record["key"] = records.key(stage, "samples", 0, records.Contents(work.parent))
    (work / "stage.json").write_text(json.dumps(record))
    (work.parent / ".cache").mkdir(exist_ok=True)
    return Out(work, work.parent / ".cache")


def content(out: Out) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Samples(out.path).files()}
