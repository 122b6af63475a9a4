"""A small model hub on loopback for the real `huggingface_hub` client, with faults to order.

Repositories of models and data sets, commits that are snapshots, LFS objects in one or several
parts, branches, tags and pull requests, private and gated repositories, tokens that may write or
only read, a quota. Everything it is sent lies as files under `root`. It does not speak Xet, which
the client has to be told (HF_HUB_DISABLE_XET=1).

Sources: the client's own requests (huggingface_hub 2.4), and Git LFS's batch API.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

BAD_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|^[/.-]|^@$|[/.]$|\.lock(/|$)|^$")
"""What git allows in no name of a branch or tag (git-check-ref-format)."""

LFS = (".safetensors", ".bin", ".pt", ".gguf", ".parquet")


@dataclass(frozen=True)
class Account:
    """Whose a token is, and what it may do."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()


WRITE, READ, OTHER = "hf_" + "Wr1te" * 7, "hf_" + "Re4dd" * 7, "hf_" + "0therr" * 6
TOKENS = {
    WRITE: Account("me", organizations=("lab",)),
    READ: Account("me", role="read"),
    OTHER: Account("other"),
}


@dataclass(frozen=True)
class Entry:
    """One file of a commit; its bytes are the object of that name."""

    sha256: str
    size: int
    git: str
    lfs: bool

    @property
    def oid(self) -> str:
        return self.sha256 if self.lfs else self.git


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: dict[str, Entry]


