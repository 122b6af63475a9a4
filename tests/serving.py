"""A server of OpenAI's API on loopback, with a switch for everything a server may do wrong."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], str]
"""Status, headers, body."""

VLLM = {"top_k", "min_p", "min_tokens", "repetition_penalty", "stop_token_ids", "return_token_ids"}


def busy(status: int = 503, said: str = "try again") -> Reply:
    """A refusal for a moment."""
    return status, {"retry-after": "0.01"}, json.dumps({"error": {"message": said}})


@dataclass
class Fake:
    """What the server does; the tests turn its switches while it runs."""

    tokenizer: Any = None
    names: list[str] | None = None
    """What /models lists; None: it answers 500, as `transformers serve` with an empty cache."""

    context: int | None = None
    """How many tokens its models read, where it says so."""

    key: str | None = None
    """What it wants to be asked with."""

    most: int = 100
    """How many answers it gives to one request."""

    copies: bool = False
    """Whether the answers of one request are all the same."""

    obeys: bool = True
    """Whether temperature 0 is greedy."""

    token_ids: bool = True
    logprobs: bool = True
    refuses: set[str] = field(default_factory=set)
    """Fields of a request that it refuses."""

    longest: int = 10_000
    """Prompts of more tokens (or characters) are refused."""

    extra: int = 0
    """Tokens it puts before every prompt: a second beginning-of-text is 1."""

    finish: str | None = "stop"
    limit: int | None = None
    """After so many requests its replies have no answers."""

    troubles: list[Reply] = field(default_factory=list)
    """What it answers first, one a request."""

    say: Callable[[dict[str, Any], int], str] | None = None
    """The text of an answer, from the request and the answer's place in it."""

    draw: Callable[[list[int]], tuple[list[int], float]] | None = None
    """Token ids and log-probability of an answer, from the prompt's token ids."""

    wait: threading.Event | None = None
    """Answers only come when it is set."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    """The requests that were answered or refused, as they came."""

    url: str = ""
    at_once: int = 0
    """The most requests that it had in hand at a time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    _in_hand: int = 0

    def models(self) -> Reply:
        if self.names is None:
            return 500, {}, "{}"
        return (
            200,
            {},
            json.dumps(
                {"data": [{"id": name, "max_model_len": self.context} for name in self.names]}
            ),
        )

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        with self.lock:
            self.asked.append(body)
            self._in_hand += 1
            self.at_once = max(self.at_once, self._in_hand)
            trouble = self.troubles.pop(0) if self.troubles else None
        try:
            return trouble or self.answered(path, body)
        finally:
            with self.lock:
                self._in_hand -= 1

    def answered(self, path: str, body: dict[str, Any]) -> Reply:
        if self.wait is not None:
            self.wait.wait(30)
        if found := self.refuses & body.keys():
            return 400, {}, json.dumps({"error": {"message": f"unknown: {sorted(found)}"}})
        chat = path.endswith("/chat/completions")
        prompt = self._prompt(body) if chat else body["prompt"]
        if len(prompt) > self.longest:
            return 400, {}, json.dumps({"error": {"message": f"{len(prompt)} tokens are too many"}})
        spent = self.limit is not None and len(self.asked) > self.limit
        most = 0 if spent else min(self.most, body.get("n", 1))
        made = [self._choice(chat, body, prompt, k) for k in range(most)]
        usage = {"prompt_tokens": len(prompt) + self.extra}
        return 200, {}, json.dumps({"choices": made, "usage": usage})

    def _prompt(self, body: dict[str, Any]) -> Any:
        if self.tokenizer is None:
            return "".join(message["content"] for message in body["messages"])
        return self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=False
        )

    def _choice(self, chat: bool, body: dict[str, Any], prompt: Any, k: int) -> dict[str, Any]:
        if body["temperature"] == 0 and self.obeys:
            body, k = {**body, "seed": 0}, 0
        if self.say is not None:
            return {"index": k, "finish_reason": self.finish, **_said(chat, self.say(body, k))}
        if self.draw is not None and body["temperature"] == 0:
            ids, logprob = self.draw(prompt)
        else:
            drawn = random.Random(f"{body['seed']} {0 if self.copies else k} {prompt}")
            letters = self.tokenizer("abcdefgh ", add_special_tokens=False)["input_ids"]
            ids = [drawn.choice(letters) for _ in range(min(body["max_tokens"], 12))]
            ids, logprob = [*ids, 6], -1.5 * (len(ids) + 1)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        choice = {"index": k, "finish_reason": self.finish, **_said(chat, text)}
        if self.token_ids and body.get("return_token_ids"):
            choice["token_ids"] = ids
        if self.logprobs and chat:
            choice["logprobs"] = {"content": [{"logprob": logprob / len(ids)} for _ in ids]}
        elif self.logprobs:
            choice["logprobs"] = {"token_logprobs": [logprob / len(ids) for _ in ids]}
        return choice


def _said(chat: bool, text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}} if chat else {"text": text}


@contextmanager
def serve(fake: Fake) -> Iterator[Fake]:
    """The server, while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer's body waits 40 ms for its headers

        def do_GET(self) -> None:
            self.answer(fake.models() if self.allowed() else busy(401, "wrong key"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            allowed = self.allowed()
            self.answer(fake.reply(self.path, body) if allowed else busy(401, "wrong key"))

        def allowed(self) -> bool:
            sent = self.headers["authorization"].removeprefix("Bearer ")
            return fake.key is None or sent == fake.key

        def answer(self, reply: Reply) -> None:
            status, headers, text = reply
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the client has gone
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        if fake.wait is not None:
            fake.wait.set()
        server.shutdown()
        server.server_close()
        thread.join()
