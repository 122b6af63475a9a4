"""The stages that the pages show are read without a problem, each in a recipe around it."""

import gzip
import json
import re
from pathlib import Path

import pytest

from align import recipe

PAGES = Path(__file__).parents[1] / "docs"

BEFORE = """\
  sft: {model: base, data: my/answers.jsonl}
  reward: {use: reward_model, model: sft, data: my/hh.jsonl.gz}
  sample: {model: sft, prompts: my/prompts.jsonl}
  score: {samples: sample, rewards: [reward/length.py]}
  best: {use: reject, scores: score}
  random: {use: reject, scores: score, keep: random, like: best}
  sft_best: {use: sft, model: sft, data: best}
  sft_rand: {use: sft, model: sft, data: random}
  dpo: {model: sft, data: my/hh.jsonl.gz}
"""
"""What the pages' stages come after, where they name it and do not hold it."""

TREE = {"role": "prompter", "text": "Who?", "replies": []}
FILES = {
    "answers.jsonl": {"prompt": "Who?", "completion": "Me."},
    "prompts.jsonl": {"prompt": "Who?", "subset": "chat"},
    "trees.jsonl": {"message_tree_id": "a", "tree_state": "ready_for_export", "prompt": TREE},
    "hh.jsonl.gz": {"chosen": "\n\nHuman: Who?\n\nAssistant: I.", "rejected": "\n\nHuman: Who?"},
    "trees.jsonl.zst": {"prompt": TREE},
}


def shown() -> list[tuple[str, str]]:
    """(page, stages) of every block that begins as deep as a recipe's stages stand."""
    return [
        (page.name, block)
        for page in sorted(PAGES.glob("*.md"))
        for block in re.findall(r"^```yaml\n(  \w.*?)^```", page.read_text("utf-8"), re.S | re.M)
        if not block.startswith("  workers:")  # a stage's key, in several ways
    ]


def whole(block: str) -> str:
    """A recipe with these stages and those before them that they hang on."""
    for line in reversed(BEFORE.splitlines(keepends=True)):
        name = line.partition(":")[0].strip()
        if re.search(rf"\b{name}\b(?!:)", block) and not re.search(rf"^  {name}:", block, re.M):
            block = line + block
    return f"base: me/model\nstages:\n{block}"


@pytest.mark.parametrize(("page", "block"), shown())
def test_the_stages_of_a_page_are_read(
    page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()
    for name, row in FILES.items():
        line = f"{json.dumps(row)}\n".encode()
        Path("my", name).write_bytes(gzip.compress(line) if name.endswith(".gz") else line)
    Path("my/held-out.csv").write_text("prompt,completion\nWhere?,Here.\n")
    Path("mine.yaml").write_text(whole(block))
    assert recipe.read("mine.yaml").stages


def test_pages_show_stages() -> None:
    pages = {page for page, _ in shown()}
    assert {"data.md", "curation.md", "sampling.md", "evaluation.md", "recipes.md"} <= pages