@dataclass
class Repository:
    private: bool
    gated: bool = False
    disabled: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    """What its card's head says."""

    refs: dict[str, Commit] = field(default_factory=dict)
    """`refs/heads/main`, `refs/tags/v1`, `refs/pr/1`."""

    commits: list[Commit] = field(default_factory=list)
    pulls: list[tuple[str, str]] = field(default_factory=list)
    """(title, author); the number is the place, from 1."""

    def at(self, revision: str) -> Commit:
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.refs[name]
        for commit in self.commits:
            if commit.sha == revision:
                return commit
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Refused(Exception):
    """An answer that is an error, with the hub's own code where it has one."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **headers}
        if code:
            self.headers["X-Error-Code"] = code


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Hub:
    """What the hub holds and does; the tests look into it and turn its switches."""

    root: Path
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """`models/me/tiny`, `datasets/me/rows`."""

    log: list[Asked] = field(default_factory=list)
    """The requests, as they came."""

    faults: dict[int, str] = field(default_factory=dict)
    """What happens to the request of that place in the log. `drop`: the connection closes before
    it is read; `cut`: in the middle of its body; `lost`: after it was done, without an answer;
    `half`: in the middle of the answer; `stall`: no answer before the end; a number: that status,
    as in `429`."""

    before: Callable[[Asked], None] | None = None
    """Is called with every request before it is answered."""

    quota: int | None = None
    """Bytes of LFS objects that fit."""

    part: int | None = None
    """Bytes of a part, where an object is sent in several."""

    accounts: dict[str, Account] = field(default_factory=lambda: dict(TOKENS))
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a model at a revision, but `.gitattributes`."""
        commit = self.repositories[f"models/{name}"].at(revision)
        return {
            path: self.object(entry.sha256).read_bytes()
            for path, entry in sorted(commit.files.items())
            if path != ".gitattributes"
        }

    def commits(self, name: str, revision: str = "main") -> list[str]:
        """The titles of a revision's commits, the first one first."""
        repository = self.repositories[f"models/{name}"]
        titles, commit = [], repository.at(revision)
        while commit.parent:
            titles.append(commit.title)
            commit = repository.at(commit.parent)
        return [*reversed([*titles, commit.title])]

    def create(self, name: str, private: bool = True) -> Repository:
        """A repository with its first commit, as `models/me/tiny`."""
        repository = self.repositories[name] = Repository(private)
        attributes = self.keep(b"*.safetensors filter=lfs\n")
        self.commit(repository, "refs/heads/main", "initial commit", {".gitattributes": attributes})
        return repository

    def commit(
        self, repository: Repository, ref: str, title: str, files: dict[str, Entry]
    ) -> Commit:
        """A commit whose files are these and no others."""
        parent = repository.refs[ref].sha if ref in repository.refs else None
        told = {path: entry.sha256 for path, entry in files.items()}
        text = json.dumps({"parent": parent, "title": title, "files": told}, indent=1)
        sha = hashlib.sha1(f"{len(repository.commits)} {text}".encode()).hexdigest()
        commit = Commit(sha, parent, title, files)
        (self.root / f"commit-{sha}.json").write_text(text, encoding="utf-8")
        repository.commits.append(commit)
        repository.refs[ref] = commit
        return commit

    def keep(self, data: bytes, lfs: bool = False) -> Entry:
        """Store bytes as an object."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.object(sha256).write_bytes(data)
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return Entry(sha256, len(data), git, lfs)

    def object(self, sha256: str) -> Path:
        return self.root / sha256

    def asked(self, pattern: str) -> list[Asked]:
        """The requests whose `METHOD /path` has that pattern."""
        return [asked for asked in self.log if re.search(pattern, f"{asked.method} {asked.path}")]

    def account(self, asked: Asked) -> Account | None:
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.accounts:
            message = "Invalid credentials in Authorization header"
            raise Refused(401, message)
        return self.accounts.get(token)

    def open(self, asked: Asked, name: str, write: bool = False) -> Repository:
        """A repository that this request may read, or write."""
        account, repository = self.account(asked), self.repositories.get(name)
        owner = name.split("/")[1]
        ours = account is not None and owner in (account.name, *account.organizations)
        if repository is None or (repository.private and not ours):
            raise Refused(404 if account else 401, "Repository not found", "RepoNotFound")
        if repository.gated and not ours and re.search("/resolve/|/auth-check", asked.path):
            message = f"Access to {name} is restricted. You must have access to it."
            raise Refused(403 if account else 401, message, "GatedRepo")
        if write and not (ours and account and account.role == "write"):
            raise Refused(403, "You don't have the rights to write to this repository.")
        return repository

    def answer(self, asked: Asked) -> Reply:
        for method, pattern, respond in ROUTES:
            if method == asked.method and (found := re.fullmatch(pattern, asked.path)):
                words = {key: unquote(word) for key, word in found.groupdict("").items()}
                made = respond(self, asked, **words)
                if isinstance(made, tuple):
                    return made
                return 200, {"Content-Type": "application/json"}, json.dumps(made).encode()
        raise Refused(404, f"There is no {asked.method} {asked.path}")


def whoami(hub: Hub, asked: Asked) -> Any:
    account = hub.account(asked)
    if account is None:
        raise Refused(401, "Invalid username or password.")
    return {
        "type": "user",
        "name": account.name,
        "orgs": [{"name": name, "roleInOrg": "write"} for name in account.organizations],
        "auth": {"accessToken": {"displayName": "test", "role": account.role}},
    }


def create(hub: Hub, asked: Asked) -> Any:
    told, account = asked.json(), hub.account(asked)
    owner = told["organization"] or (account.name if account else "")
    name = f"{told.get('type') or 'model'}s/{owner}/{told['name']}"
    url = f"{hub.url}/{name.removeprefix('models/')}"
    if account is None or owner not in (account.name, *account.organizations):
        raise Refused(403, f'You don\'t have the rights to create a model under "{owner}"')
    if name in hub.repositories:
        told = json.dumps({"error": "You already created this model repo", "url": url})
        return 409, {"Content-Type": "application/json"}, told.encode()
    if account.role != "write":
        raise Refused(403, f'You don\'t have the rights to create a model under "{owner}"')
    hub.create(name, private=told.get("visibility") == "private")
    return {"url": url}


def validate(hub: Hub, asked: Asked) -> Any:
    """The card's head: YAML, whose base model is one that the hub could have."""
    found = re.match(r"---\n(.*?\n)---\n", asked.json()["content"], re.DOTALL)
    head = yaml.safe_load(found[1]) if found else {}
    bases = head.get("base_model") or []
    wrong = [
        f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
        for base in ([bases] if isinstance(bases, str) else bases)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base)
    ]
    told = {"errors": [{"message": message} for message in wrong], "warnings": []}
    return (400 if wrong else 200), {"Content-Type": "application/json"}, json.dumps(told).encode()


