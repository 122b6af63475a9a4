"""`align view`: a stage's rows on a terminal: ranked candidates, pairs, what is trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from align import data, forms, store
from align.annotations import Annotation, artifact_name
from align.artifacts import Preferences, Rows, Samples, read_json
from align.errors import Problem, RecipeError, StageFailed
from align.formats.dialogs import Unusable
from align.options import nearest
from align.progress import in_words
from align.reporting import learnt
from align.reporting.curated import REMOVED
from align.settings import Stage
from align.visible import visible

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

Row = dict[str, Any]

Form = Callable[[Row, int], Iterator[str]]
"""The lines of a row, of that width."""

WHOLE = 0
"""In place of a width: texts are shown whole, on as many lines as they have."""


def show(
    plan: Plan,
    name: str,
    n: int,
    id: str | None,
    search: str | None,
    tokens: bool = False,
    colour: bool = False,
) -> Iterator[str]:
    """The lines that show a stage's first `n` rows, as they are read; also while it runs.

    Args:
        plan: the recipe.
        name: of the stage. Of one that trains, what it is trained on.
        n: how many rows; of one that removes rows, as many removed ones, too.
        id: only the rows of this id, or made from the prompt of this id; shown whole.
        search: only rows that say this, whatever the case.
        tokens: show where tokens begin in what a stage is trained on.
        colour: what is learnt has a colour, too.

    Raises:
        RecipeError: there is no such stage or row, or the stage has made nothing yet.
    """
    stage = _stage(plan, name)
    kind, rows = rows_of(plan, stage)
    whose = "" if isinstance(stage.artifact, Rows) else " (its data)"
    yield f"{name}{whose}: {kind.__name__}, {state(stage)}"
    width = WHOLE if id is not None else shutil.get_terminal_size((100, 24)).columns
    looked, form = Looked(id, search, n, width), _form(stage, kind, tokens, colour)
    found = yield from looked.lines((normal(row, kind) for row in rows), form)
    if (file := stage.artifact.path / REMOVED).is_file() and file.stat().st_size:
        yield "\nremoved:"
        found += yield from looked.lines(removed(file), _removed)
    if not found:
        asked = f'the id "{id}"' if id is not None else f'"{search}"' if search else "anything"
        raise _problem(plan, name, f"No row here has {asked}.")


@dataclass(frozen=True)
class Looked:
    """Which rows are looked for, and how wide they are shown."""

    id: str | None
    search: str | None
    n: int
    width: int

    def lines(self, rows: Iterable[Row], form: Form) -> Generator[str, None, int]:
        """Yield the lines of the first `n` of them; returns how many there were."""
        if self.id is not None:
            rows = (row for row in rows if self.id in (row.get("id"), row.get("prompt_id")))
        if self.search is not None:
            found = self.search.casefold()
            rows = (row for row in rows if found in "\n".join(texts(row)).casefold())
        number = 0
        for number, row in enumerate(islice(rows, self.n), 1):
            yield f"\n{visible(str(row.get('id', f'row {number}')))}"
            yield from form(row, self.width)
        return number


# -- which rows ----------------------------------------------------------------------------------


def _stage(plan: Plan, name: str) -> Planned:
    if name in plan.stages:
        return plan.stages[name]
    hint = nearest(name, plan.stages) or f" Stages are: {', '.join(plan.stages)}."
    raise RecipeError([Problem(str(plan.path), "", f'There is no stage "{name}".{hint}')])


def rows_of(plan: Plan, stage: Planned) -> tuple[type[Rows], Iterator[Row]]:
    """The type of a stage's rows and the rows; of one that trains, of its data."""
    if isinstance(stage.artifact, Rows):
        return type(stage.artifact), _made(plan, stage.artifact, stage.name)
    if (kind := trained_on(stage.stage)) is None:
        kinds = artifact_name(type(stage.artifact))
        raise _problem(plan, stage.name, f"It makes {kinds}, which has no rows to look at.")
    sources = stage.stage.data  # type: ignore[attr-defined]  # it has the field
    for source in sources:
        made = source if isinstance(source, Rows) else source.stage
        if made is not None and not made.path.is_dir():
            message = f"Its data is not made yet. Make it: align run {plan.path} {made.name}"
            raise _problem(plan, stage.name, message)
    return kind, data.mix(sources, kind, stage.stage.seed, None)


