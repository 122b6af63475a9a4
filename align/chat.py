"""Dialogs as tokens: rendered by the model's own template, and which tokens the assistant said.

The mask needs no `{% generation %}` tags in the template. A dialog is rendered once; it is rendered
again up to each of the assistant's turns, and each of these texts must be how the whole begins. So
a turn's place is known exactly, or the template is refused by name: never guessed. Which public
templates this holds for is in docs/templates.md.

    <|user|>2+2?<|end|><|assistant|>4<|end|>     ids, as the model sees them in training
    CONTEXT ........................            the prompt: what it is given when it generates
                                    CONTENT     what it says
                                     END        what ends its turn: it has to learn to stop
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from align.errors import StageFailed
from align.rendering import NO_TEMPLATE, TODAY, Refused, dated, missing, render, uncalled
from align.settings import Dialog, Message

__all__ = [
    "CONTENT",
    "CONTEXT",
    "END",
    "NO_TEMPLATE",
    "TODAY",
    "Encoded",
    "Refused",
    "answer",
    "dated",
    "encode",
    "encode_one",
    "end_of_turn",
    "learnt",
    "prompt",
    "render",
    "says",
]

CONTEXT, CONTENT, END = 0, 1, 2


@dataclass(frozen=True)
class Encoded:
    """A dialog's token ids, and for each whether it is CONTEXT, CONTENT or END."""

    ids: list[int]
    kinds: list[int]

    @property
    def labels(self) -> list[int]:
        """The ids, with -100 for what the assistant did not say."""
        return [i if kind else -100 for i, kind in zip(self.ids, self.kinds, strict=True)]

    @property
    def start(self) -> int:
        """How many tokens come before the assistant's first."""
        return next(i for i, kind in enumerate(self.kinds) if kind)


def prompt(tokenizer: Any, messages: Dialog, tools: Any = None) -> list[int]:
    """Token ids of a dialog up to where the assistant's next turn begins."""
    text = render(tokenizer, messages, prompt=True, tools=tools)
    return list(_tokens(tokenizer, [text])[0].ids)


def encode(
    tokenizer: Any, dialogs: Iterable[Dialog], tools: Iterable[Any]
) -> Iterator[Encoded | Refused]:
    """Every dialog as token ids, with what each is; `tools` has one entry (or None) per dialog.

    A dialog that cannot be one comes as its refusal, so that whoever reads many can count them.

    Raises:
        StageFailed: the template itself cannot be trained on.
    """
    rows = zip(dialogs, tools, strict=True)
    while block := list(islice(rows, 256)):
        spans: list[tuple[str, list[Turn]] | Refused] = []
        for messages, tool in block:
            try:
                spans.append(_spans(tokenizer, messages, tool))
            except Refused as refusal:
                spans.append(refusal)
        pieces = [[] if isinstance(s, Refused) else _pieces(tokenizer, *s) for s in spans]
        texts = [text for row in pieces for text, _ in row]
        encodings = iter(_tokens(tokenizer, texts) if texts else ())
        for span, row in zip(spans, pieces, strict=True):
            if isinstance(span, Refused):
                yield span
                continue
            try:
                encoded = _encoded(tokenizer, row, list(islice(encodings, len(row))))
            except Refused as refusal:
                yield refusal
            else:
                yield encoded


def encode_one(tokenizer: Any, messages: Dialog, tools: Any = None) -> Encoded:
    """One dialog: see `encode`.

    Raises:
        Refused: it cannot be one.
    """
    return _encode(tokenizer, *_spans(tokenizer, messages, tools))


def answer(
    tokenizer: Any, prompt: Dialog, answer: Dialog, tools: Any = None, *, whole: bool = True
) -> tuple[list[int], Encoded]:
    """A prompt's token ids, and what follows it: the ids and kinds of the answer.

    Turns of the assistant in the prompt are part of the prompt. What is only read, not learnt, need
    not be `whole`: the template may leave out what was thought.

    Raises:
        Refused: nothing in the answer is learnt, or it cannot be one.
    """
    dialog = [*prompt, *answer]
    spans = _spans(tokenizer, dialog, tools, first=len(prompt), whole=whole)
    if not spans[1]:
        message = "An answer has no turn of the assistant, or none but with the weight 0."
        raise Refused(message, drop="nothing_to_learn")
    encoded = _encode(tokenizer, *spans)
    cut = encoded.start
    return encoded.ids[:cut], Encoded(encoded.ids[cut:], encoded.kinds[cut:])


