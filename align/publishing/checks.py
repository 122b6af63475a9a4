"""What is checked before a model is pushed: everything, and what is wrong is said all at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from align import gates, hub, named, store
from align.adapters import unfoldable
from align.artifacts import Model, read_json
from align.errors import Problem, RecipeError, StageFailed
from align.publishing import folder, licences, places
from align.publishing.places import Place
from align.records import external
from align.reporting.wording import gate_sentence
from align.spec import Base, describe, is_adapter

_REPO = re.compile(
    r"(?!.*(?:--|\.\.|\.git\Z))[A-Za-z0-9](?:[\w.-]{,94}\w)?/\w(?:[\w.-]{,94}\w)?", re.ASCII
)
"""What huggingface_hub takes for OWNER/NAME."""

_REF = re.compile(
    r"(?!-|.*(?:/\.|\.\.|//|@\{|\.lock(?:/|\Z)|[./]\Z))[^\x00-\x20\x7f~^:?*\[\\./]"
    r"[^\x00-\x20\x7f~^:?*\[\\]*"
)
"""What git takes for the name of a branch or tag."""


@dataclass(frozen=True)
class Wish:
    """What `align push` was asked for besides the model and the repository."""

    merged: bool = False
    with_base: str | None = None
    branch: str | None = None
    tag: str | None = None
    pull_request: bool = False
    public: bool = False
    dry_run: bool = False
    even_failed: bool = False
    license: str | None = None


@dataclass(frozen=True)
class Parcel:
    """A model on its way to a repository."""

    model: Model
    repo: str
    runs: Path
    """Its store."""

    base: Place | None
    """Where everyone finds the base of an adapter."""

    merged: bool
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What it is called beside the artifacts."""
        return places.key(self.model, self.runs)

    @property
    def folder(self) -> Path:
        """What is pushed."""
        return self.runs / places.PUSHES / self.key


def checked(
    model: Model, repo: str, wish: Wish, runs: Path, say: Callable[[str], None]
) -> list[Parcel]:
    """What is pushed, the base first.

    Raises:
        RecipeError: every reason why it cannot be.
    """
    home = model.path.parent if is_made(model) else runs
    problems = [*_names(repo, wish), *_damages(model)]
    parcels = [Parcel(model, repo, home, None, wish.merged, _judged(model, home, wish, problems))]
    try:
        spec = describe(model)
        if spec.base.path == str(model.path) and not model.path.is_dir():
            problems.append(Problem(repo, "", f"{model.path} is on the hub already."))
        elif spec.adapter is None:
            folder.weights(Path(spec.base.path))
            problems += _whole(model, wish)
        elif not wish.merged:
            parcels = _with_base(parcels[0], spec.base, wish, problems)
        elif said := unfoldable(model):
            problems.append(Problem(model.name, "", said))
    except StageFailed as failure:
        problems.append(Problem(model.name, "", str(failure)))
    if not problems and not wish.dry_run:
        parcels = _reached(parcels, wish, problems, say)
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return parcels


def _names(repo: str, wish: Wish) -> Iterator[Problem]:
    """What is wrong with the words of the command."""
    for name in filter(None, (repo, wish.with_base)):
        if not _REPO.fullmatch(name):
            fact = "A repository is OWNER/NAME, each of up to 96 letters, digits, '-', '_' and '.'"
            message = f"{fact}; no '-' or '.' first or last, no '--' or '..', no '.git' at the end."
            yield Problem(name, "", message)
    for option, ref in (("--branch", wish.branch), ("--tag", wish.tag)):
        if ref is not None and (ref == "@" or not _REF.fullmatch(ref)):
            message = f'git takes no {option[2:]} "{ref}". Letters, digits, "-", "_" and "." do.'
            yield Problem(option, "", message)
    if wish.with_base == repo:
        yield Problem("--with-base", "", "The base needs a repository of its own.")
    if wish.with_base and wish.merged:
        message = "A merged model has its base in it: leave out one of --with-base and --merged."
        yield Problem("--with-base", "", message)
    if wish.pull_request and (wish.with_base or wish.tag or wish.branch):
        message = "A pull request has no branch, tag or base of its own: leave them out."
        yield Problem("--pull-request", "", message)


def _damages(model: Model) -> Iterator[Problem]:
    """Files that are not what stages wrote, or not yet."""
    if model.path.name.endswith(store.PARTIAL):
        message = "It is not made yet. Run its recipe (`align run`) to the end of this stage."
        yield Problem(model.name, "", message)
    for path in store.used([model.path]) if is_made(model) else ():
        try:
            store.verify(path)
        except StageFailed as failure:
            yield Problem(model.name, "", str(failure))


