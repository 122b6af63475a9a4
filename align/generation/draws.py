"""The draws of a `sample` stage: how many answers, drawn how, under which system prompt, to what.

Llama 3.1 steers rejection sampling by system prompts, which differ by capability (arXiv 2407.21783,
section 4.2.2), and draws multilingual answers at another temperature (section 4.3.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from align import chat, models
from align.artifacts import Model, Prompts
from align.data import Source, read
from align.errors import StageFailed
from align.generation.decoding import Generation, problems
from align.out import Out
from align.parallel.shards import Made, Shard
from align.settings import Dialog, Settings

FIRST = 500
"""Rows of each file of prompts that say, before anything runs, which columns there are."""

Row = dict[str, Any]


class Draw(Settings):
    """Some answers to some prompts: what it leaves out is as the stage says."""

    n: int | None = Field(None, ge=1)
    """Answers per prompt."""

    generation: Generation = {}
    """Options that go before the stage's."""

    system: str | None = None
    """System prompt; "" leaves the prompt as it is."""

    where: dict[str, Any] = {}
    """Only prompts whose columns have these values, or one of a list: `{subset: [math, code]}`."""

    def takes(self, row: Row) -> bool:
        """Whether it is for this prompt."""
        return all(
            row.get(column) in (wanted if isinstance(wanted, list) else [wanted])
            for column, wanted in self.where.items()
        )

    def dialog(self, prompt: Dialog) -> Dialog:
        """What the model is given: the prompt, under this draw's system prompt if it has one."""
        if not self.system:
            return prompt
        rest = prompt[1:] if prompt[0]["role"] == "system" else prompt
        return [{"role": "system", "content": self.system}, *rest]


def misfits(
    draws: list[Draw], drawn: list[Draw], prompts: Sequence[Prompts | Source]
) -> Iterator[tuple[str, str]]:
    """(key, message) for what is wrong with a stage's draws; `drawn` are they, resolved."""
    for number, draw in enumerate(draws):
        yield from ((f"draws.{number}.{key}", fact) for key, fact in problems(draw.generation))
    for number, draw in enumerate(drawn):
        if draw.n != 1 and draw.generation.get("do_sample") is False:
            fact = f'"do_sample: false" gives the same answer {draw.n} times.'
            yield (
                f"draws.{number}.n" if draws else "n",
                f'{fact} Say n: 1, or leave "do_sample" out.',
            )
    columns = _columns(prompts) if any(draw.where for draw in draws) else None
    for number, draw in enumerate(draws):
        for column in draw.where:
            if columns is not None and column not in columns:
                known = ", ".join(sorted(columns - {"id", "prompt"})) or "none"
                yield (
                    f"draws.{number}.where",
                    f'The prompts have no column "{column}" (the first {FIRST} of each file were '
                    f"read). Columns are: {known}. Correct the name; a column that begins later "
                    "must be null before.",
                )


def _columns(prompts: Sequence[Prompts | Source]) -> set[str] | None:
    """The columns of the first prompts; None where not all are local files that can be streamed."""
    found: set[str] = set()
    for source in prompts:
        if not isinstance(source, Source) or source.path is None:
            return None
        whole = source.path.removesuffix(".gz").endswith(".json")  # read at once
        plain = source.data_files is None and source.split == "train" and not whole
        if not plain or not Path(source.path).expanduser().is_file():
            return None
        for row in islice(read(source, Prompts, None), FIRST):
            found.update(row)
    return found


def limit(model: Model) -> int:
    """The most tokens a model can attend to, by its config; a large number where that has none."""
    from transformers import AutoConfig

    base = models.describe(model).base
    config = AutoConfig.from_pretrained(base.path, revision=base.revision).get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def plan(rows: Iterable[Row], draws: list[Draw], model: Model, out: Out) -> Iterator[Row]:
    """The prompts that are asked: `id`, `prompt`, `columns`, and the numbers of their `draws`.

    One at a time. What is left out is counted, with its id and the reason, and said at the end.

    Raises:
        StageFailed: a `where` fits no prompt; no prompt can be asked.
    """
    tokenizer, most = models.tokenizer(model), limit(model)
    used: set[int] = set()
    columns: set[str] = set()
    first: dict[str, Row] = {}
    asked = 0
    left: Counter[str] = Counter()
    for row in rows:
        others = {name: value for name, value in row.items() if name not in ("id", "prompt")}
        columns.update(others)
        taking = [number for number, draw in enumerate(draws) if draw.takes(row)]
        used.update(taking)
        fits, why = [], "no_draw"
        for number in taking:
            if unfit := _unfit(row, draws[number], tokenizer, most):
                name, fact = unfit
                out.count(f"dropped.{name}", example={"id": row["id"], "draw": number, **fact})
                first.setdefault(name, fact)
                why = name
            else:
                fits.append(number)
        if not taking:
            out.count("dropped.no_draw", example={"id": row["id"]})
        if fits:
            asked += 1
            yield {"id": row["id"], "prompt": row["prompt"], "columns": others, "draws": fits}
        else:
            left[why] += 1
    for number, draw in enumerate(draws):
        if number not in used:
            raise StageFailed(_nowhere(number, draw, columns))
    if not asked and "template" in first:
        raise StageFailed(f"No prompt can be asked. {first['template']['error']}")
    if not asked:
        raise StageFailed(
            f"Every prompt is longer than the {most} tokens that {model.key} can read. "
            "Use shorter prompts or another model."
        )
    if left:
        error = first["template"]["error"] if left["template"] else ""
        parts = ", ".join(f"{left[name]} {words}" for name, words in _LEFT.items() if left[name])
        all_ = asked + left.total()
        out.say(f"{left.total()} of {all_} prompts were left out: {parts}. {error}".rstrip())


