"""The knowledge probe of Llama 3 (arXiv 2407.21783, section 4.3.6): to know what one knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from pydantic import Field

from align import models
from align.artifacts import Conversations, Model, Text
from align.data import Source, mix
from align.errors import StageFailed
from align.generation import draws
from align.generation.decoding import Generation, problems
from align.generation.draws import Draw, Row
from align.generation.endpoint import Engine
from align.out import Out
from align.parallel import shards
from align.parallel.workers import Workers
from align.scoring import knowledge, probing
from align.scoring.judging import JudgeServer
from align.selection import dropped
from align.settings import Stage


class Probe(Stage):
    """Conversations in which a model answers what it knows and declines what it does not.

    The model asks questions about snippets of text and answers each one `n` times without the
    snippet. A judge says of every answer whether it is correct by the snippet and whether it is
    informative. A question with mostly right answers is kept with the first right one; one with
    wrong answers throughout is kept with a refusal; others are dropped. What was dropped lies in
    `removed.jsonl`, with the reason. Nothing that the model did not say itself is taught.
    """

    model: Model
    """What is probed, and asks the questions."""

    data: list[Text | Source]
    """Documents that the model may have learnt from: of pre-training, in the paper."""

    words: int = Field(200, ge=1)
    """The words of a snippet, about: a document is cut into parts of equal length."""

    snippets: int | None = Field(1, ge=1)
    """So many of a document, drawn by its id; null: all."""

    questions: int = Field(1, ge=1)
    """Questions drawn per snippet."""

    n: int = Field(8, ge=1)
    """Answers per question."""

    known: float = Field(0.75, gt=0, le=1)
    """The share of answers, correct and informative, from which the model knows."""

    unknown: float = Field(1.0, gt=0, le=1)
    """The share of answers, informative and not correct, from which it does not. The paper says
    "consistently", and gives neither number."""

    refusals: list[str] = Field(knowledge.REFUSALS, min_length=1)
    """What it learns to say then, one of them by the question's id. The paper has the model write
    them."""

    generation: Generation = {}
    """Options of `GenerationConfig` for questions and answers, as in `sample`."""

    judge: Model | None = None
    """What judges, greedily; the model itself unless set, as in the paper. Both are in memory."""

    judge_server: JudgeServer | None = None
    """A served judge instead: `{url: http://localhost:8000/v1, model: NAME}`."""

    ask_question: str = knowledge.QUESTION
    """What the model is told; the snippet and the form of the reply follow it."""

    ask_correct: str = knowledge.CORRECT
    """What the judge is told; snippet, question, answer and the form of the reply follow it."""

    ask_informative: str = knowledge.INFORMATIVE
    """What the judge is told; question, answer and the form of the reply follow it."""

    engine: Engine = None
    """What generates, as in `sample`."""

    rows: int | None = Field(None, ge=1, exclude=True)
    """Answers decoded at once by a process, as in `sample`."""

    shard: int = Field(64, ge=1, exclude=True)
    """Snippets per shard: what a kill can lose."""

    workers: Workers | None = Field(None, exclude=True)
    """Who makes the shards: `{on: local, count: 4}`. This process unless set."""

    def check(self) -> Iterable[tuple[str, str]]:
        """Options that decoding does not know; two judges; a question that is known and is not."""
        yield from problems(self.generation)
        yield from draws.misfits([], [self.draw(self.n)], [])
        for model in filter(None, (self.model, self.judge)):
            yield from models.check_template(model)
        if self.judge is not None and self.judge_server is not None:
            yield "judge", 'Both "judge" and "judge_server" are named: one of them judges.'
        if self.known + self.unknown <= 1:
            yield "known", '"known" and "unknown" must exceed 1 together: else both may hold.'
        if self.workers is not None:
            yield from self.workers.problems()

    def run(self, out: Out) -> Conversations:
        """Cut the snippets, have them asked about and answered, and keep what is certain."""
        planned = draws.plan(self._snippets(out), [self.draw(self.questions)], self.model, out)
        made = shards.make(out, shards.cut(planned, self.shard), self, self.workers)
        summary = draws.summary(1, out.counts, made)
        (out.path / "metrics.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        if not shards.settle(out, probing.conversations(self, out)):
            raise StageFailed(
                f"No question is clearly known or unknown ({dropped(out)}). Look at removed.jsonl; "
                "a larger model asks and judges better."
            )
        return Conversations(out.path)

    def worker(self, out: shards.Shard) -> shards.Work:
        """Load what answers and what judges."""
        return probing.Probing(self, out)

    def draw(self, n: int) -> Draw:
        """So many answers to one prompt."""
        return draws.resolved([], n, self.generation, None)[0]

    def _snippets(self, out: Out) -> Iterator[Row]:
        documents = mix(self.data, Text, self.seed, out)
        for row in knowledge.snippets(documents, self.words, self.snippets, self.seed):
            out.count("snippets")
            yield {**row, "prompt": knowledge.question(self.ask_question, row["text"])}
