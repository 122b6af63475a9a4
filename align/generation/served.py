"""Answers from a served model: as many as are wanted, and what was said is never asked again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align import chat
from align.artifacts import Model
from align.errors import StageFailed
from align.generation import noise, replies
from align.generation.decoding import OPTIONS
from align.generation.dialects import DIALECTS, Options
from align.generation.endpoint import Client, Endpoint, Refused, ask_all
from align.generation.generate import Completion
from align.generation.notes import Notes
from align.generation.replies import Choice
from align.out import Out
from align.settings import Dialog

GREEDY = 3
"""Pairs of greedy answers that are asked for: one is the same, though near ties can part some."""

FEWER = 3
"""So many times in a row a server may leave out answers that it was asked for."""

REFUSED = 32
"""From so many refused prompts on, more than half of all is too many."""

PROBE: Dialog = [{"role": "user", "content": "Tell me something about the weather."}]
"""What a server is asked first, twice in one request, 16 tokens at temperature 2: answers that are
the same come from a server that copies them."""


@dataclass(frozen=True)
class Request:
    """What is asked for one prompt; `prompt` are its tokens, `options` all those of decoding."""

    id: str
    prompt: list[int]
    dialog: Dialog
    tools: Any
    wanted: range
    seed: int
    options: Options


class Served:
    """A served model: it is seen that it is served, and how its server is asked; then it answers.

    `context` is the most tokens the model can attend to; `out` counts what gets no answer. `facts`
    is for `metrics.json`: what was found out about the server.

    Raises:
        StageFailed: no server, another model, another template, a key that is missing or wrong.
    """

    def __init__(
        self, endpoint: Endpoint, model: Model, tokenizer: Any, context: int, out: Out
    ) -> None:
        self.endpoint = endpoint
        self.tokenizer = tokenizer
        self.name = endpoint.model or served_name(model)
        self.context = context
        self.out = out
        self.at_once = True
        """Whether the server gives several answers to one request."""

        self._dialect: Callable[[Options, list[int]], Options] = DIALECTS[0]
        self._given = self._answered = self._refused = 0
        """Prompts for the server to answer, and those it has answered and refused."""

        self._ends = sorted({tokenizer.eos_token_id, chat.end_of_turn(tokenizer)} - {None})
        self.facts: dict[str, Any] = {
            "url": endpoint.url,
            "served": self.name,
            "send": endpoint.send,
            "probe": endpoint.probe,
            "same_draw": False,
        }
        for _ in ask_all(endpoint, lambda client: [self._meet(client)]):
            pass
        if endpoint.probe == "local":
            from align.generation import probe

            self.facts |= probe.check(self, model)

    def generate(
        self,
        prompts: Sequence[list[int]],
        ids: Sequence[str],
        *,
        dialogs: Sequence[Dialog],
        tools: Sequence[Any] | None = None,
        n: int = 1,
        first: int = 0,
        seed: int = 0,
        generation: Options | None = None,
        kept: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Ask for `n` answers to every prompt; yields (the prompt's index, its answers).

        A prompt that the server refuses has the answers that were got, mostly none; it is counted
        as `dropped.refused`, with what was said.

        Args:
            prompts: token ids of each prompt; those of `send: messages` say how long it is.
            ids: of each prompt, unique.
            dialogs: the prompts as messages.
            tools: of each prompt, or None.
            n: answers per prompt.
            first: index of the first of them.
            seed: the answers' seeds derive from it, the prompt's id and the index.
            generation: options of `GenerationConfig`, those in decoding.py.
            kept: a file for the answers as they come. Those it holds are not asked for again.
            progress: called with the number of tokens got so far.

        Raises:
            StageFailed: see `Client.post`; an option that the server does not have; no answers
                several times in a row; 32 prompts refused, or too long, and more than half of all.
        """
        options = {**OPTIONS, **(generation or {})}
        self._dialect(options, [])  # what the server cannot do is said before it is asked
        notes = Notes(kept)
        wanted = range(first, first + n)
        asked = [
            Request(*row, wanted, seed, options)
            for row in zip(ids, prompts, dialogs, tools or [None] * len(ids), strict=True)
        ]
        long = sum(len(prompt) >= self.context for prompt in prompts)
        if long >= REFUSED and 2 * long > len(prompts):
            raise StageFailed(
                f"{long} of {len(prompts)} prompts leave no room for an answer in the "
                f"{self.context} tokens that {self.endpoint.url} reads. Serve it with more (vLLM: "
                "--max-model-len), or leave them out."
            )
        self._given += len(prompts) - long
        got = 0
        for i, answers in ask_all(
            self.endpoint, lambda client: [self._answers(client, notes, one) for one in asked]
        ):
            got += sum(len(answer.token_ids) for answer in answers)
            if progress is not None:
                progress(got)
            yield i, answers

    async def _answers(self, client: Client, notes: Notes, asked: Request) -> list[Completion]:
        """One prompt's answers: those that are known, and the missing until none is."""
        known = notes.answers.setdefault(asked.id, {})
        if len(asked.prompt) >= self.context:
            self._drop(notes, asked.id, f"{len(asked.prompt)} of {self.context} tokens")
            return []
        idle = 0
        while missing := [k for k in asked.wanted if k not in known]:
            groups = [missing] if self.at_once else [[k] for k in missing]
            try:
                ends = await asyncio.gather(*(self._ask(client, notes, asked, g) for g in groups))
                idle = idle + 1 if len(missing) == sum(k not in known for k in missing) else 0
                if idle == FEWER and (how := set().union(*ends)) == {"content_filter"}:
                    raise Refused("It filters every answer")
                if idle == FEWER:
                    raise self._silent(how, f'"{asked.id}", {FEWER} times in a row')
            except Refused as refusal:
                self._drop(notes, asked.id, str(refusal))
                self._refuse(str(refusal))
                break
        else:
            self._answered += 1
        return [known[k] for k in asked.wanted if k in known]

    async def _ask(
        self, client: Client, notes: Notes, asked: Request, group: list[int]
    ) -> set[str]:
        """One request for the answers of a group, noted as far as they came; how others ended."""
        choices = await client.post(self._path, self._body(asked, group), self._choices)
        if len(choices) == 1 < len(group):
            self.at_once = False
        whole = [choice for choice in choices if not isinstance(choice, str)]
        for k, (text, token_ids, logprob, finish) in zip(group, whole, strict=False):
            notes.add(asked.id, Completion(k, text, token_ids, logprob, finish))
        return {choice for choice in choices if isinstance(choice, str)}

    def _silent(self, ends: set[str], to: str) -> StageFailed:
        sent = f"texts that are null or end with {', '.join(sorted(ends))}" if ends else "none"
        return StageFailed(
            f"{self.endpoint.url} gives no answer to {to}: it sends {sent}. Look at its log, and "
            "serve it without a parser that takes text out of answers; what it has said is kept, "
            "and the same command goes on."
        )

    def _drop(self, notes: Notes, id: str, reason: str) -> None:
        notes.refuse(id, reason)
        self.out.count("dropped.refused", example={"id": id, "said": reason})

    def _refuse(self, reason: str) -> None:
        """Stop where more than half are refused, whatever comes of those it has in hand."""
        self._refused += 1
        left = self._given - self._answered - self._refused
        in_hand = min(left, self.endpoint.concurrency)
        if self._refused >= REFUSED and self._refused > self._answered + in_hand:
            raise StageFailed(
                f"{self.endpoint.url} has refused {self._refused} prompts and answered "
                f"{self._answered}. It says: {reason}."
            )

    # What goes over the wire

    @property
    def _path(self) -> str:
        return "/completions" if self.endpoint.send == "tokens" else "/chat/completions"

    def _body(self, asked: Request, group: list[int]) -> Options:
        options, room = asked.options, self.context - len(asked.prompt)
        options = options | {"max_new_tokens": min(options["max_new_tokens"], room)}
        body = {
            "model": self.name,
            "n": len(group),
            "max_tokens": options["max_new_tokens"],
            "temperature": options["temperature"] if options["do_sample"] else 0.0,
            "top_p": options["top_p"] if options["do_sample"] else 1.0,
            # 31 bits, which every server takes
            "seed": noise.row_seed(asked.seed, asked.id, group[0]) & 0x7FFFFFFF,
            **self._dialect(options, self._stops(options)),
        }
        if self.endpoint.send == "tokens":
            return {**body, "prompt": asked.prompt, "logprobs": 1}
        tools = json.loads(asked.tools) if isinstance(asked.tools, str) else asked.tools
        named = {"tools": tools} if tools else {}
        return {**body, "messages": asked.dialog, "logprobs": True, **named}

    def _stops(self, options: Options) -> list[int]:
        """What ends an answer besides what the server knows: the end of a turn in our template."""
        named = options["eos_token_id"]
        if named is None:
            return self._ends
        return [named] if isinstance(named, int) else list(named)

    def _choices(self, reply: Any) -> list[Choice | str]:
        return [replies.read(choice, self.tokenizer) for choice in reply["choices"]]

    def _both(self, reply: Any) -> tuple[Any, list[Choice | str]]:
        return reply, self._choices(reply)

    # The first request

    async def _meet(self, client: Client) -> None:
        """See that the model is served, and learn in which words it is asked."""
        names = await client.models()
        if names is None:
            self.facts["listed"] = False
            if self.endpoint.probe == "name":
                self.facts["probe"] = None
                self.out.say(
                    f"{self.endpoint.url} does not say which model it serves: nothing shows that "
                    f"it is {self.name}. engine: {{url: …, probe: local}} compares its answers."
                )
        else:
            if self.name not in names:
                raise StageFailed(self._another(list(names)))
            told = names[self.name] or max(filter(None, names.values()), default=self.context)
            self.context = min(self.context, told)  # vLLM says it of the base, not of an adapter
        prompt = chat.prompt(self.tokenizer, PROBE)
        options = {**OPTIONS, "temperature": 2.0, "max_new_tokens": 16}
        asked = Request("probe", prompt, PROBE, None, range(2), 0, options)
        said = ""
        for self._dialect in DIALECTS:
            try:
                reply, choices = await client.post(
                    self._path, self._body(asked, [0, 1]), self._both
                )
                break
            except Refused as refusal:
                said = str(refusal)
        else:
            remedy = " Try `send: messages`." if self.endpoint.send == "tokens" else ""
            raise StageFailed(f"{self.endpoint.url} refuses a plain request: {said}.{remedy}")
        self._learn(prompt, reply, choices)
        await self._obeys(client, asked)

    async def _obeys(self, client: Client, asked: Request) -> None:
        """See that a request's own options count, at temperature 2 and greedily.

        `transformers serve --continuous-batching` (5.23) takes those of its first request for all.
        """
        hot = await self._pair(client, asked)
        greedy = replace(asked, options={**asked.options, "do_sample": False})
        for _ in range(GREEDY):
            cold = await self._pair(client, greedy)
            if cold[0] == cold[1] and hot[0] != hot[1]:
                return
        fact = "are the same at temperature 2" if hot[0] == hot[1] else "differ when greedy"
        raise StageFailed(
            f"{self.endpoint.url} does not draw as a request says: its answers {fact}. Run "
            "transformers serve without --continuous-batching; look at another server's options."
        )

    async def _pair(self, client: Client, asked: Request) -> list[str]:
        """The texts of two answers, asked for one by one."""
        bodies = [self._body(asked, [k]) for k in asked.wanted]
        answers = [await client.post(self._path, body, self._choices) for body in bodies]
        return [self._first(choices)[0] for choices in answers]

    def _first(self, choices: list[Choice | str]) -> Choice:
        if not choices or isinstance(choices[0], str):
            raise self._silent({str(choice) for choice in choices[:1]}, "a plain question")
        return choices[0]

    def _another(self, names: list[str]) -> str:
        return (
            f"{self.endpoint.url} serves {', '.join(names[:8]) or 'nothing'}, and not {self.name}. "
            "Serve it under that name (vLLM: --lora-modules NAME=DIRECTORY, --served-model-name "
            "NAME), or say which of them it is: engine: {url: …, model: NAME}."
        )

    def _learn(self, prompt: list[int], reply: Any, choices: list[Choice | str]) -> None:
        """What the first reply shows: the prompt as it was read, and what answers come with."""
        answer = self._first(choices)
        first = reply["choices"][0]
        read = first.get("prompt_token_ids") or reply.get("prompt_token_ids")
        count = (reply.get("usage") or {}).get("prompt_tokens")
        # some count a prompt once for each of its two answers
        if read not in (None, prompt) or count not in (None, len(prompt), 2 * len(prompt)):
            raise StageFailed(
                f"{self.endpoint.url} reads a prompt of {len(prompt)} tokens as {count}: its "
                "tokenizer or chat template is another. `send: tokens` sends it as it is trained; "
                "vLLM takes a template with --chat-template."
            )
        self.at_once = len(choices) == 2 and choices[0] != choices[1]
        self.facts["token_ids"] = (
            "tokenized again" if replies.token_ids(first) is None else "its own"
        )
        self.facts["logprob"] = None if answer[2] is None else "its own"


def served_name(model: Model) -> str:
    """What a model should be served as: its key, or for a base its path or hub id."""
    made = model.stage is not None or (model.path / "model.json").is_file()
    return model.key if made else str(model.spec()["base"]["path"])
