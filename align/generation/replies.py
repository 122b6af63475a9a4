"""What stands in a server's reply: an answer, or how it ended without one."""

from __future__ import annotations

from typing import Any

from align.generation.endpoint import Refused

Choice = tuple[str, list[int], float | None, str]
"""Text, token ids, log-probability and finish of an answer."""


def read(choice: Any, tokenizer: Any) -> Choice | str:
    """An answer; for what is none only its `finish_reason`."""
    message = choice.get("message") or {}
    text = choice["text"] if "text" in choice else message["content"]
    ids = token_ids(choice)
    if choice["finish_reason"] not in ("stop", "length", "tool_calls"):
        return str(choice["finish_reason"])  # filtered or aborted
    if ids is not None:
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    elif message.get("tool_calls"):
        raise Refused(
            "It takes calls of tools out of the text. Serve it without a parser for them, or send: "
            "tokens"
        )
    elif text is None:
        return str(choice["finish_reason"])
    else:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    finish = "length" if choice["finish_reason"] == "length" else "stop"
    return text, list(ids), _logprob(choice.get("logprobs")), finish


def token_ids(choice: Any) -> Any:
    """vLLM's name for them, or SGLang's."""
    return choice.get("token_ids", choice.get("response_token_ids"))


def _logprob(given: Any) -> float | None:
    """The sum over the answer's tokens, where the server gives all of them."""
    if not given:
        return None
    tokens = given.get("token_logprobs")
    if tokens is None:
        tokens = [token["logprob"] for token in given.get("content") or [{"logprob": None}]]
    return None if None in tokens else round(sum(tokens), 4)
