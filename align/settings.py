"""The base of everything a recipe configures: stages, rewards and tasks are blocks of settings.

A stage, a reward or a task is one class in one file; its fields are its YAML keys. There is no
registry: the file's name is its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic

if TYPE_CHECKING:
    from align.artifacts import Artifact
    from align.out import Out

Message = dict[str, Any]
"""One chat message: `role`, `content`, and what the template knows besides (`tool_calls` …)."""

Dialog = list[Message]
"""A list of messages, oldest first."""


class Settings(pydantic.BaseModel):
    """Keys of a YAML block: typed, unknown keys are errors, nothing changes after reading."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True
    )


@dataclass(frozen=True, eq=False)  # by identity: typing hashes what stands in a union
class Library:
    """Marks a field whose keys are a library's own options.

    `target` is the library's class or function (`"trl.trainer.dpo_config:DPOConfig"`), whose names
    and types are read from its source without importing it. `owned` maps keys the stage sets
    itself to the reason a recipe may not.
    """

    target: str
    owned: dict[str, str] = field(default_factory=dict)


class Stage(Settings):
    """One step of a recipe.

    Fields that hold an artifact (`model: Model`) or data (`data: list[Conversations | Source]`)
    are what the stage consumes; the return annotation of `run` is what it makes.
    A field with `Field(exclude=True)` says where or how fast a stage runs, or what `verdict` asks
    for: it is recorded, and not part of the artifact's key.
    """

    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    """Every random choice of the stage derives from it. The recipe's `seed:` unless set here."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Yield (key, message) for what is wrong and can be known before anything runs."""
        return ()

    def run(self, out: Out) -> Artifact:
        """Do the work in `out.path` and return the artifact that lies there."""
        raise NotImplementedError

    def verdict(self, path: Path) -> str | None:
        """Why the chain stops at what the stage made in `path`; None: it goes on.

        Asked every time the recipe is run, so that another gate needs no other artifact.
        """
        return None


class Reward(Settings):
    """Scores answers. Called with TRL's reward-function signature, on lists of equal length.

    `prompts` and `completions` are dialogs (a completion is usually one assistant message);
    `columns` are the further columns of the prompts' rows. Returns one number per answer (higher
    is better, None where the reward does not apply), or one mapping per answer with the main number
    under `score` and named details beside it.
    """

    def __call__(
        self, *, prompts: list[Dialog], completions: list[Dialog], **columns: list[Any]
    ) -> list[float | None] | list[dict[str, float | None]]:
        """One number, or one mapping of named numbers, per answer."""
        raise NotImplementedError

    def free(self) -> None:
        """Let go of what was loaded, before something else needs the device."""


class Task(Settings):
    """A held-out test. `ask` says how a model is asked about each of its items.

    * `answer`: a completion of `prompt` is generated, and `grade` judges it;
    * `choose`: the likeliest of `options` (texts that continue `prompt`); `answer` is the right
      option's index;
    * `likelihood`: the mean log-likelihood per token of `completion` after `prompt`;
    * `score`: a reward model scores the answers to `prompt`: `chosen`, and `rejected`, one answer
      or a list of them.

    An item is a dict with a unique `id`, the keys above, and optionally `subset`, a name or a list
    of names: every subset is reported beside the whole.
    """

    ask: ClassVar[Literal["answer", "choose", "likelihood", "score"]]

    generation: Annotated[
        dict[str, Any], Library("transformers.generation.configuration_utils:GenerationConfig")
    ] = {}
    """How answers are drawn, as in a `sample` stage; greedily unless it says `do_sample: true`."""

    def items(self) -> Iterator[dict[str, Any]]:
        """The items, in a fixed order."""
        raise NotImplementedError

    def grade(
        self, items: list[dict[str, Any]], answers: list[str]
    ) -> Sequence[Mapping[str, float | None]]:
        """For `ask = "answer"`: named numbers per item, the main one first.

        None where a number does not apply: the item is left out of its mean.
        """
        raise NotImplementedError
