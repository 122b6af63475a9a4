"""What held-out answers are worth to a model."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from align.artifacts import Conversations
from align.data import Source, read
from align.errors import StageFailed
from align.settings import Task


class Perplexity(Task):
    """The mean log-likelihood per token (nats) of a dialog's last answer, its end of turn included.

    Perplexity is exp of minus that. Numbers compare between models with the same tokenizer.
    """

    ask: ClassVar[Literal["likelihood"]] = "likelihood"

    data: Conversations | Source
    """Held-out conversations. What follows their last answer is not read. A column `subset` is
    reported, too."""

    def items(self) -> Iterator[dict[str, Any]]:
        """One item per conversation."""
        for row in read(self.data, Conversations, None):
            messages = row["messages"]
            while messages[-1]["role"] != "assistant":
                messages = messages[:-1]
            *prompt, answer = messages
            if not prompt:
                raise StageFailed(f"Row {row['id']} has no question to its answer. Leave it out.")
            others = {k: v for k, v in row.items() if k != "messages"}
            yield {**others, "prompt": prompt, "completion": [answer]}
