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
    from align.asking.asked import Asked
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


@dataclass(frozen=True, eq=False)
class RecipeTasks:
    """Marks a field of tasks that are those of the recipe's `evaluate` stages unless it is set."""


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

    def makes(self) -> type[Artifact] | None:
        """What it makes, where its settings say it; None: the annotation of `run` does."""
        return None

    def run(self, out: Out) -> Artifact:
        """Do the work in `out.path` and return the artifact that lies there."""
        raise NotImplementedError

    def verdict(self, path: Path) -> str | None:
        """Why the chain stops at what the stage made in `path`; None: it goes on.

        Asked every time the recipe is run, so that another gate needs no other artifact.
        """
        return None

    def judged(self, path: Path) -> list[dict[str, Any]]:
        """The stage's gates with their verdicts on what it made in `path`, as a report has them."""
        return []


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


Values = Mapping[str, float | None]
"""An item's numbers by name, the main one first; None where one does not apply."""


class Task(Settings):
    """A held-out test. `ask` says how a model is asked about each of its items.

    * `answer`: completions of `prompt` are generated, and `grade` judges them;
    * `choose`: the log-likelihood of each of `options` (texts that continue `prompt`), which
      `grade_options` judges; `answer` is the right option's index;
    * `likelihood`: the log-likelihood of `completion` after `prompt`;
    * `score`: a reward model scores the answers to `prompt`: `chosen`, and `rejected`, one answer
      or a list of them;
    * `harness`: the task asks by itself (`eval/lm_eval.py`).

    An item is a dict with a unique `id`, the keys above, and optionally

    * `prefix`: what the assistant's answer begins with ("The best answer is"); no part of it;
    * `question`: what is asked, without examples; it is looked for in what a chain learnt from;
    * `subset`, a name or a list of names: every subset is reported beside the whole;
    * `cluster`: items of one cluster are not independent, and standard errors count clusters.
    """

    ask: ClassVar[Literal["answer", "choose", "likelihood", "score", "harness"]]

    generation: Annotated[
        dict[str, Any], Library("transformers.generation.configuration_utils:GenerationConfig")
    ] = {}
    """How answers are drawn, as in a `sample` stage; greedily unless it says `do_sample: true`."""

    samples: int = pydantic.Field(1, ge=1)
    """Answers drawn per item; more than one needs `do_sample: true`."""

    def called(self) -> str | None:
        """Its name in results and gates; None: that of its file."""
        return None

    def misfit(self, tokenizer: Any) -> str | None:
        """Why a model with this tokenizer cannot be asked, before any is loaded; None: it can."""
        return None

    def items(self) -> Iterator[dict[str, Any]]:
        """The items, in a fixed order."""
        raise NotImplementedError

    def decoding(self) -> dict[str, Any]:
        """How answers are drawn beside greedily, where `generation` says nothing else."""
        return {}

    def grade(self, items: list[dict[str, Any]], answers: list[str]) -> Sequence[Values]:
        """For `ask = "answer"`: named numbers per answer, the main one first.

        None where a number does not apply: the item is left out of its mean.
        """
        raise NotImplementedError

    def grade_options(
        self, items: list[dict[str, Any]], logliks: list[list[float]]
    ) -> Sequence[Values]:
        """For `ask = "choose"`: named numbers per item from its options' log-likelihoods (nats).

        `accuracy`, and `accuracy_by_length` with likelihoods per byte of the option.
        """
        return [_chosen(item, values) for item, values in zip(items, logliks, strict=True)]

    def measure(self, asked: Asked, seed: int) -> Sequence[dict[str, Any]]:
        """For `ask = "harness"`: by `id`, what a model says to the items, and its `numbers`."""
        raise NotImplementedError

    def over_samples(self, numbers: Sequence[Values]) -> Values:
        """One item's numbers from those of its several answers: their means."""
        found: dict[str, float | None] = {}
        for name in numbers[0]:
            known = [value for one in numbers if (value := one[name]) is not None]
            found[name] = sum(known) / len(known) if known else None
        return found

    def weights(self, items: list[dict[str, Any]]) -> Mapping[str, Sequence[float]]:
        """By metric: how much each item counts, where not all count the same."""
        return {}


def _chosen(item: dict[str, Any], logliks: list[float]) -> Values:
    lengths = [max(1, len(option.encode())) for option in item["options"]]
    by_length = [value / length for value, length in zip(logliks, lengths, strict=True)]
    right = item["answer"]
    return {
        "accuracy": float(logliks.index(max(logliks)) == right),
        "accuracy_by_length": float(by_length.index(max(by_length)) == right),
    }