def learnt(message: Message) -> bool:
    """Whether a message is one to learn: the assistant's, unless its `weight` is 0.

    So do OpenAI's files for fine-tuning mark answers that are only context.

    Raises:
        Refused: its weight is another number than 0 or 1.
    """
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise Refused(
            f"An answer has the weight {weight!r}: it is 1 where it is learnt, as without the key, "
            "and 0 where it is only read."
        )
    return bool(message["role"] == "assistant" and weight)


def says(tokenizer: Any, message: Message, ids: list[int], tools: Any = None) -> bool:
    """Whether the CONTENT tokens of a turn are, decoded, what its message says and calls."""
    if isinstance(content := message.get("content"), str):  # a tokenizer may change letters
        again = tokenizer(content, add_special_tokens=False, verbose=False).input_ids
        message = {**message, "content": tokenizer.decode(again)}
    return missing(message, tokenizer.decode(ids), _known(tokenizer, tools).head) is None


def end_of_turn(tokenizer: Any) -> int:
    """The id of the token that ends the assistant's turn: where generation must stop."""
    encoded = encode_one(tokenizer, [*_ASKED, _HELLO])
    return encoded.ids[len(encoded.kinds) - 1 - encoded.kinds[::-1].index(END)]


_ASKED: Dialog = [{"role": "user", "content": "Hi"}]
_HELLO: Message = {"role": "assistant", "content": "Hello"}
_TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}

Turn = tuple[int, int, int]
"""Of an assistant's turn, in characters: where it begins, where its end token begins and ends."""


@dataclass(frozen=True)
class _Turns:
    """What a template writes around what the assistant says, in its last turn."""

    head: str
    """After the generation prompt: the model has to learn to say it."""

    end: str
    """The special tokens right after it."""


def _spans(
    tokenizer: Any, messages: Dialog, tools: Any, first: int = 0, whole: bool = True
) -> tuple[str, list[Turn]]:
    """The whole text, and the turns in it that are learnt, from message `first` on."""
    known = _known(tokenizer, tools)
    end = known.end
    text = render(tokenizer, messages, tools=tools)
    if _begins(tokenizer, text) - _begins(tokenizer, str(messages[0].get("content"))) > 1:
        raise _refused(tokenizer, "it writes the begin-of-text token twice")
    turns = []
    for i, message in enumerate(messages):
        if i < first or not learnt(message):
            if lost := uncalled(message, text):
                raise _refused(tokenizer, f"it does not write {lost}")
            continue
        before = render(tokenizer, messages[:i], prompt=True, tools=tools)
        is_last = i + 1 == len(messages)
        after = text if is_last else render(tokenizer, messages[: i + 1], tools=tools)
        if not after.startswith(before):
            raise _refused(tokenizer, "its generation prompt is not how an answer begins")
        final = after.rfind(end, len(before))
        if final < 0:
            raise _refused(tokenizer, f'"{end}" does not end every turn of the assistant')
        if lost := missing(message, after[len(before) : final], known.head, whole):
            raise _refused(tokenizer, f"it does not write {lost}")
        stop = final + len(end)
        if not text.startswith(after[:stop]):
            ends = text.startswith(after[:final])
            why = f"{end!r} does not end an answer that is not the last"
            anew = f"it writes turn {i + 1} anew when the dialog goes on"
            raise _refused(tokenizer, why if ends else anew, "Or give every answer its own row.")
        turns.append((len(before), final, stop))
    return text, turns


def _begins(tokenizer: Any, text: str) -> int:
    """How often a text begins with the begin-of-text token, whatever spaces are between."""
    token, found = tokenizer.bos_token, 0
    while token and (text := text.lstrip()).startswith(token):
        text, found = text.removeprefix(token), found + 1
    return found


def _known(tokenizer: Any, tools: Any) -> _Turns:
    template = str(tokenizer.chat_template)  # some have several, in a dict
    return _turns(tokenizer, template, bool(tools) and tools != "[]")