def card_tags(hub: Hub, commit: Commit) -> list[str]:
    """The tags in the head of a commit's card."""
    entry = commit.files.get("README.md")
    text = hub.object(entry.sha256).read_text(encoding="utf-8") if entry else ""
    found = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    return (yaml.safe_load(found[1]) or {}).get("tags", []) if found else []


def info(hub: Hub, asked: Asked, name: str, revision: str = "main") -> Any:
    repository = hub.open(asked, name)
    commit = repository.at(revision or "main")
    return {
        "id": name.partition("/")[2],
        "sha": commit.sha,
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "disabled": repository.disabled,
        "cardData": repository.card,
        "downloads": 0,
        "likes": 0,
        "tags": card_tags(hub, commit),
        "siblings": [{"rfilename": path} for path in commit.files],
    }


def check(hub: Hub, asked: Asked, name: str, write: str) -> Any:
    hub.open(asked, name, write=bool(write))
    return {}


def refs(hub: Hub, asked: Asked, name: str) -> Any:
    repository = hub.open(asked, name)

    def under(start: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(start), "ref": ref, "targetCommit": commit.sha}
            for ref, commit in repository.refs.items()
            if ref.startswith(start)
        ]

    pulls = under("refs/pr/") if "include_prs" in asked.query else []
    heads, tags = under("refs/heads/"), under("refs/tags/")
    return {"branches": heads, "converts": [], "tags": tags, "pullRequests": pulls}


def discussions(hub: Hub, asked: Asked, name: str) -> Any:
    repository = hub.open(asked, name)
    found = [
        {
            "title": title,
            "num": number,
            "author": {"name": author},
            "createdAt": "2026-01-01T00:00:00.000Z",
            "status": "open",
            "repo": {"name": name.partition("/")[2], "type": "model"},
            "isPullRequest": True,
        }
        for number, (title, author) in enumerate(repository.pulls, 1)
        if asked.query.get("author", [author]) == [author]
    ]
    return {"discussions": found, "count": len(found), "start": 0}


def shown(path: str, entry: Entry) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.git}
    if entry.lfs:
        told["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}
    return told


def tree(hub: Hub, asked: Asked, name: str, revision: str, folder: str) -> Any:
    files = hub.open(asked, name).at(revision).files
    under = f"{folder}/" if folder else ""
    found = {path: entry for path, entry in files.items() if path.startswith(under)}
    if folder and not found:
        raise Refused(404, f"{folder} does not exist", "EntryNotFound")
    if asked.query.get("recursive", ["false"])[0].lower() == "true":
        return [shown(path, entry) for path, entry in found.items()]
    tops = {path: path.removeprefix(under).partition("/") for path in found}
    folders = {under + top for top, slash, _ in tops.values() if slash}
    listed = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
    return listed + [shown(path, found[path]) for path, top in tops.items() if not top[1]]


def paths(hub: Hub, asked: Asked, name: str, revision: str) -> Any:
    files = hub.open(asked, name).at(revision).files
    wanted = parse_qs(asked.body.decode())["paths"]
    return [shown(path, files[path]) for path in wanted if path in files]


def resolve(hub: Hub, asked: Asked, name: str, revision: str, path: str) -> Any:
    commit = hub.open(asked, name).at(revision)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if path not in commit.files:
        raise Refused(404, f"{path} does not exist", "EntryNotFound", **headers)
    entry = commit.files[path]
    headers["ETag"] = f'"{entry.oid}"'
    if entry.lfs:
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry.size)}
        storage = hub.url.replace("127.0.0.1", "localhost")  # another host, which gets no token
        return 302, headers | {"Location": f"{storage}/cdn/{entry.sha256}?signature=1"}, b""
    return ranged(hub.object(entry.sha256).read_bytes(), asked, headers)


def cdn(hub: Hub, asked: Asked, oid: str) -> Any:
    """Where large files really come from: without a token, by a signed address."""
    if "authorization" in asked.headers:
        raise Refused(400, "A token was sent to the storage.")
    return ranged(hub.object(oid).read_bytes(), asked, {"ETag": f'"{oid}"'})


def ranged(data: bytes, asked: Asked, headers: dict[str, str]) -> Reply:
    if found := re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", "")):
        start, stop = int(found[1]), int(found[2] or len(data) - 1) + 1
        told = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        return 206, told, data[start:stop]
    return 200, headers, data


