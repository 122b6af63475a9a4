"""`align view`: a stage's rows on a terminal: ranked candidates, pairs, what is trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from align import data, forms, store
from align.annotations import Annotation, artifact_name
from align.artifacts import Conversations, Model, Preferences, Rows, Samples, read_json
from align.errors import Problem, RecipeError, StageFailed
from align.formats.dialogs import Unusable
from align.options import nearest
from align.progress import in_words
from align.settings import Stage
from align.visible import visible

if TYPE_CHECKING:
    from align.recipe import Plan, Planned

Row = dict[str, Any]

WHOLE = 0
"""In place of a width: texts are shown whole, on as many lines as they have."""


def show(plan: Plan, name: str, n: int, id: str | None, search: str | None) -> Iterator[str]:
    """The lines that show a stage's first `n` rows, as they are read; also while it runs.

    Args:
        plan: the recipe.
        name: of the stage. Of one that trains, what it is trained on.
        n: how many rows.
        id: only the rows of this id, or made from the prompt of this id; shown whole.
        search: only rows that say this, whatever the case.

    Raises:
        RecipeError: there is no such stage or row, or the stage has made nothing yet.
    """
    stage = _stage(plan, name)
    kind, rows = rows_of(plan, stage)
    whose = "" if isinstance(stage.artifact, Rows) else " (its data)"
    yield f"{name}{whose}: {kind.__name__}, {state(stage)}"
    rows = (normal(row, kind) for row in rows)
    if id is not None:
        rows = (row for row in rows if id in (row.get("id"), row.get("prompt_id")))
    if search is not None:
        found = search.casefold()
        rows = (row for row in rows if found in "\n".join(texts(row)).casefold())
    width = WHOLE if id is not None else shutil.get_terminal_size((100, 24)).columns
    lines = _form(stage, kind)
    number = 0
    for number, row in enumerate(islice(rows, n), 1):
        yield f"\n{visible(str(row.get('id', f'row {number}')))}"
        yield from lines(row, width)
    if not number:
        asked = f'the id "{id}"' if id is not None else f'"{search}"' if search else "anything"
        raise _problem(plan, name, f"No row here has {asked}.")


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


def _form(stage: Planned, kind: type[Rows]) -> Callable[[Row, int], Iterator[str]]:
    if issubclass(kind, Samples):
        return _candidates
    if issubclass(kind, Preferences):
        return _pair
    if issubclass(kind, Conversations) and not isinstance(stage.artifact, Rows):
        return _masked(stage.stage)
    return _plain


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


def _masked(stage: Stage) -> Callable[[Row, int], Iterator[str]]:
    """Conversations as the model is trained on them: `>` before what it learns to say."""
    parts = masks(stage)

    def lines(row: Row, width: int) -> Iterator[str]:
        for learnt, text in parts(row):
            if text := text.strip("\n"):
                yield from _line("  > " if learnt else "    ", text, width)

    return lines


def masks(stage: Stage) -> Callable[[Row], Iterator[tuple[bool, str]]]:
    """The text a conversation is trained on in parts, and of each whether it is learnt."""
    from align import chat, models

    model: Model = stage.model  # type: ignore[attr-defined]  # who trains has one
    tokenizer = models.tokenizer(model)
    everything = getattr(stage, "train_on", "assistant") == "all"

    def parts(row: Row) -> Iterator[tuple[bool, str]]:
        encoded = chat.encode_one(tokenizer, row["messages"], row.get("tools"))
        learnt = [everything or kind != chat.CONTEXT for kind in encoded.kinds]
        at = 0
        while at < len(learnt):
            end = next((i for i in range(at, len(learnt)) if learnt[i] != learnt[at]), len(learnt))
            yield learnt[at], tokenizer.decode(encoded.ids[at:end])
            at = end

    return parts


def _dialog(dialog: Iterable[Row], width: int) -> Iterator[str]:
    for message in dialog:
        yield from _line(f"  {message['role']}: ", said(message), width)


def said(message: Row) -> str:
    """What a message says, calls of tools as JSON."""
    calls = message.get("tool_calls")
    return str(message.get("content") or "") + (json.dumps(calls) if calls else "")


def _line(head: str, text: str, width: int) -> Iterator[str]:
    """A text after a head: on one line of that width, or whole, its lines below each other."""
    text = visible(text)
    if width == WHOLE:
        yield (head + text.replace("\n", "\n" + " " * len(head))).rstrip()
        return
    text = " ⏎ ".join(part for part in map(str.strip, text.split("\n")) if part)
    room = max(20, width - cell_len(head))
    if cell_len(text) > room:
        text = set_cell_size(text, room - 1) + "…"
    yield (head + text).rstrip()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def texts(row: Row) -> Iterator[str]:
    """Whatever is said in a row."""
    dialogs = [row.get(key) or () for key in ("prompt", "messages", "chosen", "rejected")]
    for dialog in (*dialogs, *row.get("ranked", ())):
        yield from [dialog] if isinstance(dialog, str) else map(said, dialog)
    yield from (answer["text"] for answer in row.get("completions", ()))
    yield row.get("text", "")
