"""Rows as a stage trains on them: the tokens that its model reads, and which of them it learns.

They are made by the functions that the stage itself calls, before anything is trained, and no
weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from align import chat, models, training
from align.artifacts import Conversations, Model, Preferences, RewardModel, Rows
from align.chat import CONTENT, CONTEXT, END, Encoded, Refused
from align.errors import StageFailed
from align.estimate import totals
from align.learnable import Learnable, TooLong, conversations
from align.out import Out
from align.settings import Dialog, Stage

if TYPE_CHECKING:
    from align.recipe import Planned

Row = dict[str, Any]

READ, LEARNT, NLL, SCORED = "", "learnt", "nll", "scored"
"""What becomes of a token: it is only read; it is in the loss; of the losses of `dpo` it is in the
NLL term alone (`mask_format`); a reward model's score is read there."""

CHOSEN = "chosen"

LETTER = 8
"""Tokens that one character may be of: its bytes, and a beginning that is none."""


class Token(NamedTuple):
    """A piece of text that one token stands for, or several where they make one character."""

    text: str
    ids: list[int]
    mark: str
    special: bool


class Part(NamedTuple):
    """A stretch of tokens: a whole dialog (without a name), a prompt, an answer."""

    name: str
    tokens: list[Token]


class Seen(NamedTuple):
    """A row as it is trained on."""

    parts: list[Part]
    note: str
    """Why it is left out, or what of it is; empty where it is whole."""

    left_out: bool
    """Nothing is learnt of it, then, whatever the marks are."""

    def count(self, *marks: str) -> int:
        """How many tokens have one of these marks; without any, how many there are."""
        each = (token for part in self.parts for token in part.tokens)
        return sum(len(one.ids) for one in each if not marks or one.mark in marks)

    def row(self) -> Row:
        """As JSON."""
        found = 0 if self.left_out else self.count(LEARNT, NLL)
        return {"tokens": self.count(), "learnt": found, **self._asdict()}


See = Callable[[Row], Seen]


def see(one: Planned, kind: type[Rows]) -> See | None:
    """What makes of a row what a stage reads.

    None where that is not known, or is all of it: of documents, and of a stage of one's own.

    Raises:
        StageFailed: there is no tokenizer yet, or it has no chat template.
    """
    stage: Any = one.stage
    dialogs = issubclass(kind, (Conversations, Preferences)) and one.kind in totals.CONFIGS
    if not dialogs or not {"model", "trainer", "too_long"} <= type(stage).model_fields.keys():
        return None
    model = _ready(stage.model, one.name)
    asked = stage.trainer.get("max_length", totals.default(one.kind, "max_length"))
    limit, tokenizer = training.limit(asked, models.shape(model)), models.tokenizer(model)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    about = (tokenizer, limit, stage.too_long, special)
    if issubclass(kind, Conversations):
        return Reader(*about, _everything if stage.train_on == "all" else _learnt).conversation
    if isinstance(one.artifact, RewardModel):
        return Reader(*about, _scored).answers
    losses = stage.trainer.get("loss_type") or ()
    nll = "sft" in ([losses] if isinstance(losses, str) else losses)
    return Reader(*about, _preferred(stage.mask_format, nll)).answers


def _ready(model: Model, name: str) -> Model:
    """The model, or while it is not made the one it will be made from: they read the same tokens.

    Raises:
        StageFailed: none of them is made yet.
    """
    found: Any = model
    while isinstance(found.stage, Stage) and not found.path.is_dir():
        first, settings = found.name, dict(found.stage)
        found = settings.get("model") or next(iter(settings.get("models", ())), None)
        if found is None:
            raise StageFailed(
                f"What {name} reads is not known before {first} is made, which makes the "
                f"tokenizer. Make it: align run RECIPE {first}"
            )
    assert isinstance(found, Model)
    return found


# -- what becomes of every token -----------------------------------------------------------------

Learn = Callable[[str, Encoded], list[str]]
"""The marks of an answer's tokens (of its name and tokens), or of those of a whole dialog."""


def _learnt(_: str, encoded: Encoded) -> list[str]:
    return [READ if kind == CONTEXT else LEARNT for kind in encoded.kinds]


def _everything(_: str, encoded: Encoded) -> list[str]:
    return [LEARNT] * len(encoded.ids)


def _scored(_: str, encoded: Encoded) -> list[str]:
    """A reward model learns from its score alone, which it gives at the last token."""
    return [READ] * (len(encoded.ids) - 1) + [SCORED]


