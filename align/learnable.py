"""Rows as what is learnt of them: whole, short enough for the model, and checked.

Of every row of a training stage, before the stage's model is loaded: it begins with the
begin-of-text token once; what is learnt are the assistant's turns, each with what ends it, and
nothing of the prompt; calls of tools are learnt, their results are not; a system prompt is there.
Much of this holds by construction (chat.py). It is looked at all the same, because a template or a
tokenizer that breaks it costs a training, and shows in no number.

No answer is ever cut. A model that learns from half an answer learns to stop in the middle, or
never to stop; and of two answers cut at one length the better one may be the one that lost its end.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, tee
from typing import Any, Literal, TypeVar

from align import chat, leftout
from align.chat import CONTENT, END, Encoded, Refused
from align.errors import StageFailed
from align.out import Out
from align.rendering import SYSTEM, THOUGHTS, unwritten
from align.settings import Dialog
from align.tokenizing import template_hash

TooLong = Literal["drop", "turns", "stop"]
"""A stage's `too_long:`, for rows of more tokens than `trainer.max_length` or the model's context:
`drop` leaves them out, `turns` leaves out their oldest questions with the answers, and `stop` stops
the stage before it trains. Whatever is left out is counted; no answer is cut."""

READ = 256
"""So many rows are decoded and compared with their messages; the other checks are of all rows."""

_REMEDIES = {
    "too_long": " `too_long: drop` leaves them out, `too_long: turns` only their oldest turns.",
    "refused": "",
    **dict.fromkeys(
        ("begin", "end", "said", "prompt"),
        " The chat template and the tokenizer do not fit each other. Name another template: "
        "base: {chat_template: plain} works with every tokenizer.",
    ),
}

Row = dict[str, Any]
Turn = tuple[int, int, int]
Made = TypeVar("Made")


def shorter(dialog: Dialog) -> Iterator[Dialog]:
    """A dialog without its oldest exchange, without its two oldest, … down to its last one.

    An exchange is what a user asks and all that follows, calls and results of tools too. System
    prompts stay, wherever they are, and so does a first exchange that is only read (weight 0): that
    of `ghost` has the instruction which all the others follow.
    """
    head = next((i for i, m in enumerate(dialog) if m["role"] not in SYSTEM), len(dialog))
    starts = [
        i
        for i in range(head + 1, len(dialog))
        if dialog[i]["role"] == "user" and dialog[i - 1]["role"] != "user"
    ]
    first = [m for m in dialog[head : min(starts, default=head)] if m["role"] == "assistant"]
    if first and all(message.get("weight") == 0 for message in first):
        head = starts.pop(0)
    for i in starts:
        later = [message for message in dialog[head:i] if message["role"] in SYSTEM]
        yield dialog[:head] + later + dialog[i:]


@dataclass
class Learnable:
    """The rows of one data set on their way into a training, and what became of them.

    `fit` and `check` are asked for every row (or pair), `finish` after the last.
    """

    tokenizer: Any
    limit: int
    """The most tokens of a row."""
    too_long: TooLong
    out: Out
    prefix: str = ""
    """Of the counts: "eval." for held-out rows."""
    pairs: bool = False
    """No answer is learnt as it is: two are compared."""
    whole: bool = False
    """Every token is learnt, those of the prompts too."""

    rows: int = 0
    _left: Counter[str] = field(default_factory=Counter)
    """How many are left out here, by reason."""
    _before: Counter[str] = field(default_factory=Counter)
    """How many `out` had counted for other rows."""
    _begins: bool | None = None
    _most: int = 0
    """How often the template writes the begin-of-text token in one row, at most."""
    _faults: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By kind: the first, and how many more there are."""

    def __post_init__(self) -> None:
        added = self.tokenizer.added_tokens_decoder.values()
        self._before = self._dropped()
        special = [re.escape(str(token)) for token in added if token.special]
        self._markers = re.compile("|".join(special) or "$.")

    def fit(
        self,
        row: Row,
        dialog: Dialog,
        encode: Callable[[Dialog], Made],
        size: Callable[[Made], int],
    ) -> Made | None:
        """The dialog encoded, as much of it as fits; None: it is left out, and counted.

        Args:
            row: with its `id`.
            dialog: what may become shorter.
            encode: makes tokens of a dialog, or says why it cannot.
            size: how many tokens were made.
        """
        self.rows += 1
        try:
            made = encode(dialog)
            if (length := size(made)) <= self.limit:
                return made
            example = {"id": row["id"], "tokens": length, "limit": self.limit}
            if self.too_long == "stop":
                what = f"{length:,} tokens, and {self.limit:,} fit"
                self._fault("too_long", f"Row {row['id']} has {what}.")
                return None
            if self.too_long == "turns":
                ends = [end for end in shorter(dialog) if self.pairs or _teaches(end)]
                at = bisect_left(ends, True, key=lambda end: size(encode(end)) <= self.limit)
                if at < len(ends):
                    left = {"messages_left_out": len(dialog) - len(ends[at])}
                    self._count("shortened.turns", example={**example, **left})
                    return encode(ends[at])
        except Refused as refusal:
            if refusal.drop:
                self.drop(refusal.drop, {"id": row["id"]})
            else:
                self._fault("refused", f"Row {row['id']}: {refusal}")
            return None
        self.drop("too_long", example)
        return None

    def check(self, row: Row, before: Dialog, said: Dialog, encoded: Encoded) -> bool:
        """Whether anything can be learnt from a row; what is wrong with it stops `finish`.

        Args:
            row: with its `id`, and its `tools` where it has some.
            before: the messages that are not learnt, whoever said them.
            said: those after them, of which the assistant's are learnt.
            encoded: all of them.
        """
        answers = [message for message in said if chat.learnt(message)]
        turns = list(_turns(encoded))
        if not turns:
            self.drop("nothing_to_learn", {"id": row["id"]})
            return False
        self._begin(row, [*before, *said], encoded.ids)
        if len(turns) != len(answers) or not all(end for _, _, end in turns):
            ends = sum(bool(end) for _, _, end in turns)
            fact = f"{len(answers)} answers, and {ends} ends of answers in the loss."
            self._fault("end", f"Row {row['id']} has {fact}")
        elif self.rows <= READ:
            self._read(row, before, said, turns, encoded.ids)
        lost = unwritten(self.tokenizer, [*before, *said], len(before), row.get("tools"))
        self._count("answers.thoughts_not_written", lost, {"id": row["id"]})
        return True

    def tell(self, row: Row, before: Dialog, said: Dialog) -> None:
        """Count what a row has that is learnt, beside questions and answers."""
        answers = [message for message in said if chat.learnt(message)]
        dialog = [*before, *said]
        self._count("answers.learnt", len(answers))
        self._count("tool_calls.learnt", sum(len(m.get("tool_calls") or ()) for m in answers))
        self._count("tool_results", sum(m["role"] in ("tool", "ipython") for m in dialog))
        self._count("system_prompts", int(dialog[0]["role"] in SYSTEM))
        if any(self._markers.search(str(message.get("content"))) for message in dialog):
            self._count("markers_in_text", example={"id": row["id"]})

    def finish(self) -> None:
        """Say what was found.

        Raises:
            StageFailed: the template refuses rows, a check failed, or `stop` met a long row.
        """
        for fault, (first, more) in self._faults.items():
            others = f" So it is with {more:,} more." if more else ""
            raise StageFailed(f"{first}{others}{_REMEDIES.get(fault, '')}")
        noun = "pairs" if self.pairs else "rows"
        left = self._dropped() - self._before + (self._left if self.prefix else Counter())
        rows = self.rows + left.total() - self._left.total()
        for sentence in leftout.said(left, rows, noun, self._too_long()):
            self.out.say(f"{self.name()}: {sentence}")
        if self._counted("answers.learnt"):
            self.out.say(f"{self.name()}: {' '.join(self._found())}")

    def drop(self, reason: str, example: Row) -> None:
        """Count what is left out."""
        self._left[reason] += 1
        self._count(f"dropped.{reason}", example=example)

    def _dropped(self) -> Counter[str]:
        """What is left out as `out` has it by now, by reason: what is not even read, too."""
        counts = {reason: self.out.counts.get(f"dropped.{reason}") for reason in leftout.REASONS}
        return Counter({reason: entry["n"] for reason, entry in counts.items() if entry})

    def left_out(self) -> str:
        """What is left out, by reason: `too long: 3, nothing to learn: 1`."""
        return leftout.by_reason(self._left)

    def name(self) -> str:
        """The stage's key for the rows."""
        return "eval_data" if self.prefix else "data"

    def _too_long(self) -> tuple[str, str]:
        """The fact and the remedy, as the stage's settings are."""
        fact = f"they are longer than {self.limit:,} tokens"
        remedy = "Raise trainer.max_length as far as the model's context allows"
        if self.too_long == "turns":
            return f"{fact}, without their older turns, too", f"{remedy}."
        return fact, f"{remedy}, or leave out old turns: `too_long: turns`."

    def _begin(self, row: Row, dialog: Dialog, ids: list[int]) -> None:
        """See that all rows begin alike: with the begin-of-text token (once: chat.py), or not."""
        begins = ids[:1] == [self.tokenizer.bos_token_id]
        if begins and (times := ids.count(ids[0])) > self._most:
            in_it = str([dialog, row.get("tools")]).count(self.tokenizer.bos_token)
            self._most = max(self._most, times - in_it)
        if self._begins is None:
            self._begins = begins
        if begins != self._begins:
            self._fault("begin", f"Row {row['id']} begins otherwise than the rows before it.")

    def _read(
        self, row: Row, before: Dialog, said: Dialog, turns: list[Turn], ids: list[int]
    ) -> None:
        """Compare what is learnt with what was said, and the prompt with that of generation."""
        tools = row.get("tools")
        places = [i for i, message in enumerate(said) if chat.learnt(message)]
        for message, (start, end, _) in zip((said[i] for i in places), turns, strict=True):
            if not chat.says(self.tokenizer, message, ids[start:end], tools):
                what = self.tokenizer.decode(ids[start:end])[:80]
                self._fault(
                    "said", f"Row {row['id']} would teach {what!r}, which nobody says in it."
                )
        prompt = chat.prompt(self.tokenizer, [*before, *said[: places[0]]], tools)
        if ids[: turns[0][0]] != prompt:
            fact = "has another prompt in training than the model is given when it generates"
            self._fault("prompt", f"Row {row['id']} {fact}.")

    def _found(self) -> Iterator[str]:
        answers, begin = self._counted("answers.learnt"), self.tokenizer.bos_token
        learnt, what = "learnt", "and the prompts" if self.whole else "nothing of the prompts"
        if self.prefix or self.pairs:
            learnt, what = "read", "and not learnt" if self.prefix else "and compared in pairs"
        yield f"{answers:,} answers are {learnt}, each with the end of its turn, {what}."
        if self._begins:
            more = f", and the chat template writes it up to {self._most} times in one."
            yield f"Every row begins with {begin}{' once.' if self._most < 2 else more}"
        elif self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]:
            yield (
                f"No row begins with {begin}, as every text does for this tokenizer: the chat "
                "template does not write it. Nor will it when the model generates."
            )
        if calls := self._counted("tool_calls.learnt"):
            results = f"{self._counted('tool_results'):,} results of tools"
            of = f", {results} are {'too' if self.whole else 'not'}" if learnt == "learnt" else ""
            yield f"{calls:,} calls of tools are {learnt}{of or ' in them'}."
        if lost := self._counted("answers.thoughts_not_written"):
            yield (
                f"{lost:,} answers are {learnt} WITHOUT what was thought before them "
                f"({', '.join(THOUGHTS)}): the chat template does not write it."
            )
        if kept := self._counted("system_prompts"):
            yield f"{kept:,} system prompts are kept."
        if shortened := self._counted("shortened.turns"):
            yield f"Of {shortened:,} long rows the oldest turns are left out."
        if marked := self._counted("markers_in_text"):
            yield (
                f"{marked:,} rows have special tokens in what is said in them, which the model "
                "reads as its own markers."
            )
        if "strftime_now" in str(self.tokenizer.chat_template):
            yield f"The chat template writes a date: here always {chat.TODAY:%d %b %Y}."
        yield f"Chat template {str(template_hash(self.tokenizer))[:12]}."

    def _count(self, name: str, n: int = 1, example: Any = None) -> None:
        if n:
            self.out.count(self.prefix + name, n, example)

    def _counted(self, name: str) -> int:
        return int(self.out.counts.get(self.prefix + name, {"n": 0})["n"])

    def _fault(self, kind: str, sentence: str) -> None:
        first, more = self._faults.get(kind, (sentence, -1))
        self._faults[kind] = first, more + 1


