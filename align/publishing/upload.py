"""A folder on the model hub: checked before, sent in one commit, and read back.

`huggingface_hub.upload_folder` commits a folder in several parts where Xet is installed, and its
`create_pr` opens another pull request at every try. Here everything is one commit, so that a branch
holds the old model or the new one and never half of it, and every try begins by looking at what is
there. The client skips large files that the hub has; a second try sends what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import GitRefs, ModelInfo, RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from align import hub
from align.errors import Problem, RecipeError, StageFailed
from align.publishing import places
from align.publishing.patience import AGAIN, PAUSES, WRITE, heard, patiently

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")

LOADED = (
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "adapter_model.bin"),
    *("pytorch_model.bin.index.json", "consolidated*.pth", "consolidated*.pt", "params.json"),
    *("config.json", "adapter_config.json", "generation_config.json", "quant*_config.json"),
    *("*processor_config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tekken.json", "*.model", "*.tiktoken"),
    *("chat_template.json", "*.jinja"),
    *(f"{what}_*.py" for what in ("configuration", "modeling", "tokenization", "processing")),
)
"""What transformers, PEFT and vLLM load from a model's own folder, by their names for it."""

FOLDERS = (".eval_results/", "additional_chat_templates/")
"""Results that the hub shows with a model, and templates beside its first."""

SILENCE = 300.0
"""Seconds without a byte after which a connection counts as lost; the client waits for ever."""


@dataclass(frozen=True)
class Access:
    """Who pushes, and what is there."""

    user: str
    exists: bool
    private: bool
    """Whether the repository is private, or will be."""


@dataclass(frozen=True)
class Pushed:
    """Where it lies now."""

    url: str
    commit: str

    tagged: str | None = None
    """The commit of its tag: an earlier one where that holds the same."""


@dataclass(frozen=True)
class Sent:
    """A file as the hub names its content: large files by sha256, others as git does."""

    file: Path
    size: int
    sha256: str
    git: str


