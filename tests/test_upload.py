"""Uploading with the real client to a hub on loopback: checks, faults, sentences."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import OTHER, READ, WRITE, Account, Asked, Hub, Refused

from align.errors import RecipeError, StageFailed
from align.hub import resolve
from align.publishing import upload
from align.publishing.upload import Pushed

REPO = "me/tiny"
NO_HUB = (
    "does not answer as a hub does. "
    "Look at HF_ENDPOINT where it is set, and at a network that wants a login first."
)
CHECKED: dict[str, Any] = {
    "branch": "main",
    "pull_request": False,
    "ours": False,
    "say": lambda line: None,
}
WHOLE = {"README.md", "adapter_config.json", "adapter_model.safetensors", "notes/run.txt"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four small files; one of them is large in the hub's eyes."""
    path = tmp_path / "folder"
    (path / "notes").mkdir(parents=True)
    (path / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (path / "adapter_config.json").write_text('{"r": 4}\n')
    (path / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 5)
    (path / "notes" / "run.txt").write_text("fine\n")
    return path


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's own pauses between tries take no time."""
    paused: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", paused.append)
    return paused


def push(folder: Path, say: Callable[[str], None] = lambda line: None, **options: Any) -> Pushed:
    asked: dict[str, Any] = {
        "branch": None,
        "tag": None,
        "pull_request": False,
        "private": True,
        "message": "A model",
        "wait": lambda seconds: None,
    }
    return upload.upload(folder, options.pop("repo", REPO), say=say, **(asked | options))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_folder_becomes_one_commit_of_a_private_model(hub: Hub, folder: Path) -> None:
    said: list[str] = []
    pushed = push(folder, said.append)
    assert hub.files(REPO) == contents(folder)
    assert set(hub.files(REPO)) == WHOLE
    assert hub.commits(REPO) == ["initial commit", "A model"]
    assert hub.repositories["models/me/tiny"].private
    assert pushed == Pushed(f"{hub.url}/{REPO}", hub.repositories["models/me/tiny"].at("main").sha)
    assert said[0] == "sending 4 files, 0.0 MB, to me/tiny"
    assert said[-1] == f"read back: 4 files at {pushed.commit[:7]}"


def test_what_is_there_is_neither_sent_nor_committed_again(hub: Hub, folder: Path) -> None:
    first = push(folder)
    hub.log.clear()
    assert push(folder) == first
    assert not hub.asked("PUT|/commit/")
    assert len(hub.commits(REPO)) == 2


def test_a_large_file_goes_up_in_parts(hub: Hub, folder: Path) -> None:
    hub.part = 500
    push(folder)
    assert [len(asked.body) for asked in hub.asked("^PUT")] == [500, 500, 280]
    assert hub.files(REPO) == contents(folder)


def test_a_branch_and_a_tag_leave_main_alone(hub: Hub, folder: Path) -> None:
    pushed = push(folder, branch="run/1", tag="v1")
    assert set(hub.files(REPO)) == set()
    assert hub.files(REPO, "run/1") == hub.files(REPO, "v1") == contents(folder)
    assert pushed.url == f"{hub.url}/{REPO}/tree/v1"
    assert push(folder, branch="run/1", tag="v1") == pushed


def test_a_tag_is_never_moved(hub: Hub, folder: Path) -> None:
    push(folder, tag="v1")
    (folder / "notes" / "run.txt").write_text("better\n")
    hub.log.clear()
    with pytest.raises(StageFailed, match='tag "v1" already, of another state of this model'):
        push(folder, tag="v1", branch="new")
    asked: dict[str, Any] = {"say": print, "wait": print}
    with pytest.raises(StageFailed, match='tag "v1" already'):
        upload.look(folder, REPO, "v1", later=["README.md"], **asked)
    for repo, tag in ((REPO, "v1"), (REPO, "v2"), ("me/new", "v1")):
        upload.look(folder, repo, tag, later=["notes/run.txt"], **asked)
    assert not hub.asked("PUT|/commit/|POST .*/branch/")


def test_a_tag_of_the_same_state_stays_where_it_is(hub: Hub, folder: Path) -> None:
    first = push(folder, tag="v1")
    better = folder / "notes" / "run.txt"
    better.write_text("better\n")
    push(folder, tag="v2")
    better.write_text("fine\n")
    third = push(folder, tag="v1")
    assert hub.repositories["models/me/tiny"].at("v1").sha == first.commit != third.commit
    assert (first.tagged, third.tagged) == (first.commit, first.commit), "which is what is said"
    assert hub.files(REPO) == contents(folder)


def test_a_pull_request_holds_the_folder_and_is_opened_once(hub: Hub, folder: Path) -> None:
    hub.create("models/other/tiny", private=False)
    hub.accounts[WRITE] = Account("me")
    pushed = push(folder, repo="other/tiny", pull_request=True, private=False)
    assert pushed.url == f"{hub.url}/other/tiny/discussions/1"
    assert hub.files("other/tiny", "refs/pr/1") == contents(folder)
    assert hub.files("other/tiny") == {}
    again = push(folder, repo="other/tiny", pull_request=True, private=False)
    assert again == pushed
    (folder / "notes" / "run.txt").write_text("better\n")
    other = push(folder, repo="other/tiny", pull_request=True, private=False)
    assert other.url == f"{hub.url}/other/tiny/discussions/2"


def test_what_would_be_loaded_with_the_new_files_goes_in_the_same_commit(
    hub: Hub, folder: Path
) -> None:
    repository = hub.create("models/me/tiny")
    loaded = ("config.json", "model.safetensors", ".eval_results/old.yaml", "merges.txt")
    loaded += ("vocab.txt", "modeling_custom.py", "consolidated.00.pth", "README.md")
    others = {"picture.png", "LICENSE", "data.json", "training.json", "data/config.json"}
    old = {name: hub.keep(b"old") for name in (*loaded, *others)}
    before = hub.commit(repository, "refs/heads/main", "merged", old)
    said: list[str] = []
    push(folder, said.append)
    assert set(hub.files(REPO)) == WHOLE | others
    assert hub.commits(REPO)[-2:] == ["merged", "A model"]
    assert "removing config.json, which would be loaded with what is pushed" in said
    assert f"replacing README.md; commit {before.sha[:7]} keeps what was there" in said


def test_the_weights_of_others_are_not_replaced(hub: Hub) -> None:
    repository = hub.create("models/me/tiny")
    hub.commit(repository, "refs/heads/main", "theirs", {"model.safetensors": hub.keep(b"theirs")})
    assert refusal() == (
        "me/tiny: It holds model.safetensors, which no push from here made and this one would "
        "replace. Push to another name, or to a new branch (--branch NAME)."
    )
    repository.refs["refs/heads/cut-off"] = repository.at("main")
    fine_branches = ({"branch": "new"}, {"branch": "cut-off"})
    for fine in (*fine_branches, {"ours": True}, {"pull_request": True}):
        assert upload.check(REPO, private=True, **(CHECKED | fine)).exists
    files = {"model.safetensors": hub.keep(b"others")}
    hub.commit(repository, "refs/heads/cut-off", "others", files)
    assert "would replace" in refusal(branch="cut-off")
    ours = hub.keep(b"---\ntags: [align-recipes]\n---\n")
    files = repository.at("main").files | {"README.md": ours}
    hub.commit(repository, "refs/heads/main", "ours", files)
    assert upload.check(REPO, private=True, **CHECKED).exists


def test_weights_that_a_push_leaves_alone_do_not_stop_it(hub: Hub, folder: Path) -> None:
    names = {"m.gguf", "training_args.bin", "optimizer.pt", "onnx/model.bin"}
    files = {name: hub.keep(b"theirs") for name in names}
    hub.commit(hub.create("models/me/tiny"), "refs/heads/main", "theirs", files)
    assert upload.check(REPO, private=True, **CHECKED).exists
    push(folder)
    assert set(hub.files(REPO)) == WHOLE | names


@pytest.mark.parametrize("page", [b"{}", b"[]", b"<html>Log in</html>"])
def test_what_answers_and_is_no_hub_is_a_sentence(hub: Hub, page: bytes) -> None:
    def portal(self: Hub, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, page

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Hub, "answer", portal)
        assert refusal() == f"me/tiny: {hub.url} {NO_HUB}"
        with pytest.raises(LookupError, match="does not answer as a hub does"):
            resolve("model", REPO, None)


def test_a_commit_of_somebody_else_meanwhile_is_built_upon(hub: Hub, folder: Path) -> None:
    repository = hub.create("models/me/tiny")

    def interfere(asked: Asked) -> None:
        if "/commit/" in asked.path:
            hub.before = None
            files = repository.at("main").files | {"picture.png": hub.keep(b"hers")}
            hub.commit(repository, "refs/heads/main", "hers", files)

    hub.before = interfere
    said: list[str] = []
    push(folder, said.append)
    assert hub.commits(REPO) == ["initial commit", "hers", "A model"]
    assert set(hub.files(REPO)) == WHOLE | {"picture.png"}
    assert "somebody else changes it at this moment; trying again in 1 s" in said


FAULTS = ["drop", "cut", "lost", "half", "429", "500", "502", "503", "504"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_request_ends_with_equal_bytes_in_one_commit(
    hub: Hub, folder: Path, fault: str
) -> None:
    def clean() -> None:
        hub.repositories.clear()
        hub.log.clear()
        for file in hub.root.iterdir():
            file.unlink()

    push(folder, branch="run", tag="v1")
    requests = len(hub.log)
    assert requests > 12
    for k in range(requests):
        clean()
        hub.faults = {k: fault}
        push(folder, branch="run", tag="v1")
        assert len(hub.log) > requests or fault == "half", k  # some answers have no second half
        assert hub.files(REPO, "v1") == contents(folder), k
        assert hub.commits(REPO, "run") == ["initial commit", "A model"], k


@pytest.mark.parametrize("fault", ["lost", "503"])
def test_a_fault_at_any_request_opens_one_pull_request(hub: Hub, folder: Path, fault: str) -> None:
    hub.create("models/me/tiny", private=False)
    push(folder, pull_request=True)
    for k in range(len(hub.log)):
        hub.repositories.clear()
        hub.log.clear()
        hub.create("models/me/tiny", private=False)
        hub.faults = {k: fault}
        push(folder, pull_request=True)
        repository = hub.repositories["models/me/tiny"]
        assert len(repository.pulls) == 1, k
        assert hub.files(REPO, "refs/pr/1") == contents(folder), k


def test_a_hub_that_stays_down_is_a_sentence_and_a_second_push_finishes(
    hub: Hub, folder: Path
) -> None:
    hub.create("models/me/tiny")
    push(folder)
    requests, weights = len(hub.log), hub.files(REPO)["adapter_model.safetensors"]
    large = hub.object(hashlib.sha256(weights).hexdigest())
    for k in range(requests):
        large.unlink()
        hub.log.clear()
        hub.create("models/me/tiny")
        hub.faults = {place: "503" for place in range(k, k + 200)}
        with pytest.raises(StageFailed) as stopped:
            push(folder)
        assert str(stopped.value) == (
            "me/tiny: the hub is busy (status 503). Try again later. "
            "Then push again: what the hub has is not sent twice."
        )
        assert hub.files(REPO) in ({}, contents(folder)), k  # never a part of it
        there = large.exists()
        hub.faults.clear()
        hub.log.clear()
        push(folder)
        assert hub.files(REPO) == contents(folder), k
        assert len(hub.commits(REPO)) == 2
        assert len(hub.asked("^PUT")) == (0 if there else 1), k


def test_a_server_that_names_a_time_is_given_it(hub: Hub, folder: Path) -> None:
    waited: list[float] = []
    hub.create("models/me/tiny")
    hub.faults = {place: "429" for place in range(3)}
    push(folder, wait=waited.append)
    assert waited == [3.0, 3.0, 4.0]  # it asks for 3 s, we would wait for 1, 2 and 4


@pytest.mark.parametrize(("left", "seconds"), [(0, 91), (7, 1)])
def test_the_hubs_own_limit_is_waited_for(hub: Hub, folder: Path, left: int, seconds: int) -> None:
    waited: list[float] = []
    said: list[str] = []
    paths = ["whoami", "/commit/"]

    def limited(asked: Asked) -> None:
        if paths and paths[0] in asked.path:
            paths.pop(0)
            raise Refused(429, "Not now", RateLimit=f'"api";r={left};t=90')

    hub.before = limited
    hub.create("models/me/tiny")
    told = {"say": said.append, "wait": waited.append}
    upload.check(REPO, private=True, **(CHECKED | told))
    assert said == [f"the hub is busy (status 429); trying again in {seconds} s"]
    push(folder, **told)
    assert waited == [seconds, seconds] and said.count(said[0]) == 2


def test_an_answer_that_never_comes_is_not_waited_for(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "SILENCE", 0.5)
    hub.create("models/me/tiny")
    hub.faults = {1: "stall"}
    push(folder)
    assert hub.files(REPO) == contents(folder)


def test_a_push_that_was_killed_is_finished_by_the_next(hub: Hub, folder: Path) -> None:
    (folder / "model-2.safetensors").write_bytes(b"second" * 100)
    sending, killed = threading.Event(), threading.Event()

    def stop(asked: Asked) -> None:
        if asked.method == "POST" and "/commit/" in asked.path:
            sending.set()
            killed.wait()
            raise Refused(503, "Too late")

    hub.before = stop
    code = (
        "from pathlib import Path; from align.publishing.upload import upload; import sys\n"
        f"upload(Path({str(folder)!r}), {REPO!r}, branch=None, tag=None, pull_request=False, "
        "private=True, message='A model', say=print)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    assert sending.wait(60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(hub.asked("^PUT")) == 2
    hub.before = None
    killed.set()
    hub.log.clear()
    push(folder)
    assert hub.files(REPO) == contents(folder)
    assert not hub.asked("^PUT")  # both large files were there


# -- before any work -----------------------------------------------------------------------------


def refusal(**options: Any) -> str:
    asked = {**CHECKED, "private": True, "wait": lambda seconds: None}
    with pytest.raises(RecipeError) as refused:
        upload.check(options.pop("repo", REPO), **(asked | options))
    return str(refused.value)


def test_check_says_who_pushes_and_what_is_there(hub: Hub) -> None:
    hub.create("models/lab/old", private=False)
    assert upload.check(REPO, private=True, **CHECKED) == upload.Access("me", False, True)
    assert upload.check("lab/new", private=False, **CHECKED) == upload.Access("me", False, False)
    assert upload.check("lab/old", private=False, **CHECKED) == upload.Access("me", True, False)
    assert not hub.asked("POST|PUT")


def test_no_token_and_a_wrong_one_are_sentences(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    login = "Log in (`hf auth login`), or set HF_TOKEN."
    assert refusal() == f"me/tiny: nobody is logged in to the hub on this machine. {login}"
    monkeypatch.setenv("HF_TOKEN", "hf_" + "n0pe" * 9)
    assert refusal() == f"me/tiny: the hub refuses the token of this machine. {login}"


def test_a_token_that_may_not_write_there_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("models/other/tiny", private=False)
    settings = "A token with write access is made at https://huggingface.co/settings/tokens."
    assert refusal(repo="other/new") == (
        "other/new: The token is that of me, who has no part in other. Push to one of: me, lab."
    )
    assert refusal(repo="other/tiny", private=False) == (
        "other/tiny: me may not write to this model. Open a pull request (--pull-request). "
        + settings
    )
    monkeypatch.setenv("HF_TOKEN", READ)
    assert refusal() == f"me/tiny: The token of me may only read. {settings}"


def test_a_hub_that_cannot_be_asked_who_may_write_is_pushed_to(hub: Hub) -> None:
    def unknown(asked: Asked) -> None:
        if "/auth-check" in asked.path:
            raise Refused(404, "There is no such page")

    hub.create("models/other/tiny", private=False)
    hub.before = unknown
    found = upload.check("other/tiny", private=False, **CHECKED)
    assert found == upload.Access("me", True, False)


def test_a_public_model_does_not_take_a_private_push(hub: Hub) -> None:
    hub.create("models/me/tiny", private=False)
    assert "This model is public, and a push is private unless told. Push with --public" in (
        refusal()
    )


def test_a_model_that_the_hub_has_disabled_is_refused(hub: Hub) -> None:
    hub.create("models/me/tiny").disabled = True
    assert refusal() == "me/tiny: The hub has disabled this model. Push to another name."


def test_a_pull_request_needs_a_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create("models/me/tiny", private=True)
    monkeypatch.setenv("HF_TOKEN", OTHER)
    assert "There is no such model, or other may not see it." in refusal(pull_request=True)


def test_names_the_hub_cannot_have_are_refused(hub: Hub) -> None:
    assert refusal(repo="tiny") == 'tiny: This name has no owner. Yours is "me/tiny".'
    assert "the name cannot be one of the hub: Repo id must" in refusal(repo="me/ti ny")
    assert "the name cannot be one of the hub: Repo id must" in refusal(repo="me/ti/ny")


def test_a_hub_that_cannot_be_reached_is_a_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://nowhere.invalid")
    reached = refusal()
    assert reached.startswith("me/tiny: http://nowhere.invalid cannot be reached: ")
    assert reached.endswith("Look at the network, and at HF_ENDPOINT where it is set.")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the environment says to stay offline (HF_HUB_OFFLINE). Unset it to go" in refusal()


# -- what cannot be known before -----------------------------------------------------------------


def test_a_full_quota_leaves_nothing_to_be_seen(hub: Hub, folder: Path) -> None:
    hub.quota = 100
    with pytest.raises(StageFailed) as refused:
        push(folder)
    assert str(refused.value) == (
        "me/tiny: the hub has no room for it: Private repository storage limit reached, please "
        "upgrade your plan. Nothing of this push is to be seen there."
    )
    assert hub.files(REPO) == {}


@pytest.mark.parametrize("status", ["402", "413", "507"])
def test_a_hub_that_is_full_in_another_way_is_not_asked_again(
    hub: Hub, folder: Path, status: str
) -> None:
    hub.create("models/me/tiny")
    hub.faults = dict.fromkeys(range(3, 99), status)
    with pytest.raises(StageFailed, match="the hub has no room for it: Not now. Nothing of this"):
        push(folder)
    assert len(hub.log) == 4


def test_a_full_disk_of_this_machine_is_a_sentence(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", full)
    with pytest.raises(StageFailed, match="disk is full: No space left on device. Make room."):
        push(folder)


def test_a_hub_without_xet_is_told_apart(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **options: Any) -> None:  # in the words of hf_xet 1.8
        status = "HTTP status client error (404 Not Found)"
        address = f"{hub.url}/api/models/me/tiny/xet-write-token/main"
        raise ConnectionError(f"Network error: Request error: {status}, domain: {address}")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", refused)
    with pytest.raises(StageFailed, match="A hub without Xet takes files with HF_HUB_DISABLE_XET"):
        push(folder)


def test_a_card_that_the_hub_refuses_stops_the_push(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nbase_model: /home/me/model\n---\n")
    with pytest.raises(StageFailed, match='"base_model" with value "/home/me/model" is not valid'):
        push(folder)
    assert hub.files(REPO) == {}


def test_bytes_that_arrive_otherwise_are_found(hub: Hub, folder: Path) -> None:
    def corrupt(asked: Asked) -> None:
        if "/tree/" in asked.path and len(hub.repositories["models/me/tiny"].commits) > 1:
            commit = hub.repositories["models/me/tiny"].at("main")
            commit.files["adapter_config.json"] = hub.keep(b"{}")

    hub.before = corrupt
    with pytest.raises(StageFailed, match="not what was sent: adapter_config.json. Push again."):
        push(folder)


@pytest.mark.parametrize("fault", ["403", "503", "drop"])
def test_tokens_and_signatures_are_in_nothing_that_is_said(
    hub: Hub, folder: Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.create("models/me/tiny")
    push(folder)
    requests, said = len(hub.log), list[str]()
    for k in range(requests):
        for file in hub.root.iterdir():
            file.unlink()
        hub.log.clear()
        hub.create("models/me/tiny")
        hub.faults = {place: fault for place in range(k, k + 200)}
        with pytest.raises(StageFailed) as refused:
            push(folder, said.append)
        said.append(str(refused.value))
    text = "\n".join(said) + "".join(capfd.readouterr())
    assert fault == "403" or f"PUT {hub.url}/lfs/" in text  # which was a signed address
    assert WRITE not in text and "5ecret" not in text and "Signature" not in text
