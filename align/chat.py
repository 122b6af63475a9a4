"""Dialogs as tokens: rendered by the model's own template, and which tokens the assistant said.

The mask needs no `{% generation %}` tags in the template. A dialog is rendered once; it is rendered
again up to each of the assistant's turns, and each of these texts must be how the whole begins. So
a turn's place is known exactly, or the template is refused by name: never guessed.

    <|user|>2+2?<|end|><|assistant|>4<|end|>     ids, as the model sees them in training
    CONTEXT ........................            the prompt: what it is given when it generates
                                    CONTENT     what it says
                                     END        what ends its turn: it has to learn to stop
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from align.errors import StageFailed
from align.settings import Dialog

CONTEXT, CONTENT, END = 0, 1, 2

TEMPLATES = Path(__file__).parent / "templates"
"""Templates that a recipe names: `chat_template: chatml`."""


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


def template(name: str) -> str:
    """The text of a chat template: a file, or one that is shipped.

    Raises:
        StageFailed: there is neither.
    """
    file = Path(name).expanduser()
    shipped = TEMPLATES / f"{name}.jinja"
    for path in (file, shipped):
        if path.is_file():
            return path.read_text(encoding="utf-8").removesuffix("\n")
    names = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
    raise StageFailed(
        f'base.chat_template: "{name}" is neither a file nor a template of ours ({names}).'
    )


def render(tokenizer: Any, messages: Dialog, *, prompt: bool = False, tools: Any = None) -> str:
    """The text of a dialog; with `prompt`, up to where the assistant's next turn begins.

    Raises:
        StageFailed: there is no template, or it refuses the dialog.
    """
    import jinja2

    if tokenizer.chat_template is None:
        raise StageFailed(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template. "
            "Name one: base: {chat_template: chatml}, or a jinja file."
        )
    tools = json.loads(tools) if isinstance(tools, str) else tools
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=prompt, tokenize=False
        )
    except (jinja2.TemplateError, TypeError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise StageFailed(
            f"The chat template of {tokenizer.name_or_path} refuses a dialog of {roles}: {error}. "
            "Change those rows, or name another template: base: {chat_template: …}."
        ) from None
    assert isinstance(text, str)
    return text


def prompt(tokenizer: Any, messages: Dialog, tools: Any = None) -> list[int]:
    """Token ids of a dialog up to where the assistant's next turn begins."""
    text = render(tokenizer, messages, prompt=True, tools=tools)
    return list(_tokens(tokenizer, [text])[0].ids)


def encode(tokenizer: Any, dialogs: Iterable[Dialog], tools: Iterable[Any]) -> Iterator[Encoded]:
    """Every dialog as token ids, with what each is; `tools` has one entry (or None) per dialog.

    Raises:
        StageFailed: the template's turns cannot be told apart with certainty.
    """
    rows = zip(dialogs, tools, strict=True)
    while block := list(islice(rows, 256)):
        spans = [_spans(tokenizer, messages, tool) for messages, tool in block]
        encodings = _tokens(tokenizer, [text for text, _ in spans])
        for (_, turns), encoding in zip(spans, encodings, strict=True):
            yield _encoded(tokenizer, turns, encoding)


def encode_one(tokenizer: Any, messages: Dialog, tools: Any = None) -> Encoded:
    """One dialog: see `encode`."""
    return next(encode(tokenizer, [messages], [tools]))


def answer(
    tokenizer: Any, prompt: Dialog, answer: Dialog, tools: Any = None
) -> tuple[list[int], Encoded]:
    """A prompt's token ids, and what follows it: the ids and kinds of the answer.

    Turns of the assistant in the prompt are part of the prompt.
    """
    text, turns = _spans(tokenizer, [*prompt, *answer], tools, first=len(prompt))
    encoded = _encoded(tokenizer, turns, _tokens(tokenizer, [text])[0])
    cut = encoded.start
    return encoded.ids[:cut], Encoded(encoded.ids[cut:], encoded.kinds[cut:])