def check(
    repo: str,
    *,
    branch: str,
    private: bool,
    pull_request: bool,
    ours: bool,
    say: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> Access:
    """Whether a push can succeed, asked before any work.

    Args:
        branch: what it would go to.
        private: whether the push is.
        ours: whether this branch was pushed to before, from here.
        say: told why and how long it waits.

    Raises:
        RecipeError: there is no token, it may not write there, the repository is public and should
            not be, it holds somebody else's weights, the hub cannot be reached …; with the remedy.
    """

    def once() -> Access:
        api = HfApi()
        access = _access(api, repo, private, pull_request)
        if access.exists and not pull_request and not ours:
            _spare(api, repo, branch)
        return access

    try:
        return patiently(once, repo, say, PAUSES[:2], wait)
    except StageFailed as failure:
        raise _refused(repo, str(failure)) from None
    except (KeyError, TypeError) as error:  # JSON, and none of a hub's answers
        raise _refused(repo, "{}. {}".format(*hub.reason(error))) from None


def _spare(api: HfApi, repo: str, branch: str) -> None:
    """Refuse a branch with weights that would go and that no push of ours made, by its card's tag.

    A branch that does not exist yet takes nothing away, nor does one that is where main is: a push
    that was cut off may have made it. All weights of a push have names that count as loaded: what
    is not loaded is neither removed nor written over.
    """
    try:
        info = api.model_info(repo, revision=branch)
    except RevisionNotFoundError:
        return
    names = [file.rfilename for file in info.siblings or ()]
    weights = [name for name in names if name.endswith(WEIGHTS) and _loaded(name)]
    if not weights or places.TAG in (info.tags or ()):
        return
    if branch == "main" or info.sha != api.model_info(repo).sha:
        fact = f"It holds {weights[0]}, which no push from here made and this one would replace."
        raise _refused(repo, f"{fact} Push to another name, or to a new branch (--branch NAME).")


def _access(api: HfApi, repo: str, private: bool, pull_request: bool) -> Access:
    account = api.whoami()
    user, owner = account["name"], repo.partition("/")[0]
    if "/" not in repo:
        raise _refused(repo, f'This name has no owner. Yours is "{user}/{repo}".')
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise _refused(repo, f"The token of {user} may only read. {WRITE}")
    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        info = None
    if info is not None:
        return _existing(api, repo, info, user, private, pull_request)
    if pull_request:
        fact = f"There is no such model, or {user} may not see it."
        raise _refused(repo, f"{fact} A pull request needs one: push without --pull-request.")
    owners = [user, *(organization["name"] for organization in account.get("orgs", ()))]
    if owner not in owners:
        fact = f"The token is that of {user}, who has no part in {owner}."
        raise _refused(repo, f"{fact} Push to one of: {', '.join(owners)}.")
    return Access(user, False, private)


def _existing(
    api: HfApi, repo: str, info: ModelInfo, user: str, private: bool, pull_request: bool
) -> Access:
    if info.disabled:
        raise _refused(repo, "The hub has disabled this model. Push to another name.")
    if private and not info.private:
        fact = "This model is public, and a push is private unless told."
        raise _refused(repo, f"{fact} Push with --public, or to another name.")
    if not pull_request:
        try:
            api.auth_check(repo, write=True)
        except HfHubHTTPError as error:
            missing = isinstance(error, RepositoryNotFoundError)
            if error.response.status_code == 404 and not missing:
                return Access(user, True, bool(info.private))  # a hub that cannot be asked this
            if error.response.status_code not in (401, 403, 404):
                raise
            fact = f"{user} may not write to this model."
            raise _refused(repo, f"{fact} Open a pull request (--pull-request). {WRITE}") from None
    return Access(user, True, bool(info.private))


def look(
    folder: Path,
    repo: str,
    tag: str,
    *,
    later: Sequence[str],
    say: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Refuse a tag as `upload` does, before anything else is sent.

    Args:
        later: files that are not as they will be.
        say: told why and how long it waits.

    Raises:
        StageFailed: the tag is there, of another state.
    """
    target = _Target(HfApi(), repo, "main", tag, False, True, "", _sent(folder))

    def once() -> None:
        with contextlib.suppress(RepositoryNotFoundError):
            target.tagged(target.api.list_repo_refs(repo), later)

    patiently(once, repo, say, PAUSES[:2], wait)


def upload(
    folder: Path,
    repo: str,
    *,
    branch: str | None,
    tag: str | None,
    pull_request: bool,
    private: bool,
    message: str,
    say: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Make a branch (main) of a model repository, or a new pull request, hold a folder.

    Files that would be loaded beside the folder's are removed in the same commit (an earlier push
    of another kind), others stay, and what is replaced is said. Where the same is there already,
    nothing is committed. A pull request that is open, has this title and holds the folder is not
    opened again.

    Args:
        folder: every file in it is sent.
        tag: is set on the commit when it has been read back.
        private: how a repository is made that does not exist yet.
        message: title of the commit and of the pull request.
        say: told what happens, one line at a time.
        wait: how pauses between tries are waited for.

    Raises:
        StageFailed: it did not succeed in the end; with the remedy. The branch is as it was.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()
    sent = _sent(folder)
    size = sum(file.size for file in sent.values())
    say(f"sending {len(sent)} files, {size / 1e6:,.1f} MB, to {repo}")
    target = _Target(HfApi(), repo, branch or "main", tag, pull_request, private, message, sent)
    with heard(say):
        pushed = patiently(lambda: target.push(say), repo, say, PAUSES, wait, AGAIN)
    say(f"read back: {len(sent)} files at {pushed.commit[:7]}")
    return pushed


@dataclass
class _Target:
    """One push: what goes where."""

    api: HfApi
    repo: str
    branch: str
    tag: str | None
    pull_request: bool
    private: bool
    message: str
    sent: dict[str, Sent]

    def push(self, say: Callable[[str], None]) -> Pushed:
        """One try, which goes on from whatever is there."""
        get_session().timeout = SILENCE
        if not self.pull_request:
            self.create()
        elif made := self.opened():
            return made
        refs = self.api.list_repo_refs(self.repo)
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        tagged = self.tagged(refs)
        if self.branch not in heads:
            self.api.create_branch(self.repo, branch=self.branch, exist_ok=True)
            heads[self.branch] = heads["main"]
        head = heads[self.branch]
        _, changed, stale = self.differences(head)
        for path in stale:
            say(f"removing {path}, which would be loaded with what is pushed")
        if changed:
            say(f"replacing {', '.join(changed)}; commit {head[:7]} keeps what was there")
        made = self.commit(head, stale)
        if wrong := [path for paths in self.differences(made.commit) for path in paths]:
            fact = f"not what was sent: {', '.join(wrong[:3])}"
            raise StageFailed(f"{self.repo} at {made.commit[:7]}: {fact}. Push again.")
        if self.tag and tagged is None:
            self.api.create_tag(self.repo, tag=self.tag, revision=made.commit)
        return replace(made, tagged=tagged or made.commit) if self.tag else made

    def tagged(self, refs: GitRefs, later: Sequence[str] = ()) -> str | None:
        """The commit of the tag; one of another state, but for files of later, is refused."""
        found = {ref.name: ref.target_commit for ref in refs.tags}.get(self.tag or "")
        other = self.differences(found) if found else ()
        if {path for paths in other for path in paths}.difference(later):
            fact = f'There is a tag "{self.tag}" already, of another state of this model.'
            raise StageFailed(f"{self.repo}: {fact} Choose another one.")
        return found

    def create(self) -> None:
        """The repository, where there is none."""
        try:
            self.api.model_info(self.repo)
        except RepositoryNotFoundError:
            self.api.create_repo(self.repo, private=self.private, exist_ok=True)

    def commit(self, head: str, stale: Sequence[str]) -> Pushed:
        """Everything in one commit; where nothing has changed, the client answers with the head."""
        additions = []
        for path, file in self.sent.items():
            additions.append(CommitOperationAdd(path, str(file.file)))
            additions[-1].upload_info.sha256 = bytes.fromhex(file.sha256)
        made = self.api.create_commit(
            self.repo,
            [*additions, *(CommitOperationDelete(path) for path in stale)],
            commit_message=self.message,
            revision=None if self.pull_request else self.branch,
            create_pr=self.pull_request,
            parent_commit=head,
        )
        page = f"{self.api.endpoint}/{self.repo}"
        at = self.tag or (self.branch if self.branch != "main" else None)
        return Pushed(made.pr_url or (f"{page}/tree/{at}" if at else page), made.oid)

    def opened(self) -> Pushed | None:
        """The pull request that an earlier try has opened."""
        for found in self.api.get_repo_discussions(
            self.repo, discussion_type="pull_request", discussion_status="open"
        ):
            if found.title == self.message and found.git_reference is not None:
                sha = self.api.model_info(self.repo, revision=found.git_reference).sha
                if sha is not None and not any(self.differences(sha)):
                    return Pushed(found.url, sha)
        return None

    def differences(self, revision: str) -> tuple[list[str], list[str], list[str]]:
        """Files that are missing there, those that are other there, and what is to be removed."""
        listed = self.api.list_repo_tree(self.repo, revision=revision, recursive=True)
        there = {file.path: file for file in listed if isinstance(file, RepoFile)}
        changed = [
            path
            for path, file in self.sent.items()
            if path in there and _oid(there[path]) not in (file.sha256, file.git)
        ]
        missing = [path for path in self.sent if path not in there]
        return missing, changed, [path for path in there if path not in self.sent and _loaded(path)]


def _oid(file: RepoFile) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _loaded(path: str) -> bool:
    """Whether a file of a repository is part of a model, or one of its results."""
    top = "/" not in path
    return path.startswith(FOLDERS) or (top and any(fnmatchcase(path, name) for name in LOADED))


def _sent(folder: Path) -> dict[str, Sent]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _read(path) for path in files}


def _read(path: Path) -> Sent:
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            sha256.update(part)
            git.update(part)
    return Sent(path, size, sha256.hexdigest(), git.hexdigest())


def _refused(repo: str, message: str) -> RecipeError:
    return RecipeError([Problem(repo, "", message.removeprefix(f"{repo}: "))])