def _preferred(mask_format: bool, nll: bool) -> Learn:
    """The two masks of `dpo`: see align/preference.py."""

    def marks(name: str, encoded: Encoded) -> list[str]:
        end = LEARNT if not mask_format else NLL if nll and name == CHOSEN else READ
        mark = {CONTEXT: READ, CONTENT: LEARNT, END: end}
        return [mark[kind] for kind in encoded.kinds]

    return marks


# -- rows ----------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Reads rows as a stage does; one that is left out, too, where it can be tokens at all."""

    tokenizer: Any
    limit: int
    too_long: TooLong
    special: Container[int]
    learn: Learn

    def conversation(self, row: Row) -> Seen:
        """A whole dialog."""
        out = Out(Path(), Path(), main=False)
        found: list[Encoded] = []
        fault = ""
        try:
            how = (self.tokenizer, self.limit, out, "", self.too_long)
            found = list(conversations([row], *how))
        except StageFailed as failure:
            fault = str(failure)
        shown = found
        if not found:
            with suppress(Refused):
                shown = [chat.encode_one(self.tokenizer, row["messages"], row.get("tools"))]
        parts = [self._part("", one.ids, self.learn("", one)) for one in shown]
        return Seen(parts, _note(out, fault), not found)

    def answers(self, row: Row) -> Seen:
        """A prompt with its answers; of more than two any two are a pair."""
        names, answers = zip(*_answers(row), strict=True)
        out = Out(Path(), Path(), main=False)
        learnable = Learnable(self.tokenizer, self.limit, self.too_long, out)

        def encode(prompt: Dialog) -> list[tuple[list[int], Encoded]]:
            tools = row.get("tools")
            return [chat.answer(self.tokenizer, prompt, answer, tools) for answer in answers]

        def size(made: list[tuple[list[int], Encoded]]) -> int:
            return max(len(prompt) + len(answer.ids) for prompt, answer in made)

        shown = found = learnable.fit(row, row["prompt"], encode, size)
        fault = ""
        try:
            learnable.finish()
        except StageFailed as failure:
            fault = str(failure)
        if not found:
            with suppress(Refused):
                shown = encode(row["prompt"])
        parts = [self._part("prompt", ids, [READ] * len(ids)) for ids, _ in (shown or ())[:1]]
        for name, (_, answer) in zip(names, shown or (), strict=False):
            parts.append(self._part(name, answer.ids, self.learn(name, answer)))
        return Seen(parts, _note(out, fault, len(names) > 2), not found)

    def _part(self, name: str, ids: Sequence[int], marks: Sequence[str]) -> Part:
        tokens = []
        at = 0
        for text, length in pieces(self.tokenizer, ids):
            each = list(ids[at : at + length])
            tokens.append(Token(text, each, marks[at], each[0] in self.special))
            at += length
        return Part(name, tokens)


def _note(out: Out, fault: str, several: bool = False) -> str:
    """What became of a row, as the stage counts it."""
    name = next((name for name in out.counts if name.startswith("dropped.")), "")
    if fault and not name:
        return f"The stage stops here: {fault}"
    if shortened := out.counts.get("shortened.turns"):
        about = shortened["examples"][0]
        return (
            f"Its oldest {about['messages_left_out']} messages are left out: it has "
            f"{about['tokens']:,} tokens, and {about['limit']:,} fit."
        )
    if name == "dropped.too_long":
        about = out.counts[name]["examples"][0]
        what = "Pairs with its longest answer are" if several else "It is"
        return f"{what} left out: {about['tokens']:,} tokens, and {about['limit']:,} fit."
    reason = name.removeprefix("dropped.").replace("_", " ")
    return f"It is left out: {reason}." if reason else ""


def pieces(tokenizer: Any, ids: Sequence[int]) -> Iterator[tuple[str, int]]:
    """The text of each token, and how many tokens it is of: those of one character are together.

    A token alone may be decoded otherwise than after another one (without the space it begins
    with), so each is decoded together with the piece before it.
    """
    decode = tokenizer.backend_tokenizer.decode
    before, start, known = 0, 0, ""
    for end in range(1, len(ids) + 1):
        text = decode(ids[before:end], skip_special_tokens=False)
        if text.endswith("\ufffd") and end < len(ids) and end - start < LETTER:
            continue
        yield text[len(known) :], end - start
        before, start = start, end
        known = decode(ids[before:end], skip_special_tokens=False)


def _answers(row: Row) -> Iterator[tuple[str, Dialog]]:
    """The answers to a row's prompt by their names."""
    if "ranked" in row:
        yield from ((f"{place}.", one) for place, one in enumerate(row["ranked"], 1))
        return
    yield CHOSEN, row["chosen"]
    for answer in (row["rejected"], *row.get("also_rejected", ())):
        yield "rejected", answer
