"""`align push`: what is checked, the folder and its card, and then the hub.

Nothing leaves this machine before everything is checked, and what is wrong is said all at once.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from align import named, records, store, talking
from align.artifacts import Model, read_json
from align.errors import Problem, RecipeError, StageFailed
from align.publishing import card, checks, folder, licences, lineage, places, results
from align.publishing.checks import Parcel, Wish
from align.publishing.places import Place
from align.records import external
from align.reporting.facts import size
from align.spec import Base, describe

Say = Callable[[str], None]


def push(word: str, repo: str, wish: Wish, runs: Path, say: Say) -> None:
    """Push a model, and its base before it where that is asked for.

    Raises:
        RecipeError: it cannot be pushed; every reason that was found.
        StageFailed: the hub did not take it, or an adapter could not be merged.
    """
    model = named.model(word, runs)
    if (where := named.place(word, runs)) != word:
        say(f"{word}: the last model is {model.name}, {where}")
    parcels = checks.checked(model, repo, wish, runs, say)
    with contextlib.ExitStack() as held:
        for parcel in parcels:  # the base, too: its folder is that of every adapter on it
            busy = f"{parcel.model.name} ({parcel.key}) is being pushed"
            held.enter_context(store.lock(parcel.runs, f"push.{parcel.key}", busy))
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
        talking.quiet()
        work = home / places.PUSHES / f"{parcel.key}.merged"
        model = folder.merged(model, work, home / ".cache", say)
    folder.build(model, parcel.base, parcel.folder)
    if parcel.merged:
        shutil.rmtree(model.path)
    history = lineage.of(parcel.model.path)
    origin = parcel.base or _origin(parcel, history)
    hubs = {place.repo for place in (origin, history.adapter) if place}
    line = [step.path.name for step in history.line] + sorted(hubs)
    unmerged = checks.unmerged(parcel.model)
    license = wish.license if parcel.repo != wish.with_base else None  # that one is not theirs
    terms = licences.of(origin, ask=not wish.dry_run) if origin and not license else {}
    about = card.Subject(
        model=parcel.model,
        name=parcel.model.name,
        repo=parcel.repo,
        base=origin,
        folder=parcel.folder,
        lineage=history,
        measured=results.measured(parcel.model.path, parcel.model.name, home, line, unmerged),
        merged=parcel.merged,
        terms={"license": license} if license else terms,
        notes=parcel.notes,
    )
    results.write(about.measured, about.name, parcel.folder, home)
    card.write(about)


def _origin(parcel: Parcel, history: lineage.Lineage) -> Place | None:
    """What all weights came from, where that is on the hub; of an adapter there, its base."""
    first = history.line[0] if history.line else None
    asked = (first.record["settings"].get("model") or {}).get("model") if first else None
    try:
        spec = describe(Model(first.path) if first else parcel.model)
        if asked and not spec.adapter:
            spec = describe(external(Base.model_validate(asked), Model))
        return places.of(spec.base) if spec.adapter or asked else None
    except (LookupError, StageFailed):  # it is gone
        return None


def _show(parcel: Parcel, say: Say) -> None:
    sizes = folder.sizes(parcel.folder)
    say(f"{parcel.repo} would hold {size(sum(sizes.values()))} in {parcel.folder}:")
    width = max(map(len, sizes))
    for name, count in sizes.items():
        say(f"  {name:{width}}  {size(count):>10}")
    say(f"Its card: {parcel.folder / 'README.md'}")
    if parcel.base is not None and parcel.base.commit is None:
        base = parcel.base.repo
        say(f"The card and {folder.CONFIG} get the commit of {base} when that is pushed.")


# -- the hub --------------------------------------------------------------------------------------


def _send(parcels: list[Parcel], wish: Wish, say: Say) -> None:
    from align.publishing import upload

    if wish.tag and len(parcels) > 1:  # before the base goes; its commit is in these files
        *_, adapter = parcels
        later = (folder.CONFIG, "README.md")
        upload.look(adapter.folder, adapter.repo, wish.tag, later=later, say=say)
    for parcel in parcels:
        last = parcel is parcels[-1]
        if parcel.base is not None and parcel.base.commit is None:  # it has just got one
            commit = places.pushes(parcels[0].runs, parcels[0].key)[-1]["commit"]
            parcel = replace(parcel, base=Place(parcel.base.repo, commit))
            _packed([parcel], wish, say)
        branch = wish.branch if last else None
        tag = None if wish.pull_request else (wish.tag if last else None) or _tag(parcel)
        pushed = upload.upload(
            parcel.folder,
            parcel.repo,
            branch=branch,
            tag=tag,
            pull_request=wish.pull_request,
            private=not wish.public,
            message=f"{parcel.model.name} ({parcel.key})",
            say=say,
        )
        whole = not (parcel.folder / folder.CONFIG).is_file() and not parcel.merged
        where = {"repo": parcel.repo, "branch": None if wish.pull_request else branch or "main"}
        where |= {"commit": pushed.commit, "url": pushed.url, "tag": tag}
        places.remember(parcel.runs, parcel.key, **where, whole=whole and not wish.pull_request)
        shutil.rmtree(parcel.folder)
        told = f", tag {tag}" if tag else ""
        if tag and pushed.tagged != pushed.commit:
            told += f" at {pushed.tagged}, which holds the same"
        say(f"{pushed.url} at commit {pushed.commit}{told}")


def _tag(parcel: Parcel) -> str:
    """The tag of a push: the same for the same model with the same card, another for another."""
    words = [parcel.model.name]
    if checks.is_made(parcel.model):
        words.insert(0, str(read_json(parcel.model.path / "stage.json")["recipe"]))
    text = (parcel.folder / "README.md").read_text(encoding="utf-8")
    words.append(records.digest([parcel.key, text])[:8])
    return re.sub(r"[^\w.-]+|\.{2,}", "-", "-".join(words)).lstrip(".-")
