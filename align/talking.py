"""A model in a dialog, whose answers are drawn as a `sample` stage draws them: `align chat`."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import named
from align.artifacts import Model, RewardModel
from align.errors import Problem, RecipeError, StageFailed
from align.settings import Dialog

if TYPE_CHECKING:
    from align.generation.generate import Completion

TEMPERATURE = 0.7
"""Where neither the person nor the model's generation_config.json says one."""


NO_TEXT = "This is no UTF-8 text."


def is_text(text: str) -> bool:
    """Whether a tokenizer can read it: a broken byte comes as one half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Asked:
    """What the person says about the answers."""

    temperature: float | None
    """0: greedy; None: the model's own."""

    max_new_tokens: int
    seed: int
    system: str | None
    """What the model is told before the dialog."""

    def problems(self) -> Iterator[Problem]:
        """What cannot be."""
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            message = "It must be 0 (the likeliest token at every place) or more."
            yield Problem(f"--temperature {self.temperature:g}", "", message)
        if not is_text(self.system or ""):
            yield Problem("--system", "", NO_TEXT)
        if self.max_new_tokens < 1:
            message = "An answer has at least one token."
            yield Problem(f"--max-new-tokens {self.max_new_tokens}", "", message)


class Talker:
    """A model in memory, and its side of the dialog."""

    def __init__(self, model: Model, template: str | None, asked: Asked) -> None:
        """Load it.

        Args:
            model: a language model.
            template: a chat template instead of its own.
            asked: how it answers.

        Raises:
            RecipeError: it has no chat template.
            StageFailed: see `models.load`.
        """
        from align import models
        from align.generation import generate

        self.name = model.name
        self.tokenizer = models.tokenizer(model)
        if template is not None:
            models.use_template(self.tokenizer, template)
        if self.tokenizer.chat_template is None:
            message = "It has no chat template. Name one: --chat-template chatml, or a jinja file."
            raise RecipeError([Problem(self.name, "", message)])
        self.network = generate.folded(models.load(model))
        self.context = generate.context(self.network)
        self.seed = asked.seed
        self.generation = _drawn(self.network.generation_config, asked)
        self.messages: Dialog = []
        self.begin(asked.system)
        self.draws = 0
        """How often the last question was answered before."""

        self.cut = ""
        """Where the last answer was cut, in words."""

    def about(self) -> str:
        """One line: what answers, and how."""
        dtype = str(self.network.dtype).removeprefix("torch.")
        how = {**self.generation}
        most, sampled = how.pop("max_new_tokens"), how.pop("do_sample")
        drawn = ", ".join(f"{key} {value:g}" for key, value in how.items()) if sampled else "greedy"
        return (
            f"{self.name}: {dtype} on {self.network.device.type}, {drawn}, at most {most:,} tokens "
            "an answer"
        )

    def begin(self, system: str | None = None) -> None:
        """Begin anew; `system` is what the model is told, None: what it was told before."""
        told = [message for message in self.messages if message["role"] == "system"]
        if system is not None:
            told = [{"role": "system", "content": system}] if system else []
        self.messages = told

    def ask(self, text: str) -> None:
        """The person's next turn, which `answer` answers."""
        self.messages.append({"role": "user", "content": text})
        self.draws = 0

    def answer(self) -> Iterator[str]:
        """What is said to the last question, as it is drawn; so much of it is in the dialog.

        Raises:
            StageFailed: see `prompt`.
        """
        from align.generation.streaming import pieces, stream

        prompt = self.prompt()
        turn = {"role": "assistant", "content": ""}
        self.messages.append(turn)
        drawn = stream(
            self.network,
            self.tokenizer,
            prompt,
            f"turn {len(self.messages)}",
            number=self.draws,
            seed=self.seed,
            generation=self.generation,
        )
        self.draws += 1
        for piece, answer in pieces(drawn):
            turn["content"] += piece
            self.cut = self._cut(len(prompt), answer)
            yield piece

    def _cut(self, before: int, answer: Completion) -> str:
        """Where an answer after so many tokens was cut, in words."""
        if answer.finish != "length":
            return ""
        if before + len(answer.token_ids) >= self.context:
            return f"(cut: {self.name} reads at most {self.context:,} tokens)"
        return "(cut at --max-new-tokens)"

    def prompt(self) -> list[int]:
        """Token ids of the dialog, up to where the answer begins.

        Raises:
            StageFailed: the model has no room left, or its template refuses the dialog.
        """
        from align import chat

        prompt = chat.prompt(self.tokenizer, self.messages)
        if len(prompt) >= self.context:
            what, remedy = "question", "Ask a shorter one."
            if len(self._questions()) > 1:
                remedy = "Leave out its oldest question with /forget, all of it with /clear, and "
                what, remedy = "dialog", f"{remedy}ask again."
            raise StageFailed(
                f"The {what} has {len(prompt):,} tokens, and {self.name} reads at most "
                f"{self.context:,}. {remedy}"
            )
        return prompt

    def again(self) -> bool:
        """Take back the last answer, for another one; whether there is a question to answer."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return bool(self._questions())

    def leave_out(self, place: int) -> str | None:
        """Leave out a question (0: the oldest, -1: the last) with its answer; returns it."""
        if not (questions := self._questions()):
            return None
        at = questions[place]
        question = str(self.messages[at]["content"])
        del self.messages[at : at + 2]
        return question

    def _questions(self) -> list[int]:
        return [i for i, message in enumerate(self.messages) if message["role"] == "user"]


def _drawn(config: Any, asked: Asked) -> dict[str, Any]:
    """How answers are drawn: as asked, else as the model's generation_config.json says."""
    found: dict[str, Any] = {"temperature": TEMPERATURE, "max_new_tokens": asked.max_new_tokens}
    for key in ("temperature", "top_k", "top_p", "min_p") if config.do_sample else ():
        if (value := getattr(config, key)) is not None:
            found[key] = value
    if asked.temperature is not None:
        found["temperature"] = asked.temperature
    found["do_sample"] = found["temperature"] > 0
    if not found["do_sample"]:
        del found["temperature"]
    return found


def load(words: Sequence[str], store: Path, template: str | None, asked: Asked) -> list[Talker]:
    """The models that words name, ready to answer.

    Raises:
        RecipeError: there is no such model, it is a reward model, or what is asked cannot be;
            before any model is loaded.
        StageFailed: see `models.load`.
    """
    problems = list(asked.problems())
    found = [named.model(word, store) for word in words]
    message = "This is a reward model, which scores answers and says none. Name a language model."
    for word, model in zip(words, found, strict=True):
        if isinstance(model, RewardModel):
            problems.append(Problem(word, "", message))
    if problems:
        raise RecipeError(problems)
    quiet()
    names = [model.name for model in found]
    for word, model in zip(words, found, strict=True):
        model.name = word if names.count(model.name) > 1 else model.name
    return [Talker(model, template, asked) for model in found]


def quiet() -> None:
    """What libraries say to their own developers has no place on a person's terminal.

    bitsandbytes warns on a CPU that a kernel of the hub is not there, transformers of what PEFT
    0.21 calls.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