def _made(plan: Plan, rows: Rows, name: str) -> Iterator[Row]:
    """The rows of an artifact, or those that are there while it is made."""
    if not rows.path.is_dir():
        rows = type(rows)(store.partial(rows.path))
    if not rows.files():
        raise _problem(plan, name, f"Nothing is made yet. Make it: align run {plan.path} {name}")
    return rows.rows()


def trained_on(stage: Stage) -> type[Rows] | None:
    """What rows a stage's `data` has; None where it has none."""
    if (field := type(stage).model_fields.get("data")) is None:
        return None
    items = Annotation.of(Annotation.of(field.annotation, field.metadata).items).artifacts
    return next((kind for kind in items if issubclass(kind, Rows)), None)


def normal(row: Row, kind: type[Rows]) -> Row:
    """A row in the form of its type, its other columns with it: stages of your own write others.

    Of one that has no such form, and is left out where it is used, `text` is all it has.
    """
    if issubclass(kind, Samples):
        return row
    try:
        return {**row, **forms.normal(row, kind)}
    except (StageFailed, Unusable, KeyError, TypeError, AttributeError, ValueError):
        return {"text": json.dumps(row, indent=1, ensure_ascii=False)}


def state(stage: Planned) -> str:
    """How far a stage is, in words."""
    progress = store.partial(stage.artifact.path) / "progress.json"
    found = store.state(stage.artifact.path)
    words = {"absent": "not made yet", "partial": "half done"}.get(found, found)
    if found != "done" and progress.is_file():
        words += f", {in_words(read_json(progress))}"
    return words


def _problem(plan: Plan, name: str, message: str) -> RecipeError:
    return RecipeError([Problem(str(plan.path), f"stages.{name}", message)])


# -- how rows are shown --------------------------------------------------------------------------


def _form(stage: Planned, kind: type[Rows], tokens: bool, colour: bool) -> Form:
    if issubclass(kind, Samples):
        return _candidates
    if not isinstance(stage.artifact, Rows) and (see := learnt.see(stage, kind)) is not None:
        return _masked(see, tokens, colour)
    return _pair if issubclass(kind, Preferences) else _plain


def _candidates(row: Row, width: int) -> Iterator[str]:
    """A prompt and its answers, best first."""
    yield from _dialog(row["prompt"], width)
    if not (answers := sorted(row["completions"], key=best_first)):
        return
    members = [m for m in answers[0].get("scores", ()) if width == WHOLE or "." not in m]
    if len(members) == 1 and all(a.get("score") == a["scores"].get(members[0]) for a in answers):
        members = []  # the score says it
    draws = any("draw" in answer for answer in answers)
    heads = ["answer", "score" if "score" in answers[0] else "logprob", *members]
    table = [[*heads, "tokens", "end", *["draw"][:draws]]]
    for answer in answers:
        first = answer.get("score", answer["logprob"])
        cells = [str(answer["index"]), _number(first)]
        cells += [_number(answer["scores"].get(name)) for name in members]
        cells += [str(len(answer["token_ids"])), "cut" if answer["finish"] == "length" else ""]
        table.append(cells + [str(answer.get("draw", ""))][:draws])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    texts = ["", *(answer["text"] for answer in answers)]
    for cells, text in zip(table, texts, strict=True):
        head = "  ".join(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))
        yield from _line(f"  {head}  ", text, width)


def best_first(answer: Row) -> tuple[float, int]:
    """Sorts candidates by it."""
    score = answer.get("score")
    return float("inf") if score is None else -score, answer["index"]


def _pair(row: Row, width: int) -> Iterator[str]:
    yield from _plain({key: row[key] for key in ("text", "prompt") if key in row}, width)
    for side in ("chosen", "rejected"):
        for message in row.get(side, ()):
            score = row.get(f"{side}_score")
            number = "" if score is None else f"  {_number(score)}"
            yield from _line(f"  {side:8}{number}  ", said(message), width)
    for place, answer in enumerate(row.get("ranked", ()), 1):
        yield from _line(f"  {place}. ", said(answer[-1]), width)


def _plain(row: Row, width: int) -> Iterator[str]:
    if "text" in row:
        yield from _line("  ", row["text"], width)
    yield from _dialog(row.get("messages") or row.get("prompt") or (), width)
    if "score" in row:
        yield f"  score  {_number(row['score'])}"


SIGNS = {learnt.READ: " ", learnt.LEARNT: ">", learnt.NLL: "~", learnt.SCORED: "*"}
"""Before what a model reads: what becomes of it."""

COLOURS = {learnt.READ: "", learnt.LEARNT: "32", learnt.NLL: "33", learnt.SCORED: "35"}
"""The same for who sees colours, as ANSI's codes."""


