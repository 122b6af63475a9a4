"""`align push`: what is checked, the folder and its card, and then the hub.

Nothing leaves this machine before everything is checked, and what is wrong is said all at once.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from align import gates, hub, named, records, store
from align.artifacts import Model, read_json
from align.errors import Problem, RecipeError, StageFailed
from align.publishing import card, folder, licences, lineage, places, results
from align.publishing.places import Place
from align.records import external
from align.reporting.facts import size
from align.reporting.wording import gate_sentence
from align.spec import Base, describe, is_adapter

Say = Callable[[str], None]

_REPO = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[\w.-]*[\w]", re.ASCII)


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


def push(word: str, repo: str, wish: Wish, runs: Path, say: Say) -> None:
    """Push a model, and its base before it where that is asked for.

    Raises:
        RecipeError: it cannot be pushed; every reason that was found.
        StageFailed: the hub did not take it, or an adapter could not be merged.
    """
    model = named.model(word, runs)
    if (where := named.place(word, runs)) != word:
        say(f"{word}: the last model is {model.name}, {where}")
    parcels = _checked(model, repo, wish, runs)
    with store.lock(parcels[-1].runs, f"push.{parcels[-1].key}", f"{model.key} is being pushed"):
        try:
            _packed(parcels, wish, say)
            if wish.dry_run:
                for parcel in parcels:
                    _show(parcel, say)
            else:
                _send(parcels, wish, say)
        except OSError as error:
            if not store.is_full(error, parcels[-1].runs):
                raise
            raise StageFailed(store.full(parcels[-1].runs)) from None


# -- before anything is made ----------------------------------------------------------------------


def _checked(model: Model, repo: str, wish: Wish, runs: Path) -> list[Parcel]:
    """What is pushed, the base first.

    Raises:
        RecipeError: every reason why it cannot be.
    """
    home = model.path.parent if _made(model) else runs
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
    except StageFailed as failure:
        problems.append(Problem(model.name, "", str(failure)))
    if not problems and not wish.dry_run:
        parcels = [_reached(parcel, wish, problems) for parcel in parcels]
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return parcels


def _names(repo: str, wish: Wish) -> Iterator[Problem]:
    """What is wrong with the words of the command."""
    for name in filter(None, (repo, wish.with_base)):
        if not _REPO.fullmatch(name):
            message = "A repository is OWNER/NAME, of letters, digits, '-', '_' and '.'."
            yield Problem(name, "", message)
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
    for path in store.used([model.path]) if _made(model) else ():
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
    if not _made(model):
        return
    if stopped := store.manifest(model.path).get("stopped"):
        yield f"It failed its own gate: {stopped}"
    for path in filter(None, (model.path, _unmerged(model))):
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
    home = under.path.parent if _made(under) else parcel.runs
    judged = _judged(under, home, wish, problems)
    first = Parcel(under, wish.with_base, home, None, False, judged)
    return [first, replace(parcel, base=Place(wish.with_base, None))]


def _base(path: Path) -> Model:
    """The base of an adapter as a model of its own."""
    if (path.parent / "model.json").is_file():
        made = Model(path.parent)
        made.name = named.called(str(path.parent))
        return made
    found = external(Base(path=str(path)), Model)
    found.name = path.name
    return found


def _reached(parcel: Parcel, wish: Wish, problems: list[Problem]) -> Parcel:
    """Ask the hub whether the push can succeed, and whether everyone can load the base."""
    from align.publishing import upload

    try:
        private = not wish.public
        upload.check(parcel.repo, private=private, pull_request=wish.pull_request)
        if parcel.base is None or parcel.base.commit is None:
            return parcel
        note = licences.access(parcel.base)
        return replace(parcel, notes=(*parcel.notes, *([note] if note else [])))
    except RecipeError as error:
        problems += error.problems
        return parcel


# -- the folder -----------------------------------------------------------------------------------


def _packed(parcels: list[Parcel], wish: Wish, say: Say) -> None:
    """Write every parcel's folder and card, and look for what must not leave.

    Raises:
        RecipeError: something looks like a secret.
    """
    from align.publishing import secrets

    for parcel in parcels:
        _pack(parcel, wish, say)
    found = [
        Problem(parcel.repo, "", said)
        for parcel in parcels
        for said in secrets.find(parcel.folder, [parcel.runs])
    ]
    if found:
        raise RecipeError(found)


def _pack(parcel: Parcel, wish: Wish, say: Say) -> None:
    model, home = parcel.model, parcel.runs
    if parcel.merged:
        work = home / places.PUSHES / f"{parcel.key}.merged"
        model = folder.merged(model, work, home / ".cache", say)
    folder.build(model, parcel.base, parcel.folder)
    if parcel.merged:
        shutil.rmtree(model.path)
    history = lineage.of(parcel.model.path)
    origin = parcel.base or _origin(parcel, history)
    line = [step.path.name for step in history.line] + ([origin.repo] if origin else [])
    unmerged = _unmerged(parcel.model)
    about = card.Subject(
        model=parcel.model,
        name=parcel.model.name,
        repo=parcel.repo,
        base=origin,
        folder=parcel.folder,
        lineage=history,
        measured=results.measured(parcel.model.path, parcel.model.name, home, line, unmerged),
        merged=parcel.merged,
        license=wish.license or (licences.of(origin) if origin else None),
        notes=parcel.notes,
    )
    results.write(about.measured, about.name, parcel.folder)
    card.write(about)


def _origin(parcel: Parcel, history: lineage.Lineage) -> Place | None:
    """What all weights came from, where that is on the hub."""
    spec = describe(parcel.model)
    base = spec.base if spec.adapter else None
    if history.line:
        asked = history.line[0].record["settings"].get("model") or {}
        base = Base.model_validate(asked["model"]) if "model" in asked else None
    try:
        return None if base is None else places.of(base)
    except LookupError:
        return None


def _unmerged(model: Model) -> Path | None:
    """The model that a `merge` stage folded into this one."""
    if not _made(model):
        return None
    record = read_json(model.path / "stage.json")
    inputs = record["inputs"] if record["kind"] == "merge" else []
    return model.path.parent / inputs[0] if inputs else None


def _show(parcel: Parcel, say: Say) -> None:
    sizes = folder.sizes(parcel.folder)
    say(f"{parcel.repo} would hold {size(sum(sizes.values()))} in {parcel.folder}:")
    width = max(map(len, sizes))
    for name, count in sizes.items():
        say(f"  {name:{width}}  {size(count):>10}")
    say(f"Its card: {parcel.folder / 'README.md'}")


# -- the hub --------------------------------------------------------------------------------------


def _send(parcels: list[Parcel], wish: Wish, say: Say) -> None:
    from align.publishing import upload

    for parcel in parcels:
        last = parcel is parcels[-1]
        if parcel.base is not None and parcel.base.commit is None:  # it has just got one
            commit = places.pushes(parcels[0].runs, parcels[0].key)[-1]["commit"]
            parcel = replace(parcel, base=Place(parcel.base.repo, commit))
            _packed([parcel], wish, say)
        tag = None if wish.pull_request else (wish.tag if last else None) or _tag(parcel)
        pushed = upload.upload(
            parcel.folder,
            parcel.repo,
            branch=wish.branch if last else None,
            tag=tag,
            pull_request=wish.pull_request,
            private=not wish.public,
            message=f"{parcel.model.name} ({parcel.key})",
            say=say,
        )
        whole = not (parcel.folder / folder.CONFIG).is_file() and not parcel.merged
        where = {"repo": parcel.repo, "commit": pushed.commit, "url": pushed.url, "tag": tag}
        places.remember(parcel.runs, parcel.key, **where, whole=whole and not wish.pull_request)
        shutil.rmtree(parcel.folder)
        say(f"{pushed.url} at commit {pushed.commit}{f', tag {tag}' if tag else ''}")


def _tag(parcel: Parcel) -> str:
    """The tag of a push: the same for the same model with the same card, another for another."""
    words = [parcel.model.name]
    if _made(parcel.model):
        words.insert(0, str(read_json(parcel.model.path / "stage.json")["recipe"]))
    text = (parcel.folder / "README.md").read_text(encoding="utf-8")
    words.append(records.digest([parcel.key, text])[:8])
    return re.sub(r"[^\w.-]+", "-", "-".join(words))


def _made(model: Model) -> bool:
    """Whether it lies in a store."""
    return (model.path / store.MANIFEST).is_file()
