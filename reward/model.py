"""What a reward model thinks of an answer."""

from typing import Any

from pydantic import Field, PrivateAttr

from align.artifacts import RewardModel
from align.settings import Dialog, Reward


class ModelReward(Reward):
    """The score of the whole dialog, answer and end of turn included, as in the model's training.

    In float32, so that an answer has the same score alone and in any batch (within 1e-5; about
    a hundredth of its size where the model is quantized and computes in bf16). None where the
    dialog is longer than the model's context.
    """

    model: RewardModel
    """A `reward_model` stage, or the path or hub id of a sequence classifier with one label."""

    tokens: int | None = Field(None, ge=1, exclude=True)
    """Tokens scored at once, padding included: 1,024 on a CPU and 8,192 on a GPU unless set."""

    _loaded: tuple[Any, Any] | None = PrivateAttr(None)

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        """One score per answer."""
        from align.scoring import scores

        if self._loaded is None:
            self._loaded = scores.load(self.model)
        tools = columns.get("tools") or [None] * len(prompts)
        return scores.dialogs(*self._loaded, prompts, completions, tools, tokens=self.tokens)

    def free(self) -> None:
        """The next call loads the model again."""
        self._loaded = None
