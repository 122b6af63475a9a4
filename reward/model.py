"""What a reward model thinks of an answer."""

from typing import Any

from pydantic import Field, PrivateAttr

from align.artifacts import RewardModel
from align.settings import Dialog, Reward


class ModelReward(Reward):
    """The score of the whole dialog, answer and end of turn included, as in the model's training.

    In float32 (unless the model is quantized), so that an answer has the same score alone and in
    any batch (within 1e-5). None where the dialog is longer than the model's context.
    """

    model: RewardModel
    """A `reward_model` stage, or the path or hub id of a sequence classifier with one label."""

    tokens: int = Field(16384, ge=1, exclude=True)
    """Tokens scored at once, padding included."""

    _loaded: tuple[Any, Any] | None = PrivateAttr(None)

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        """One score per answer."""
        from align import chat, generate, models
        from align.scores import scores

        if self._loaded is None:
            network = models.load(self.model, head=True)
            if models.describe(self.model).quantization is None:
                network = network.float()
            self._loaded = network, models.tokenizer(self.model)
        network, tokenizer = self._loaded
        tools = columns.get("tools") or [None] * len(prompts)
        rows = []
        for prompt, completion, tool in zip(prompts, completions, tools, strict=True):
            start, answer = chat.answer(tokenizer, prompt, completion, tool)
            rows.append(start + answer.ids)
        fits = [i for i, row in enumerate(rows) if len(row) <= generate.context(network)]
        found: list[float | None] = [None] * len(rows)
        numbers = scores(network, [rows[i] for i in fits], tokens=self.tokens)
        for i, number in zip(fits, numbers, strict=True):
            found[i] = number
        return found
