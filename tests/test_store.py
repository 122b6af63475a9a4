"""The store: an artifact is whole or not there, and damage is found by name."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align import space, store
from align.errors import StageFailed

ABOUT: dict[str, Any] = {"kind": "sft", "inputs": [], "versions": {}, "stopped": None}


def work(root: Path, name: str = "sft-0123456789ab", **files: str) -> Path:
    """A `.partial` directory as a stage leaves it."""
    path = root / f"{name}.partial"
    (path / "data").mkdir(parents=True)
    (path / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (path / "checkpoints" / "checkpoint-4" / "optimizer.pt").write_text("o" * 100)
    (path / "data" / "rows.jsonl").write_text('{"id": "1"}\n')
    (path / "data" / "more.jsonl.tmp").write_text('{"id": ')
    (path / "model.safetensors").write_bytes(bytes(range(256)))
    (path / "log.txt").write_text("said\n")
    (path / "progress.json").write_text("{}")
    (path / "stage.json").write_text('{"inputs": []}')
    for name, text in files.items():
        (path / name).write_text(text)
    return path


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return store.publish(work(tmp_path), ABOUT)


def test_an_artifact_holds_what_the_stage_left_and_nothing_it_needed_only_to_go_on(
    artifact: Path,
) -> None:
    names = {path.name for path in artifact.iterdir()}
    assert names == {"artifact.json", "data", "log.txt", "model.safetensors", "stage.json"}
    assert [path.name for path in (artifact / "data").iterdir()] == ["rows.jsonl"]
    about = store.verify(artifact)
    assert about["key"] == "sft-0123456789ab"
    assert set(about["files"]) == {
        "data/rows.jsonl",
        "log.txt",
        "model.safetensors",
        "stage.json",
    }


# -- atomicity -----------------------------------------------------------------------------------

CALLS = ("fsync", "rename", "replace", "unlink", "rmdir", "open")


class _Broken:
    """Lets the first `k` calls into the file system pass and fails every one after them."""

    def __init__(self, k: int) -> None:
        self.left = k

    def __call__(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                raise OSError(errno.EIO, "the disk is gone")
            self.left -= 1
            return call(*args, **kwargs)

        return guarded


def test_a_failure_at_any_call_leaves_the_partial_directory_or_the_whole_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for k in range(200):
        root = tmp_path / str(k)
        partial = work(root)
        broken = _Broken(k)
        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, broken(getattr(os, name)))
            patch.setattr(Path, "open", broken(Path.open))
            try:
                store.publish(partial, ABOUT)
            except OSError as error:
                assert error.errno == errno.EIO
        path = root / "sft-0123456789ab"
        outcomes.append(path.exists())
        assert path.exists() != partial.exists()
        if path.exists():
            store.verify(path)
            assert not (path / "checkpoints").exists()
        else:  # goes on: either the manifest is there and holds, or the stage runs again
            if (partial / "artifact.json").exists():
                store.verify(partial)
                store.finish(partial)
            else:
                assert (partial / "checkpoints" / "checkpoint-4" / "optimizer.pt").exists()
                store.publish(partial, ABOUT)
            store.verify(path)
        if broken.left:
            break
    assert len(outcomes) > 20
    assert outcomes == sorted(outcomes), "once it is there it stays there"
    assert outcomes[-1] and not outcomes[0]


def test_nothing_is_ever_overwritten(tmp_path: Path, artifact: Path) -> None:
    before = (artifact / "artifact.json").read_bytes()
    shutil.rmtree(tmp_path / "sft-0123456789ab.partial", ignore_errors=True)
    again = work(tmp_path, **{"log.txt": "other\n"})
    with pytest.raises(StageFailed, match="exists already and is not overwritten"):
        store.publish(again, ABOUT)
    assert (artifact / "artifact.json").read_bytes() == before
    store.verify(artifact)


# -- damage --------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 128
    path.write_bytes(bytes(content))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_flip, _truncate, _append, _empty, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "data/rows.jsonl", "log.txt", "stage.json", "artifact.json"]
)
def test_a_damaged_file_is_named_with_the_remedy(
    artifact: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    if (name, damage) == ("artifact.json", _append):
        pytest.skip("a line feed after JSON changes nothing")
    damage(artifact / name)
    with pytest.raises(StageFailed) as failed:
        store.verify(artifact)
    assert str(artifact / name) in str(failed.value)
    assert "run" in str(failed.value).lower()


def test_a_flipped_byte_gives_this_sentence(artifact: Path) -> None:
    _flip(artifact / "model.safetensors")
    with pytest.raises(StageFailed) as failed:
        store.verify(artifact)
    assert str(failed.value) == (
        f"{artifact}/model.safetensors is damaged: its checksum is not the one that was written. "
        f"Move {artifact} away and run the recipe again: this stage is made anew, and what was "
        "made from it is kept."
    )


def test_a_file_no_stage_wrote_is_damage_too(artifact: Path) -> None:
    (artifact / "data" / "zzz.jsonl").write_text("{}\n")
    with pytest.raises(StageFailed, match="zzz.jsonl is damaged: no stage wrote it"):
        store.verify(artifact)


def test_two_swapped_files_are_damage(artifact: Path) -> None:
    (artifact / "log.txt").rename(artifact / "x")
    (artifact / "data" / "rows.jsonl").rename(artifact / "log.txt")
    (artifact / "x").rename(artifact / "data" / "rows.jsonl")
    with pytest.raises(StageFailed, match="data/rows.jsonl is damaged"):
        store.verify(artifact)


def test_an_artifact_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="sft-gone is missing. Run the recipe again"):
        store.verify(tmp_path / "sft-gone")


# -- one writer ----------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from align import store
with store.lock(Path(sys.argv[1]), "sft-ab", "sft-ab is being made"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_with_the_first_ones_pid(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    assert store.writer(tmp_path, "sft-ab") == holder.pid
    with (
        pytest.raises(StageFailed, match=f"sft-ab is being made by process {holder.pid}. Wait"),
        store.lock(tmp_path, "sft-ab", "sft-ab is being made"),
    ):
        pass


def test_a_killed_writers_lock_is_free_at_once(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert store.writer(tmp_path, "sft-ab") is None
    with store.lock(tmp_path, "sft-ab", "busy"):
        pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    with store.lock(tmp_path, "sft-ab", "busy"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with store.lock(tmp_path, "sft-ab", "busy"):  # waits a moment, not a minute
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_states(tmp_path: Path) -> None:
    path = tmp_path / "sft-0123456789ab"
    assert store.state(path) == "absent"
    work(tmp_path)
    assert store.state(path) == "partial"
    with store.lock(tmp_path, path.name, "busy"):
        assert store.state(path) == "running"
    store.publish(store.partial(path), ABOUT)
    assert store.state(path) == "done"


# -- what can go ---------------------------------------------------------------------------------


def _made(root: Path, name: str, inputs: list[str], **files: str) -> Path:
    record = json.dumps({"inputs": inputs})
    about = {**ABOUT, "inputs": inputs}
    return store.publish(work(root, name, **{"stage.json": record, **files}), about)


def test_clean_keeps_what_a_recipe_links_to_and_everything_it_was_made_from(tmp_path: Path) -> None:
    pretrain = _made(tmp_path, "pretrain-1", [])
    base = json.dumps({"base": {"path": "../pretrain-1/model.safetensors"}, "adapter": True})
    _made(tmp_path, "world-1", [])
    sft = _made(tmp_path, "sft-1", ["world-1"], **{"model.json": base})
    old = _made(tmp_path, "sft-0", ["world-1"])
    work(tmp_path, "dpo-0")
    work(tmp_path, "dpo-1")
    moved = sft.with_name("sft-9.damaged")
    shutil.copytree(sft, moved)
    store.link(tmp_path / "mine" / "sft", sft)
    store.link(tmp_path / "mine" / "dpo", tmp_path / "dpo-1.partial")
    jobs = [tmp_path / ".jobs" / name for name in ("sft-1", "dpo-0")]
    for folder in jobs:
        folder.mkdir(parents=True)
    found = space.unneeded(tmp_path)
    assert set(found) == {old, moved, tmp_path / "dpo-0.partial"}
    assert all(size > 300 for size in found.values())
    lines = space.clean(tmp_path)
    assert lines[-1].endswith("`align clean --yes` removes them.")
    assert old.exists(), "it is only shown"
    assert space.clean(tmp_path, yes=True)[-1].startswith("Removed ")
    assert not any(path.exists() for path in found)
    assert [folder.exists() for folder in jobs] == [True, False]
    assert pretrain.exists() and sft.exists() and (tmp_path / "dpo-1.partial").exists()
    assert space.clean(tmp_path, yes=True) == [f"Nothing in {tmp_path} is unneeded."]


def test_clean_leaves_alone_what_is_being_written(tmp_path: Path) -> None:
    work(tmp_path, "dpo-0")
    with store.lock(tmp_path, "dpo-0", "busy"):
        assert space.unneeded(tmp_path) == {}
    assert set(space.unneeded(tmp_path)) == {tmp_path / "dpo-0.partial"}


def test_clean_removes_the_folders_of_pushes_and_keeps_what_they_note(tmp_path: Path) -> None:
    pushes = tmp_path / ".pushes"
    for name in ("dpo-0", "dpo-1", "dpo-1.merged"):
        (pushes / name).mkdir(parents=True)
        (pushes / name / "README.md").write_text("# A card")
    note = pushes / "dpo-0.json"
    note.write_text("{}")
    with store.lock(tmp_path, "push.dpo-1", "busy"):
        space.clean(tmp_path, yes=True)
        assert {path.name for path in pushes.iterdir()} == {note.name, "dpo-1", "dpo-1.merged"}
    space.clean(tmp_path, yes=True)
    assert list(pushes.iterdir()) == [note]


# -- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not possible here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_while_publishing_loses_nothing(small_disk: Path) -> None:
    partial = work(small_disk)
    (partial / "data" / "more.jsonl.tmp").unlink()  # removing it would make room
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError) as error:
        while True:
            file.write(b"0" * 4096)
    assert store.is_full(error.value, small_disk)
    with pytest.raises(OSError) as error:
        store.publish(partial, ABOUT)
    assert store.is_full(error.value, small_disk)
    assert (partial / "checkpoints" / "checkpoint-4" / "optimizer.pt").exists()
    filler.unlink()
    store.verify(store.publish(partial, ABOUT))


def test_what_a_full_disk_is_recognised_by(tmp_path: Path) -> None:
    assert store.is_full(OSError(errno.ENOSPC, "x"), tmp_path)
    rust = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert store.is_full(rust, tmp_path)
    assert not store.is_full(OSError(errno.EIO, "x"), tmp_path)