def conversations(
    rows: Iterable[Row],
    tokenizer: Any,
    limit: int,
    out: Out,
    prefix: str,
    too_long: TooLong,
    whole: bool = False,
) -> Iterator[Encoded]:
    """Every conversation that can be learnt from, as tokens: see `Learnable`.

    Raises:
        StageFailed: there are rows and none is left, or see `Learnable`.
    """
    learnable = Learnable(tokenizer, limit, too_long, out, prefix, whole=whole)
    kept = 0
    rows, dialogs, tools = tee(rows, 3)
    encoded = chat.encode(
        tokenizer, (row["messages"] for row in dialogs), (row.get("tools") for row in tools)
    )
    for row, found in zip(rows, encoded, strict=True):

        def encode(messages: Dialog, row: Row = row, found: Any = found) -> tuple[Dialog, Encoded]:
            if messages is not row["messages"]:
                return messages, chat.encode_one(tokenizer, messages, row.get("tools"))
            if isinstance(found, Refused):
                raise found
            return messages, found

        made = learnable.fit(row, row["messages"], encode, lambda made: len(made[1].ids))
        if made and learnable.check(row, [], *made):
            learnable.tell(row, [], made[0])
            kept += 1
            yield made[1]
    learnable.finish()
    if learnable.rows and not kept:
        raise StageFailed(
            f"Of {learnable.rows:,} rows of `{learnable.name()}:` none can be learnt from "
            f"({learnable.left_out()}). {leftout.LOOK}"
        )


def _teaches(dialog: Dialog) -> bool:
    return any(map(chat.learnt, dialog))


def _turns(encoded: Encoded) -> Iterator[Turn]:
    """Where every answer that is learnt begins and ends, and how many tokens end its turn."""
    at, start = 0, None
    for kind, run in groupby(encoded.kinds):
        length = sum(1 for _ in run)
        if kind == END:
            yield (at if start is None else start), at, length
        elif start is not None:
            yield start, at, 0
        start = at if kind == CONTENT else None
        at += length
    if start is not None:
        yield start, at, 0
