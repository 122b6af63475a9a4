"""Data sets of a hub: streamed, sliced and drawn at a commit, and what a wrong name says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server

CODE = """
import sys
from align import data
from align.artifacts import Conversations
from align.data import Source
from align.errors import StageFailed

def answers(**keys):
    source = Source(path="me/rows", revision=sys.argv[1], **keys)
    return [row["messages"][1]["content"] for row in data.mix([source], Conversations, 0, None)]

print(*answers(streaming=True, split="train[2:5]"))
print(len(answers(streaming=True, count=3)))
try:
    list(data.read(Source(path="me/nothing", streaming=True), Conversations, None))
except StageFailed as failure:
    print(failure)
"""


def test_a_data_set_is_streamed_from_a_hub_at_its_commit(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    with hub_server.serve(tmp_path / "hub") as hub:
        repository = hub.create("datasets/me/rows")
        commits = []
        for word in ("old", "new"):
            rows = [{"prompt": f"Q{n}", "completion": f"{word}{n}"} for n in range(8)]
            file = hub.keep("".join(json.dumps(row) + "\n" for row in rows).encode())
            commits.append(hub.commit(repository, "refs/heads/main", word, {"train.jsonl": file}))
        done = subprocess.run(
            [sys.executable, "-c", CODE, commits[0].sha],
            env=os.environ | hub_server.environment(hub, tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    sliced, drawn, refused = done.stdout.splitlines()
    assert sliced == "old2 old3 old4" and drawn == "3"
    assert refused.startswith("me/nothing cannot be read: Dataset 'me/nothing' doesn't exist on")
    assert refused.endswith(
        "Look at its name on the hub, fetch it while connected, or name a file."
    )
    assert not list((tmp_path / "home").rglob("*.arrow"))
