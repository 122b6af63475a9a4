"""Data that is worth training on: without duplicates, benchmark questions, personal data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from typing import Annotated, Literal

from pydantic import Field, model_validator

from align.artifacts import Conversations, Preferences, Prompts, Rows, Text
from align.curation import sources
from align.curation.heuristics import Emoji, Length, Phrases, Repetition
from align.curation.language import Language
from align.curation.lines import Lines
from align.curation.near import Near
from align.curation.pii import Pii
from align.curation.quality import Difficulty, Quality
from align.curation.semantic import Semantic
from align.data import Source
from align.errors import StageFailed
from align.out import Out
from align.selection import dropped
from align.settings import RecipeTasks, Stage, Task

_TYPES = {
    "conversations": Conversations,
    "preferences": Preferences,
    "prompts": Prompts,
    "text": Text,
}


_TOGETHER = ("lines", "quality", "difficulty", "semantic", "phrases")
"""Keys of rules that look at all rows that are left, in the order in which they do."""

_RULES = (
    *("emoji", "length", "repetition", "language", "decontaminate", "exact", "near"),
    *_TOGETHER,
)
"""Keys of rules that remove rows, in the order in which they do."""


class Curate(Stage):
    """Rows of any type, fewer and cleaner: it makes what it takes.

    A rule that is left out is not applied, but for `exact` and `decontaminate`. Each row is removed
    by the first rule that finds it, in the order of the keys here; it lies in `removed.jsonl` with
    its reason. What stays follows from what the rows hold, not from their order. Columns are those
    of the normal form, with `source`, where the row is from.
    """

    data: list[Conversations | Preferences | Prompts | Text | Source] = Field(min_length=1)
    """Sources, which are read as they are: weights are for training."""

    rows: Literal["conversations", "preferences", "prompts", "text"] | None = None
    """What files hold; of an earlier stage it is known."""

    emoji: Emoji | None = None
    pii: Pii | None = None
    length: Length | None = None
    repetition: Repetition | None = None
    language: Language | None = None

    decontaminate: Annotated[list[Task] | None, RecipeTasks()] = None
    """Tasks whose questions no row may hold; unless set those of the recipe's `evaluate` stages.
    The rule is that of an evaluation's `overlap`, which then finds none."""

    shared: float = Field(0.5, ge=0, lt=1)
    """The share of a question's own words, in runs of eight that stand in a row, above which the
    row is removed. With 0 any run is enough."""

    exact: bool = True
    """Of rows that say the same, but for white space and forms of characters, one stays."""

    near: Near | None = None
    lines: Lines | None = None
    quality: Quality | None = None
    difficulty: Difficulty | None = None
    semantic: Semantic | None = None
    phrases: Phrases | None = None

    @model_validator(mode="after")
    def _typed(self) -> Curate:
        known = {type(one) for source in self.data if (one := sources.stage(source)) is not None}
        if self.rows is not None:
            known.add(_TYPES[self.rows])
        names = sorted(cls.__name__.lower() for cls in known)
        if not names:
            raise ValueError(f"Say what the rows are. rows: {' | '.join(_TYPES)}.")
        if len(names) > 1:
            raise ValueError(f"All rows are of one type, and here are {' and '.join(names)}.")
        return self

    def makes(self) -> type[Rows]:
        """The type of what it takes."""
        stages = (one for source in self.data if (one := sources.stage(source)) is not None)
        return next((type(one) for one in stages), _TYPES.get(str(self.rows), Rows))

    def check(self) -> Iterable[tuple[str, str]]:
        """Weights, and rules that are not for this type of rows."""
        for i, source in enumerate(self.data):
            if isinstance(source, Source) and source.weight != 1:
                message = "Rows are curated once: weigh them where they are trained on."
                yield f"data.{i}", message
        if self.near is not None and self.near.of == "prompt" and self.makes() is Text:
            yield "near", "Text has no prompts. Leave out `of:`."
        for name, rule in (("quality", self.quality), ("difficulty", self.difficulty)):
            if rule is not None and (misfit := rule.misfit(self.makes())):
                yield name, misfit

    def run(self, out: Out) -> Rows:
        """Look at every row, compare them, write those that stay."""
        from align.curation import flow
        from align.curation.contamination import Questions, questions
        from align.curation.looking import Looker
        from align.curation.sifting import Sieve, say

        asked = questions(self.decontaminate or ())
        looker = Looker(
            folder=out.path / "checkpoints" / "curate",
            kind=self.makes(),
            near=self.near,
            emoji=self.emoji,
            pii=self.pii,
            language=self.language,
            rules=[rule for rule in (self.length, self.repetition) if rule is not None],
            questions=Questions(asked, self.shared) if asked else None,
        )
        rows = sources.rows(self.data, self.makes(), self.seed, out)
        with closing(flow.look(rows, looker, out)) as table:
            out.progress(len(self.data), len(self.data), "sources", "comparing rows")
            if self.exact:
                table.exact()
            if self.near is not None:
                table.near(looker, out)
            sieve = Sieve(table, looker, out)
        for name in _TOGETHER:
            if (rule := getattr(self, name)) is not None:
                sieve.sift(rule)
        metrics = sieve.finish([sources.name(source) for source in self.data])
        if not metrics["kept"]["rows"]:
            raise StageFailed(
                f"No row is left ({dropped(out)}). Look at removed.jsonl in {out.path}."
            )
        say(metrics, [rule for rule in _RULES if getattr(self, rule)], out)
        text = json.dumps(metrics, indent=1, ensure_ascii=False)
        (out.path / "metrics.json").write_text(text + "\n", encoding="utf-8")
        return self.makes()(out.path)
