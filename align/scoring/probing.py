"""What the stage `probe` does: with a shard of snippets, and with all of them at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from align.artifacts import Conversations
from align.generation import draws
from align.generation.draws import Ask, Draw, Row
from align.out import Out
from align.parallel.shards import Shard
from align.scoring import judging, knowledge
from align.scoring.judging import JudgeServer
from align.seen import Seen
from align.selection import chance
from align.settings import Dialog

if TYPE_CHECKING:
    from align.stages.probe import Probe

STEPS = 4
"""Draws of a shard that hang on one another: questions, answers, and two verdicts."""


class Probing:
    """Makes shards: of every snippet its questions, with their answers and verdicts."""

    def __init__(self, stage: Probe, out: Shard) -> None:
        from align.generation import engines

        how: dict[str, Any] = {"seed": stage.seed, "rows": stage.rows, "out": out}
        self._ask = engines.ready(stage.engine, stage.model, **how)
        self._stage = stage
        self._out = out
        if stage.judge_server is not None:
            ask, name = _served(stage.judge_server, out), stage.judge_server.model
        elif stage.judge is not None:
            facts = out.facts
            ask, name = _here(engines.ready(None, stage.judge, **how), out), stage.judge.key
            out.facts = {**facts, "judge": out.facts}
        else:
            ask, name = _here(self._ask, out), stage.model.key
        self._judge = knowledge.Judge(ask, stage.ask_correct, stage.ask_informative, name)

    def __call__(self, number: int, shard: list[Row]) -> Iterator[Row]:
        """The snippets' ids, and the `questions` on each."""
        stage = self._stage
        said = self._drawn(shard, stage.questions, 0)
        rows = [{"id": row["id"], "questions": _questions(said[row["id"]])} for row in shard]
        asked = {
            f"{row['id']}/{k}": (source["columns"]["text"], one)
            for row, source in zip(rows, shard, strict=True)
            for k, one in enumerate(row["questions"])
            if "why" not in one
        }
        prompts = [_row(name, _user(one["question"])) for name, (_, one) in asked.items()]
        for name, answers in self._drawn(prompts, stage.n, 1).items():
            asked[name][1]["answers"] = [{k: a[k] for k in ("text", "finish")} for a in answers]
        cases = [
            ((text, one["question"], answer["text"]), answer)
            for text, one in asked.values()
            for answer in one["answers"]
        ]
        verdicts = self._judge([case for case, _ in cases])
        for (_, answer), verdict in zip(cases, verdicts, strict=True):
            answer.update(verdict)
        yield from rows

    def _drawn(self, rows: list[Row], n: int, step: int) -> dict[str, list[Row]]:
        return draws.answers(self._ask, [self._stage.draw(n)], rows, self._out, (step, STEPS))


def _here(ask: Ask, out: Shard) -> knowledge.Ask:
    """A judge that is a model of this process; what it is asked twice is drawn once."""
    greedy = {"do_sample": False, "max_new_tokens": judging.MOST}
    [draw] = draws.resolved([Draw(generation=greedy)], 1, {}, None)

    def verdicts(dialogs: list[Dialog], form: judging.Form, kept: bool) -> list[Any]:
        names = knowledge.names(dialogs)
        rows = [_row(*one) for one in dict(zip(names, dialogs, strict=True)).items()]
        step = STEPS - len(knowledge.FORMS) + knowledge.FORMS.index(form)
        said = draws.answers(ask, [draw], rows, out, (step, STEPS))
        read = {name: form.read(one[0]["text"]) if one else None for name, one in said.items()}
        return [read[name] for name in names]

    return verdicts


def _served(server: JudgeServer, out: Shard) -> knowledge.Ask:
    """A judge on a server; its verdicts are kept in the cache."""
    cache = out.cache / "judge"
    judges = {one.key: judging.Judge(server, server.model, one, cache) for one in knowledge.FORMS}
    return lambda dialogs, form, kept: judges[form.key].verdicts(dialogs, kept=kept)


def _questions(said: list[Row]) -> list[Row]:
    """What a model asked about a snippet; `why`, where it is not going to be answered."""
    found: list[Row] = []
    for answer in said:
        both = knowledge.read(answer["text"])
        if both is None:
            found.append({"question": answer["text"], "why": "no_question"})
            continue
        asked, reference = both
        earlier = {knowledge.plain(one["question"]) for one in found}
        found.append({"question": asked, "reference": reference})
        if knowledge.leaks(asked, reference):
            found[-1]["why"] = "leaks"
        elif knowledge.plain(asked) in earlier:
            found[-1]["why"] = "duplicate"
    return found


def _row(name: str, prompt: Dialog) -> Row:
    return {"id": name, "prompt": prompt, "columns": {}, "draws": [0]}


def _user(text: str) -> Dialog:
    return [{"role": "user", "content": text}]


# -- all shards ----------------------------------------------------------------------------------


def conversations(stage: Probe, out: Out) -> Iterator[Row]:
    """The rows to learn from; other questions are counted, and written to `removed.jsonl`."""
    with (
        closing(Seen()) as seen,
        (out.path / "removed.jsonl").open("w", encoding="utf-8") as removed,
    ):
        for row in Conversations(out.path).rows():
            for k, one in enumerate(row["questions"]):
                name, reply, why = f"{row['id']}/{k}", None, one.get("why")
                out.count("questions")
                if why is None:
                    plain = knowledge.plain(one["question"])
                    why = None if seen.unique(plain) == plain else "duplicate"
                why = why or knowledge.outcome(one["answers"], stage.known, stage.unknown)
                if why == "known":
                    reply = knowledge.right(one["answers"])
                    why = why if reply is not None else "cut"
                elif why == "unknown":
                    which = int.from_bytes(chance(stage.seed, name, 0)) % len(stage.refusals)
                    reply = stage.refusals[which]
                if reply is not None:
                    out.count(f"kept.{why}")
                    messages = [*_user(one["question"]), {"role": "assistant", "content": reply}]
                    yield {"id": name, "messages": messages, "why": why, **_facts(row, one)}
                else:
                    out.count(f"dropped.{why}", example={"id": name, "question": one["question"]})
                    said = [["user", one["question"]]]
                    said += [["assistant", a["text"]] for a in one.get("answers", ())]
                    note = {"id": name, "reason": why, "facts": _facts(row, one), "said": said}
                    removed.write(json.dumps(note, ensure_ascii=False) + "\n")


def _facts(row: Row, one: Row) -> Row:
    """Why a question is kept or dropped: the snippet, its answer there, and all verdicts."""
    verdicts = [{key: a[key] for key in ("correct", "informative")} for a in one.get("answers", ())]
    return {"snippet": row["id"], "reference": one.get("reference"), "verdicts": verdicts}