@lru_cache(maxsize=16)
def _turns(tokenizer: Any, template: str, with_tools: bool) -> _Turns:
    """What is around "Hello" as the last answer.

    Raises:
        StageFailed: nothing ends it, or the template has no generation prompt.
    """
    tools = [_TOOL] if with_tools else None  # some templates want tools in every dialog
    asked, prompted = (render(tokenizer, _ASKED, prompt=on, tools=tools) for on in (False, True))
    before, found, tail = render(tokenizer, [*_ASKED, _HELLO], tools=tools).rpartition("Hello")
    if not found:
        why = "it does not write what the assistant says as it is"
        raise StageFailed(_untrainable(tokenizer, why))
    header = before[len(asked) :].strip()
    if asked == prompted and header:
        raise StageFailed(_untrainable(tokenizer, f"{header!r} is not in its generation prompt"))
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    run = "|".join(map(re.escape, sorted(special | {tokenizer.eos_token}, key=len, reverse=True)))
    end = re.match(rf"\s*((?:{run})+)", tail)
    if end is None:
        mark = (tail.split() or [""])[0]
        why = f", and {mark!r} is none of its tokenizer's" if mark else ""
        raise StageFailed(
            _untrainable(tokenizer, f"no special token ends the assistant's turn{why}")
        )
    amid = render(tokenizer, [*_ASKED, _HELLO, *_ASKED], tools=tools).rpartition("Hello")[2]
    if len(re.findall(run, end[1])) > 1 and not amid.startswith(end[0]):
        why = "it begins another turn after the last answer"
        raise StageFailed(_untrainable(tokenizer, why))
    return _Turns(before.removeprefix(prompted), end[1])


def _tokens(tokenizer: Any, texts: list[str]) -> list[Any]:
    """Encodings of rendered texts: the template has written the special tokens already."""
    encodings = tokenizer(texts, add_special_tokens=False, verbose=False).encodings
    if encodings is None:
        raise StageFailed(
            f"The tokenizer of {tokenizer.name_or_path} has no tokenizer.json, without which "
            "tokens cannot be told apart. Save it once with tokenizers (a fast tokenizer)."
        )
    return list(encodings)


Piece = tuple[str, list[Turn]]
"""A part of a text that is tokenized by itself, and the turns that are learnt in it."""


def _pieces(tokenizer: Any, text: str, turns: list[Turn]) -> list[Piece]:
    """A text cut where the answers begin that are learnt.

    When the model generates, its prompt ends there, and so must a token: a newline of the header
    and one that the answer begins with would else be one, which no generation sees. A tokenizer
    that begins every text with a space gets the whole.
    """
    if not turns or not _joins(tokenizer):
        return [(text, turns)]
    ends = [*(begin for begin, _, _ in turns[1:]), len(text)]
    return [(text[: turns[0][0]], [])] + [
        (text[begin:cut], [(0, end - begin, stop - begin)])
        for (begin, end, stop), cut in zip(turns, ends, strict=True)
    ]


@lru_cache(maxsize=16)
def _joins(tokenizer: Any) -> bool:
    """Whether the tokens of two parts are those of the text, another split of it at most."""
    parts = [encoding.ids for encoding in _tokens(tokenizer, ["a\n", "b", "a\nb"])]
    return bool(tokenizer.decode(parts[0] + parts[1]) == tokenizer.decode(parts[2]))


def _encode(tokenizer: Any, text: str, turns: list[Turn]) -> Encoded:
    pieces = _pieces(tokenizer, text, turns)
    return _encoded(tokenizer, pieces, _tokens(tokenizer, [text for text, _ in pieces]))


def _encoded(tokenizer: Any, pieces: list[Piece], encodings: list[Any]) -> Encoded:
    """From places in the text to places in the tokens."""
    ids = [i for encoding in encodings for i in encoding.ids]
    kinds: list[int] = []
    for (_, turns), encoding in zip(pieces, encodings, strict=True):
        kinds += _kinds(tokenizer, encoding, turns)
    return Encoded(ids, kinds)


def _kinds(tokenizer: Any, encoding: Any, turns: list[Turn]) -> list[int]:
    kinds = [CONTEXT] * len(encoding.ids)
    for begin, end, stop in turns:
        start = next(t for t in map(encoding.char_to_token, range(begin, stop)) if t is not None)
        final, last = encoding.char_to_token(end), encoding.char_to_token(stop - 1)
        if encoding.token_to_chars(start)[0] < begin:
            raise Refused(
                f"With the chat template of {tokenizer.name_or_path}, a token reaches from a "
                "prompt into its answer. Let the answer begin without spaces and newlines.",
                drop="answer_begins_inside_a_token",
            )
        kinds[start:final] = [CONTENT] * (final - start)
        kinds[final : last + 1] = [END] * (last + 1 - final)
    return kinds


def _refused(tokenizer: Any, why: str, remedy: str = "") -> Refused:
    return Refused(" ".join([_untrainable(tokenizer, why), remedy]).rstrip())


def _untrainable(tokenizer: Any, why: str) -> str:
    return (
        f"The chat template of {tokenizer.name_or_path} cannot be trained on, because {why}. "
        "Name another one: base: {chat_template: plain} works with every tokenizer."
    )