def _masked(see: learnt.See, tokens: bool, colour: bool) -> Form:
    """Rows as a model is trained on them, with a sign before what becomes of each stretch."""

    def lines(row: Row, width: int) -> Iterator[str]:
        if "text" in row:  # it is left out: it has no form that the stage takes
            yield from _plain(row, width)
            return
        seen = see(row)
        yield f"  {', '.join(_counts(seen))}"
        if seen.note:
            yield from _line("  ! ", seen.note, width)
        for part in seen.parts:
            head = f"{part.name:9}" if part.name else ""
            for mark, run in groupby(part.tokens, key=lambda token: token.mark):
                each = [token.text for token in run]
                code = COLOURS[mark] if colour else ""
                text = "".join(each)
                if tokens:
                    yield from _split(f"  {head}{SIGNS[mark]} ", each, width, code)
                elif text.strip() or mark != learnt.READ:
                    text = text.strip("\n") if text.strip() else _bounded(text)
                    yield from _line(f"  {head}{SIGNS[mark]} ", text, width, code)
                else:
                    continue
                head = " " * len(head)

    return lines


def _split(head: str, tokens: Iterable[str], width: int, colour: str) -> Iterator[str]:
    """Tokens with bars between them after a head, on as many lines of that width as they need."""
    lines: list[list[str]] = [[]]
    used, room = 0, width - cell_len(head) + 1  # a line's last token has no bar after it
    for token in map(_bounded, tokens):
        size = cell_len(visible(token)) + 1
        if width != WHOLE and lines[-1] and used + size > room:
            lines.append([])
            used = 0
        lines[-1].append(token)
        used += size
    for line in lines:
        yield from _line(head, "│".join(line), width, colour)
        head = " " * cell_len(head)


def _counts(seen: learnt.Seen) -> Iterator[str]:
    """How many tokens there are, and what becomes of them, each with its sign."""
    total = seen.count()
    yield f"{total:,} tokens"
    if seen.left_out:
        return
    if n := seen.count(learnt.LEARNT):
        yield f"{n:,} learnt > ({n / total:.0%})"
    if n := seen.count(learnt.NLL):
        yield f"{n:,} learnt in the NLL term alone ~"
    if seen.count(learnt.SCORED):
        yield "the score is read at *"


def _bounded(token: str) -> str:
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


def removed(file: Path) -> Iterator[Row]:
    """The rows that a stage removed, each with its `reason` and `facts`."""
    with file.open(encoding="utf-8") as lines:
        yield from (as_dialog(json.loads(line)) for line in lines)


def as_dialog(row: Row) -> Row:
    """A removed row with all it says as messages, one after the other."""
    return {**row, "messages": [{"role": role, "content": text} for role, text in row["said"]]}


def _removed(row: Row, width: int) -> Iterator[str]:
    facts = ", ".join(f"{name} {value}" for name, value in row["facts"].items())
    yield from _line("  - ", f"{row['reason']}{': ' if facts else ''}{facts}", width)
    yield from _plain(row, width)


def _dialog(dialog: Iterable[Row], width: int) -> Iterator[str]:
    for message in dialog:
        weight = " (not learnt)" if message.get("weight") == 0 else ""
        yield from _line(f"  {message['role']}{weight}: ", said(message), width)


def said(message: Row) -> str:
    """What a message says, calls of tools as JSON."""
    calls = message.get("tool_calls")
    return str(message.get("content") or "") + (json.dumps(calls) if calls else "")


def _line(head: str, text: str, width: int, colour: str = "") -> Iterator[str]:
    """A text after a head: on one line of that width, or whole, its lines below each other."""
    text = visible(text)
    if width == WHOLE:
        text = text.replace("\n", "\n" + " " * len(head))
    else:
        text = " ⏎ ".join(part for part in map(str.strip, text.split("\n")) if part)
        room = max(20, width - cell_len(head))
        if cell_len(text) > room:
            text = set_cell_size(text, room - 1) + "…"
    yield f"{head}\x1b[{colour}m{text.rstrip()}\x1b[0m" if colour else (head + text).rstrip()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def texts(row: Row) -> Iterator[str]:
    """Whatever is said in a row."""
    dialogs = [row.get(key) or () for key in ("prompt", "messages", "chosen", "rejected")]
    for dialog in (*dialogs, *row.get("ranked", ())):
        yield from [dialog] if isinstance(dialog, str) else map(said, dialog)
    yield from (answer["text"] for answer in row.get("completions", ()))
    yield row.get("text", "")