def _judged(model: Model, home: Path, wish: Wish, problems: list[Problem]) -> tuple[str, ...]:
    """What the card says first of a model that failed a gate and is pushed all the same."""
    failed = tuple(_failed(model, home))
    if not wish.even_failed:
        remedy = "Push another model, or this one with --even-failed: its card then says so."
        problems += [Problem(model.name, "", f"{said} {remedy}") for said in failed]
    return failed


def _failed(model: Model, home: Path) -> Iterator[str]:
    """What gates said against the model, or against the one that was folded into it."""
    if not is_made(model):
        return
    if stopped := store.manifest(model.path).get("stopped"):
        yield f"It failed its own gate: {stopped}"
    for path in filter(None, (model.path, unmerged(model))):
        said = [gate for entry in gates.verdicts(home, path.name) for gate in entry["gates"]]
        for gate in said:
            if gate["verdict"] == "failed":
                yield f"It failed a gate. {gate_sentence(gate).partition(': ')[2]}"


def _whole(model: Model, wish: Wish) -> Iterator[Problem]:
    """Words that are for adapters."""
    for word, asked in (("--merged", wish.merged), ("--with-base", wish.with_base)):
        if asked:
            message = f"{model.name} has all its weights and no adapter: leave {word} out."
            yield Problem(word, "", message)


def _with_base(parcel: Parcel, base: Base, wish: Wish, problems: list[Problem]) -> list[Parcel]:
    """The adapter with the place of its base, after its base where that is pushed, too."""
    path, name = Path(base.path), parcel.model.name
    try:
        place = places.of(base)
    except LookupError as error:
        problems.append(Problem(base.path, "", f"The base cannot be named: {error}."))
        return [parcel]
    if place is not None and wish.with_base:
        message = f"The base is {place.repo} on the hub already: leave --with-base out."
        problems.append(Problem("--with-base", "", message))
    if place is None and wish.with_base is None:
        place = places.pushed(path, parcel.runs)
    if place is not None:
        home = hub.snapshot("model", place.repo, place.commit)
        if home and is_adapter(home):
            message = f"Its base, {place.repo}, is an adapter itself. Merge that first."
            problems.append(Problem(name, "", message))
        return [replace(parcel, base=place)]
    if wish.with_base is None:
        fact = f"Its base, {path}, is on this machine alone: nobody could load the adapter."
        remedy = "Push the base, too (--with-base OWNER/NAME), or both as one model (--merged)."
        problems.append(Problem(name, "", f"{fact} {remedy}"))
        return [parcel]
    under = _base(path)
    problems += _damages(under)
    home = under.path.parent if is_made(under) else parcel.runs
    judged = _judged(under, home, wish, problems)
    first = Parcel(under, wish.with_base, home, None, False, judged)
    private = () if wish.public else (licences.PRIVATE.format(wish.with_base),)
    notes = (*parcel.notes, *private)
    return [first, replace(parcel, base=Place(wish.with_base, None), notes=notes)]


def _base(path: Path) -> Model:
    """The base of an adapter as a model of its own."""
    if (path.parent / "model.json").is_file():
        made = Model(path.parent)
        made.name = named.called(str(path.parent))
        return made
    found = external(Base(path=str(path)), Model)
    found.name = path.name
    return found


def _reached(
    parcels: list[Parcel], wish: Wish, problems: list[Problem], say: Callable[[str], None]
) -> list[Parcel]:
    """Ask the hub whether the push can succeed, and whether everyone can load the base."""
    from align.publishing import upload

    *bases, last = parcels
    told = []
    try:
        for parcel in parcels:
            branch = (wish.branch if parcel is last else None) or "main"
            there = upload.check(
                parcel.repo,
                branch=branch,
                private=not wish.public,
                pull_request=wish.pull_request,
                ours=(parcel.repo, branch) in places.branches(parcel.runs),
                say=say,
            )
            if not (wish.public and there.private):
                continue
            if parcel in bases:
                told.append(licences.PRIVATE.format(parcel.repo))
                continue
            message = "This model is private, and a push does not change that. Leave --public out."
            problems.append(Problem(parcel.repo, "", message))
        if last.base is not None and last.base.commit is not None:
            told += filter(None, [licences.access(last.base)])
    except RecipeError as error:
        problems += error.problems
    return [*bases, replace(last, notes=(*last.notes, *told))]


def unmerged(model: Model) -> Path | None:
    """The model that a `merge` stage folded into this one."""
    if not is_made(model):
        return None
    record = read_json(model.path / "stage.json")
    inputs = record["inputs"] if record["kind"] == "merge" else []
    return model.path.parent / inputs[0] if inputs else None


def is_made(model: Model) -> bool:
    """Whether it lies in a store."""
    return (model.path / store.MANIFEST).is_file()
