"""Rows as stages see them.

A source is an earlier stage, a path or a block with the keys of `datasets.load_dataset` and ours
(source.py). Whatever its form, a stage sees rows of the normal form of the type it asks for
(forms.py).
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, count, islice
from typing import Any

from align import forms
from align.artifacts import Prompts, Rows
from align.errors import StageFailed
from align.formats.dialogs import Choice, Unusable
from align.out import Out
from align.seen import Seen
from align.sources.files import is_binary
from align.sources.questions import Questions
from align.sources.raw import Told, name_of, teller
from align.sources.raw import rows as rows
from align.sources.raw import telling as telling
from align.sources.source import Source as Source

Row = dict[str, Any]

CURATED = ("source", "quality", "difficulty")
"""Columns that `curate` gives to rows of every type: they stay with rows that a stage has made."""


SAID = ("text", "messages", "prompt", "chosen", "rejected", "ranked")
"""Columns of what a row says, which a form has checked."""


# -- reading -------------------------------------------------------------------------------------


def read(source: Rows | Source, kind: type[Rows], out: Out | None, seed: int = 0) -> Iterator[Row]:
    """The rows of a source in the normal form of `kind`, one at a time, each with a unique `id`.

    The id is the source's own, else made of the content: equal contents get `-1`, `-2` appended.
    What cannot be learnt from (docs/data.md) is dropped, and counted in `out`; without one whoever
    is `telling` hears of it. `count` draws rows by the seed, for which all are read twice.

    Raises:
        StageFailed: there is no data, it cannot be read, its columns are not known, a row is not
            what the first row promised, no row can be used, there are less than `count`, or the
            rows change between the two times.
    """
    block = Source(stage=source) if isinstance(source, Rows) else source
    found = _left(block, kind, out)
    if block.count is None:
        return found
    return _counted(found, block, _bound(block, kind, seed), seed)


def _left(block: Source, kind: type[Rows], out: Out | None) -> Iterator[Row]:
    """The rows whose prompts are in no other source that they shall be kept apart from."""
    told = teller(out)
    if not block.without:
        yield from _normal(block, kind, out, told)
        return
    with telling(None):
        others = Questions(row for other in block.without for row in read(other, Prompts, None))
    for row in _normal(block, kind, out, told):
        if row not in others:
            yield row
        elif told is not None:
            told("prompt_elsewhere", {"source": name_of(block), "id": row["id"]})


def _normal(block: Source, kind: type[Rows], out: Out | None, told: Told | None) -> Iterator[Row]:
    name = name_of(block)
    found = rows(block, told)
    first = next(found)
    form = forms.recognise(first, kind, name, block.format, block.columns)
    if block.strength is not None and form.name not in ("pairs", "two_responses"):
        raise StageFailed(f"{name} holds no pairs (format: {form.name}): leave `strength` out.")
    if block.best is not None and form.name != "trees":
        raise StageFailed(
            f"{name} is no conversation tree (format: {form.name}): leave `best` out."
        )
    if out is not None and block.stage is None:
        out.say(f"{name}: {form.words}.")
    choice = Choice(tuple(block.strength) if block.strength else None, block.best)
    beside = CURATED if block.stage is not None else ()
    lost: dict[str, None] = {}
    used = 0
    numbers = count(1)
    plain = ((next(numbers), row) for row in chain([first], found))
    numbered: forms.Gathered = plain if form.gather is None else form.gather(plain)
    with closing(Seen()) as seen:
        for number, row in numbered:
            try:
                for made in _made(row, form, choice, beside, seen, out):
                    if isinstance(made, Unusable):
                        lost[f"dropped.{made}"] = None
                        if told is not None:
                            facts = made.facts or _short(row)
                            told(str(made), {"source": name, "row": number, **facts})
                    else:
                        used += 1
                        yield made
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise StageFailed(_not_alike(name, number, row, error, form, kind)) from None
    if not used:
        raise StageFailed(
            f"{name}: none of its {next(numbers) - 1} rows can be used ({', '.join(lost)}). "
            "Look at the rows and at `columns:`."
        )


def _made(
    row: Row | Exception,
    form: forms.Found,
    choice: Choice,
    beside: Sequence[str],
    seen: Seen,
    out: Out | None,
) -> Iterator[Row | Unusable]:
    """What a row becomes, with ids and the columns beside; at its end what made it unusable."""
    try:
        if isinstance(row, Exception):
            raise row
        for made in form.make(row, choice):
            if isinstance(made, Unusable):
                yield made
            else:
                identity = _identity(row, made, seen, out)
                held = {
                    key: value for key, value in made.items() if key in SAID or not is_binary(value)
                }
                yield {"id": identity, **held, **{key: row[key] for key in beside if key in row}}
    except Unusable as why:
        yield why


def _not_alike(
    name: str,
    number: int,
    row: Row | Exception,
    error: Exception,
    form: forms.Found,
    kind: type[Rows],
) -> str:
    """What is wrong with a row that is not what the first one is."""
    place = f"{name}, row {number}"
    if isinstance(row, dict) and not forms.FORMS[form.name].has_columns(row):
        try:
            other = forms.recognise(row, kind, name).brief
        except StageFailed:
            other = ""
        if other:
            return (
                f"{place} is {other}, and the first row is {form.brief}. Put them in two files, "
                "or make their columns alike with `columns:`."
            )
    fact = str(error)
    if isinstance(error, KeyError):
        fact = f'"{error.args[0]}" is missing'
    elif isinstance(error, UnicodeEncodeError):
        fact = "it holds half of a character (a lone surrogate, as \\ud800 without \\udc00)"
    if number == 1:
        others = forms.others(row, kind, form.name) if isinstance(row, dict) else []
        remedy = f"; `format:` names another form ({', '.join(others)})" if others else ""
        return f"{place}: {fact}. It was read as {form.brief}{remedy}."
    return f"{place}: {fact}. The first row is {form.brief}; every row must be."


def _identity(row: Row, made: Row, seen: Seen, out: Out | None) -> str:
    """The row's own id, or that of what was made of it, or one made of the content; unique."""
    own = made.pop("id", row.get("id"))
    if own is not None and not is_binary(own):
        if (identity := seen.unique(str(own))) != str(own) and out is not None:
            out.count("duplicate_ids", example={"id": str(own), "called": identity})
        return identity
    known = {key: made[key] for key in SAID if key in made}
    text = json.dumps(known, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return seen.unique(hashlib.sha256(text.encode()).hexdigest()[:16])


def _short(row: Row | Exception) -> Row:
    if isinstance(row, Exception):
        return {}
    return {key: str(value)[:200] for key, value in islice(row.items(), 6)}


# -- how many ------------------------------------------------------------------------------------


def mix(
    sources: Sequence[Rows | Source], kind: type[Rows], seed: int, out: Out | None
) -> Iterator[Row]:
    """The rows of all sources, one source after the other, each as often as its weight says.

    With weight 2.5 every row comes twice and about half of them a third time; which ones is drawn
    from the seed and the row's id, so that it does not depend on other rows. Ids are unique.
    """
    with closing(Seen()) as seen:
        for source in sources:
            weight = source.weight if isinstance(source, Source) else 1.0
            whole, part = divmod(weight, 1.0)
            for row in read(source, kind, out, seed):
                for _ in range(int(whole) + (_drawn(seed, row["id"]) / 2**64 < part)):
                    yield {**row, "id": seen.unique(row["id"])}


def _drawn(seed: int, name: str) -> int:
    """Uniform below 2^64."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _counted(found: Iterator[Row], block: Source, bound: int, seed: int) -> Iterator[Row]:
    """The rows that draw up to `bound`: `count` of them, if they are those it was made for."""
    n = 0
    for row in found:
        if _drawn(seed, row["id"]) <= bound:
            n += 1
            yield row
    if n != block.count:
        raise StageFailed(
            f"{name_of(block)} gave {n} rows in place of {block.count}: it changed between the two "
            "times that `count` reads it. Run again when nobody writes to it."
        )


def _bound(block: Source, kind: type[Rows], seed: int) -> int:
    """The highest number that a row of the first `count` draws; 8 bytes a row."""
    import numpy as np

    assert block.count is not None
    with telling(None):
        drawn = array("Q", (_drawn(seed, row["id"]) for row in _left(block, kind, None)))
    if len(drawn) < block.count:
        raise StageFailed(
            f"{name_of(block)} has {len(drawn)} rows that can be used, and `count` asks for "
            f"{block.count}. Ask for less, or repeat rows with `weight` in place of `count`."
        )
    numbers = np.frombuffer(drawn, np.uint64)
    numbers.partition(block.count - 1)
    return int(numbers[block.count - 1])