_LEFT = {
    "no_draw": "in no draw",
    "prompt_too_long": "longer than the model can read",
    "template": "refused by the chat template",
}
"""Why no answer to a prompt is drawn: in counts, and in words."""


def _unfit(row: Row, draw: Draw, tokenizer: Any, most: int) -> tuple[str, Row] | None:
    """Why a prompt cannot be asked, as its count is called, and the fact; None: it can."""
    try:
        ids = chat.prompt(tokenizer, draw.dialog(row["prompt"]), row.get("tools"))
    except StageFailed as failure:
        return "template", {"error": str(failure)}
    return None if len(ids) < most else ("prompt_too_long", {"tokens": len(ids)})


def _nowhere(number: int, draw: Draw, columns: set[str]) -> str:
    """Why a draw takes no prompt."""
    for column in draw.where:
        if column not in columns:
            known = ", ".join(sorted(columns)) or "none"
            return f'draws.{number}.where: no prompt has a column "{column}". Columns are: {known}.'
    wanted = ", ".join(f"{column}: {value}" for column, value in draw.where.items())
    return f"draws.{number}.where: no prompt has {wanted}. Correct the values, or leave it out."


def resolved(
    draws: list[Draw], n: int, generation: dict[str, Any], system: str | None
) -> list[Draw]:
    """The draws with what they take from the stage; one of the stage's own where it has none."""
    return [
        draw.model_copy(
            update={
                "n": draw.n or n,
                "generation": {**generation, **draw.generation},
                "system": system if draw.system is None else draw.system,
            }
        )
        for draw in draws or [Draw()]
    ]


Ask = Callable[[list[Row], Draw, int, Callable[[int], None]], Iterator[tuple[int, list[Any]]]]
"""Draws answers: (planned rows, draw, index of the first answer, told the tokens so far).

Yields (place of a row, its answers) as they are ready.
"""


def answers(
    ask: Ask, draws: list[Draw], rows: list[Row], out: Shard, step: tuple[int, int] = (0, 1)
) -> dict[str, list[Row]]:
    """The answers to a shard's rows by their ids, draw after draw; counted.

    `step`: which of how many such calls for the shard this is, where one hangs on another.
    """
    found: dict[str, list[Row]] = {row["id"]: [] for row in rows}
    total = sum(len(row["draws"]) for row in rows)
    done = before = first = 0
    tokens = out.counts.get("tokens", {"n": 0})["n"]

    def progress(more: int) -> None:
        at, steps = step
        out.progress(at * total + done, steps * total, "prompts", tokens=before + more)

    for number, draw in enumerate(draws):
        asked = [row for row in rows if number in row["draws"]]
        before = tokens
        for place, said in ask(asked, draw, first, progress):
            mark = {"draw": number} if len(draws) > 1 else {}
            found[asked[place]["id"]] += [asdict(answer) | mark for answer in said]
            done += 1
            tokens += sum(len(answer.token_ids) for answer in said)
            for answer in said:
                _count(answer, number, asked[place]["id"], out)
        first += draw.n or 0
    return found


def _count(answer: Any, draw: int, prompt: str, out: Shard) -> None:
    """Count an answer, also among those of its draw."""
    cut = answer.finish == "length"
    if cut:
        out.count("cut", example={"id": prompt, "end": answer.text[-200:]})
    for name, n in (("answers", 1), ("tokens", len(answer.token_ids))):
        out.count(name, n)
        out.count(f"draw_{draw}.{name}", n)
    out.count(f"draw_{draw}.cut", int(cut))


def summary(draws: int, counts: dict[str, Any], made: Made) -> dict[str, Any]:
    """What `metrics.json` says. The counts of single draws are moved there from `counts`.

    `by` is who drew, `same_draw` whether all of them promise the same draw whatever the schedule,
    `changed_alone` the share of answers that were others when a few prompts were drawn again alone
    (in bfloat16), `tokens_per_second` what one process drew, `cut` the share of answers that
    reached the limit.

    Raises:
        StageFailed: there is no answer.
    """
    if "answers" not in counts:
        raise StageFailed("No prompt has an answer. The counts of this stage say why.")

    def about(of: str, take: Any) -> dict[str, Any]:
        n = {name: take(of + name, {"n": 0})["n"] for name in ("answers", "tokens", "cut")}
        return {**n, "cut": n["cut"] / n["answers"] if n["answers"] else None}

    found = about("", counts.get)
    again = counts.pop("drawn_again", {"n": 0})["n"]
    otherwise = counts.pop("drawn_again_otherwise", {"n": 0})["n"]
    return {
        "by": made.by,
        "same_draw": all(one["same_draw"] for one in made.by),
        "changed_alone": otherwise / again if again else None,
        "seconds": round(made.seconds, 3),
        "tokens_per_second": round(found["tokens"] / made.seconds, 1),
        **found,
        "draws": [about(f"draw_{number}.", counts.pop) for number in range(draws)],
    }
