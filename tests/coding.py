"""What tests of generated code share; where bwrap cannot run they are skipped."""

import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from align import rewards, shelf
from align.settings import Reward
from align.verifiers import sandbox

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ALIGN_DATA", "/nowhere"))
WHY = sandbox.unable("bubblewrap")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="ALIGN_DATA is not set")
needs_sandbox = pytest.mark.skipif(WHY is not None, reason=str(WHY))


def shelved(**settings: Any) -> Reward:
    path = shelf.find(Path("reward/code.py"))
    assert path is not None
    reward = shelf.load(path, Reward)(**settings)
    assert isinstance(reward, Reward)
    return reward


def score(reward: Reward, *answers: str, **columns: list[Any]) -> list[rewards.Numbers]:
    asked = columns.pop("prompt", [""] * len(answers))
    prompts = [[{"role": "user", "content": text}] for text in asked]
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    return rewards.call(reward, prompts, completions, columns)


def judged(answer: str, *tests: str, timeout: float = 10.0, memory: int = 256) -> rewards.Numbers:
    """One answer's numbers."""
    reward = shelved(timeout=timeout, memory=memory)
    return score(reward, textwrap.dedent(answer), test=[list(tests) or ["assert f() == 42"]])[0]