def end_of_turn(tokenizer: Any) -> int:
    """The id of the token that ends the assistant's turn: where generation must stop."""
    encoded = encode_one(tokenizer, [*_ASKED, {"role": "assistant", "content": "Hello"}])
    return next(i for i, kind in zip(encoded.ids, encoded.kinds, strict=True) if kind == END)


_ASKED: Dialog = [{"role": "user", "content": "Hi"}]

Turn = tuple[int, int, int]
"""Of an assistant's turn, in characters: where it begins, where its end token begins and ends."""


def _spans(tokenizer: Any, messages: Dialog, tools: Any, first: int = 0) -> tuple[str, list[Turn]]:
    """The whole text, and the assistant's turns in it from message `first` on."""
    ends = _end_tokens(tokenizer, tokenizer.chat_template)
    whole = render(tokenizer, messages, tools=tools)
    turns = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < first:
            continue
        before = render(tokenizer, messages[:i], prompt=True, tools=tools)
        is_last = i + 1 == len(messages)
        after = whole if is_last else render(tokenizer, messages[: i + 1], tools=tools)
        if not after.startswith(before):
            raise _refused(tokenizer, "its generation prompt is not how an answer begins")
        if not whole.startswith(after):
            raise _refused(tokenizer, f"it writes turn {i + 1} anew when the dialog goes on")
        said = after[len(before) :].rstrip()
        end = next((token for token in ends if said.endswith(token)), None)
        if end is None:
            raise _refused(
                tokenizer, f"no special token ends the assistant's turn ({said[-20:]!r})"
            )
        stop = len(before) + len(said)
        turns.append((len(before), stop - len(end), stop))
    return whole, turns


@lru_cache(maxsize=16)
def _end_tokens(tokenizer: Any, template: str) -> tuple[str, ...]:
    """Tokens that may end a turn; and a check of the template that is made once."""
    asked = render(tokenizer, _ASKED)
    prompted = render(tokenizer, _ASKED, prompt=True)
    answered = render(tokenizer, [*_ASKED, {"role": "assistant", "content": "Hello"}])
    if asked == prompted and not answered[len(asked) :].lstrip().startswith("Hello"):
        raise _refused(tokenizer, "it ignores add_generation_prompt, but answers have a header")
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(special | {tokenizer.eos_token}, key=len, reverse=True))


def _tokens(tokenizer: Any, texts: list[str]) -> list[Any]:
    """Encodings of rendered texts: the template has written the special tokens already."""
    encodings = tokenizer(texts, add_special_tokens=False, verbose=False).encodings
    if encodings is None:
        raise StageFailed(
            f"The tokenizer of {tokenizer.name_or_path} has no tokenizer.json, without which "
            "tokens cannot be told apart. Save it once with tokenizers (a fast tokenizer)."
        )
    return list(encodings)


def _encoded(tokenizer: Any, turns: list[Turn], encoding: Any) -> Encoded:
    """From places in the text to places in the tokens."""
    ids = encoding.ids
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise _refused(tokenizer, "it writes the begin-of-text token twice")
    kinds = [CONTEXT] * len(ids)
    for begin, end, stop in turns:
        start = next(t for t in map(encoding.char_to_token, range(begin, stop)) if t is not None)
        final = encoding.char_to_token(end)
        if encoding.token_to_chars(start)[0] < begin:
            raise _refused(tokenizer, "its generation prompt ends in the middle of a token")
        kinds[start:final] = [CONTENT] * (final - start)
        kinds[final] = END
    return Encoded(ids, kinds)


def _refused(tokenizer: Any, why: str) -> StageFailed:
    return StageFailed(
        f"The chat template of {tokenizer.name_or_path} cannot be trained on, because {why}. "
        "Name another one: base: {chat_template: chatml}, or a jinja file."
    )