def preupload(hub: Hub, asked: Asked, name: str, revision: str) -> Any:
    repository = hub.open(asked, name, write="create_pr" not in asked.query)
    files = repository.at(revision).files
    return {
        "files": [
            {
                "path": told["path"],
                "uploadMode": "lfs" if told["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
                "oid": files[told["path"]].oid if told["path"] in files else None,
            }
            for told in asked.json()["files"]
        ]
    }


def batch(hub: Hub, asked: Asked, name: str) -> Any:
    """How each object is to be sent; not at all where it is here."""
    hub.open(asked, name)
    missing = [told for told in asked.json()["objects"] if not hub.object(told["oid"]).exists()]
    if hub.quota is not None and sum(told["size"] for told in missing) > hub.quota:
        raise Refused(403, "Private repository storage limit reached, please upgrade your plan.")
    objects = []
    for told in asked.json()["objects"]:
        oid, size = told["oid"], told["size"]
        objects.append({"oid": oid, "size": size})
        if told not in missing:
            continue
        upload: dict[str, Any] = {"href": f"{hub.url}/lfs/{oid}?X-Amz-Signature=5ecret"}
        if hub.part and size > hub.part:
            urls = {f"{1 + i}": f"{hub.url}/lfs/{oid}/{i}?X-Amz-Signature=5ecret"
                    for i in range(-(-size // hub.part))}  # fmt: skip
            upload["header"] = {"chunk_size": str(hub.part), **urls}
        verify = {"href": f"{hub.url}/{name.removeprefix('models/')}.git/info/lfs/verify"}
        objects[-1]["actions"] = {"upload": upload, "verify": verify}
    return {"transfer": "basic", "objects": objects}


def put(hub: Hub, asked: Asked, oid: str, part: str = "") -> Any:
    if not part and hashlib.sha256(asked.body).hexdigest() != oid:
        raise Refused(400, "BadDigest")
    (hub.root / (f"{oid}.{part}" if part else oid)).write_bytes(asked.body)
    return 200, {"ETag": f'"{hashlib.md5(asked.body).hexdigest()}"'}, b""


def complete(hub: Hub, asked: Asked, oid: str) -> Any:
    parts = asked.json()["parts"]
    data = b"".join((hub.root / f"{oid}.{i}").read_bytes() for i in range(len(parts)))
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refused(400, "BadDigest")
    hub.object(oid).write_bytes(data)
    return {}


def verify(hub: Hub, asked: Asked, name: str) -> Any:
    told = asked.json()
    file = hub.object(told["oid"])
    if not file.exists() or file.stat().st_size != told["size"]:
        raise Refused(404, "The object is not here.")
    return {}


def commit(hub: Hub, asked: Asked, name: str, revision: str) -> Any:
    pull = "create_pr" in asked.query
    repository = hub.open(asked, name, write=not pull)
    head, *lines = [json.loads(line) for line in asked.body.splitlines()]
    old = repository.at(revision)
    if head["value"].get("parentCommit", old.sha) != old.sha:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(old.files)
    for line in lines:
        told = line["value"]
        if line["key"] == "file":
            files[told["path"]] = hub.keep(base64.b64decode(told["content"]))
        elif line["key"] == "deletedFile":
            del files[told["path"]]
        elif not hub.object(told["oid"]).exists():
            raise Refused(400, "LFS pointer pointed to a file that does not exist")
        else:
            files[told["path"]] = hub.keep(hub.object(told["oid"]).read_bytes(), lfs=True)
    ref = f"refs/heads/{revision}" if f"refs/heads/{revision}" in repository.refs else revision
    if pull:
        account = hub.account(asked)
        repository.pulls.append((head["value"]["summary"], account.name if account else ""))
        ref = f"refs/pr/{len(repository.pulls)}"
        repository.refs[ref] = old
    made = hub.commit(repository, ref, head["value"]["summary"], files)
    page = f"{hub.url}/{name.removeprefix('models/')}"
    told = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}"}
    if pull:
        told["pullRequestUrl"] = f"{page}/discussions/{len(repository.pulls)}"
    return told


def branch(hub: Hub, asked: Asked, name: str, ref: str) -> Any:
    repository = hub.open(asked, name, write=True)
    return named(repository, f"refs/heads/{ref}", asked.json().get("startingPoint", "main"))


def tag(hub: Hub, asked: Asked, name: str, revision: str) -> Any:
    repository = hub.open(asked, name, write=True)
    return named(repository, f"refs/tags/{asked.json()['tag']}", revision)


def named(repository: Repository, ref: str, revision: str) -> Any:
    if BAD_REF.search(ref.partition("/")[2].partition("/")[2]):
        raise Refused(400, f"Invalid reference name: {ref}")
    if ref in repository.refs:
        raise Refused(409, f"Reference {ref} exists already")
    repository.refs[ref] = repository.at(revision)
    return {}


NAME = r"/(?P<name>(models|datasets)/[^/]+/[^/]+)"
API = "/api" + NAME
ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate),
    ("GET", API, info),
    ("GET", API + "/revision/(?P<revision>[^/]+)", info),
    ("GET", API + "/auth-check(?P<write>/write)?", check),
    ("GET", API + "/refs", refs),
    ("GET", API + "/discussions", discussions),
    ("GET", API + "/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", tree),
    ("POST", API + "/paths-info/(?P<revision>[^/]+)", paths),
    ("POST", API + "/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", API + "/commit/(?P<revision>[^/]+)", commit),
    ("POST", API + "/branch/(?P<ref>[^/]+)", branch),
    ("POST", API + "/tag/(?P<revision>[^/]+)", tag),
    ("POST", NAME + r"\.git/info/lfs/objects/batch", batch),
    ("POST", NAME + r"\.git/info/lfs/verify", verify),
    ("PUT", r"/lfs/(?P<oid>\w+)", put),
    ("PUT", r"/lfs/(?P<oid>\w+)/(?P<part>\d+)", put),
    ("POST", r"/lfs/(?P<oid>\w+)", complete),
    ("GET", r"/cdn/(?P<oid>\w+)", cdn),
    ("GET", NAME + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
)


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: Any) -> None:
            """Nothing on stderr."""

        def one(self) -> None:
            url = urlsplit(self.path)
            headers = {key.lower(): value for key, value in self.headers.items()}
            method = "GET" if self.command == "HEAD" else self.command
            path = re.sub(r"^/(?=[^/]+/[^/]+(/resolve/|\.git/))", "/models/", url.path)
            asked = Asked(method, path, parse_qs(url.query), headers)
            with hub.lock:
                fault = hub.faults.get(len(hub.log), "")
                hub.log.append(asked)
            if fault == "drop":
                return self.hang_up()
            asked.body = self.body(half=fault == "cut")
            if fault == "cut":
                return self.hang_up()
            if fault == "stall":
                hub.ended.wait()
                return self.hang_up()
            status, told, body = self.reply(asked, fault)
            if fault == "lost":
                return self.hang_up()
            self.send_response(status)
            for key, value in (told | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if fault == "half" else body)
            if fault == "half":
                self.hang_up()

        do_GET = do_HEAD = do_POST = do_PUT = one

        def reply(self, asked: Asked, fault: str) -> Reply:
            try:
                if fault.isdigit():
                    raise Refused(int(fault), "Not now", **{"Retry-After": "3"})
                with hub.lock:
                    if hub.before:
                        hub.before(asked)
                    return hub.answer(asked)
            except Refused as refused:
                told = json.dumps({"error": str(refused)}).encode()
                return refused.status, {"Content-Type": "application/json"} | refused.headers, told

        def body(self, half: bool) -> bytes:
            if self.headers.get("Transfer-Encoding", "") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            length = int(self.headers.get("Content-Length", 0))
            return self.rfile.read(length // 2 if half else length)

        def hang_up(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """A hub with no repositories, whose state lies in an empty directory."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """The variables with which a new process uses this hub, logged in as "me"."""
    switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": WRITE, **switches}


def enter(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, whose client has read its variables by now, and its children use it."""
    from huggingface_hub import constants

    for name, value in environment(hub, home).items():
        monkeypatch.setenv(name, value)
    address = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    # huggingface_hub 2.4 sends large files by a keyword that httpx2 renames
    warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
