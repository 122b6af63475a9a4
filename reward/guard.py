"""Whether a guard model finds an answer safe."""

from typing import Any

from pydantic import Field, PrivateAttr

from align.artifacts import Model
from align.errors import StageFailed
from align.rewards import text
from align.settings import Dialog, Reward

TOKENS = 32
"""Of a guard's verdict: a word, and a line of categories."""


class Guard(Reward):
    """1 where a guard finds the last answer of a dialog safe, 0 where unsafe.

    For models like Llama Guard 3, which read a dialog in their own chat template and say `safe`, or
    `unsafe` and a line of categories. It reads what the user and the model say, without a system
    message, which such templates do not take. None where a model says neither, or the dialog is
    longer than it can read.
    """

    model: Model
    """The guard: a path, a hub id or a stage."""

    rows: int | None = Field(None, ge=1, exclude=True)
    """Dialogs judged at once."""

    _loaded: tuple[Any, Any] | None = PrivateAttr(None)

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None]:
        """One verdict per answer."""
        from align import models
        from align.generation import generate

        if self._loaded is None:
            network = generate.folded(models.load(self.model))
            self._loaded = network, models.tokenizer(self.model)
        network, tokenizer = self._loaded
        asked = [
            _tokens(tokenizer, [*prompt, *answer])
            for prompt, answer in zip(prompts, completions, strict=True)
        ]
        found: list[float | None] = [None] * len(prompts)
        drawn = generate.generate(
            network,
            tokenizer,
            asked,
            [str(i) for i in range(len(asked))],
            generation={"do_sample": False, "max_new_tokens": TOKENS},
            rows=self.rows,
        )
        for i, answers in drawn:
            word = answers[0].text.strip().partition("\n")[0].strip().lower() if answers else ""
            found[i] = {"safe": 1.0, "unsafe": 0.0}.get(word)
        if found and not any(verdict is not None for verdict in found):
            raise StageFailed(
                f"reward/guard.py: {self.model.path} says neither safe nor unsafe of any of "
                f"{len(found)} answers. Name a guard model, such as meta-llama/Llama-Guard-3-8B."
            )
        return found

    def free(self) -> None:
        """The next call loads the guard again."""
        self._loaded = None


def _tokens(tokenizer: Any, dialog: Dialog) -> list[int]:
    """A dialog as the guard reads it; templates of guards that see images take texts as parts."""
    from align import chat

    dialog = [message for message in dialog if message["role"] != "system"]
    try:
        return chat.prompt(tokenizer, dialog)
    except chat.Refused:
        parts = [[{"type": "text", "text": text([message])}] for message in dialog]
        dialog = [{**m, "content": part} for m, part in zip(dialog, parts, strict=True)]
        return chat.prompt(tokenizer, dialog)
