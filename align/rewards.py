"""Calling rewards: whatever one returns, in one form, or a sentence about what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from align import shelf
from align.artifacts import RewardModel
from align.errors import StageFailed
from align.records import consumed
from align.settings import Dialog, Reward, Settings

CHUNK = 1024
"""Answers a reward is given at once."""

Numbers = dict[str, float | None]
"""One answer's numbers from one reward: `score`, and the reward's details by name."""


def names(blocks: Sequence[Settings]) -> list[str]:
    """What each reward or task is called: its file's name; the second of a name is `name_2`."""
    stems: list[str] = []
    found: list[str] = []
    for block in blocks:
        stem = shelf.source(type(block)).stem
        n = stems.count(stem)
        stems.append(stem)
        found.append(f"{stem}_{n + 1}" if n else stem)
    return found


def call(
    reward: Reward,
    prompts: Sequence[Dialog],
    completions: Sequence[Dialog],
    columns: dict[str, list[Any]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Numbers]:
    """One reward's numbers for every answer, in order.

    Args:
        reward: what scores.
        prompts: one dialog per answer.
        completions: the answers, dialogs too.
        columns: the further columns of the prompts' rows, each one value per answer.
        progress: called with how many more answers are scored.

    Raises:
        StageFailed: the reward returned another number of results than it got answers, something
            that is neither a number nor None nor a mapping with `score`, or not a number (nan).
    """
    results: list[Numbers] = []
    file = shelf.name(shelf.source(type(reward)))
    for at in range(0, len(prompts), CHUNK):
        part = slice(at, at + CHUNK)
        given = {name: values[part] for name, values in (columns or {}).items()}
        returned = reward(prompts=list(prompts[part]), completions=list(completions[part]), **given)
        expected = len(prompts[part])
        if len(returned) != expected:
            raise StageFailed(
                f"{file} returned {len(returned)} results for {expected} answers. "
                "A reward returns one per answer, in order."
            )
        results += [_normal(file, result) for result in returned]
        if progress is not None:
            progress(expected)
    return results


def _normal(file: str, result: Any) -> Numbers:
    if isinstance(result, dict):
        if "score" not in result:
            raise StageFailed(
                f'{file} returned {result!r}, which has no "score": the main number comes under '
                "that name, details beside it."
            )
        return {name: _number(file, name, value) for name, value in result.items()}
    return {"score": _number(file, "score", result)}


def _number(file: str, name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise StageFailed(
            f"{file} returned {value!r} as {name}. A reward returns a finite number, or None where "
            "it does not apply."
        )
    return float(value)


def on_one_base(rewards: Sequence[Reward]) -> bool:
    """Whether all that these rewards load are adapters on one base, which they then share."""
    loading = [reward for reward in rewards if type(reward).free is not Reward.free]
    judges = [model for reward in loading for model in consumed(reward)]
    if len(judges) < len(loading) or not all(isinstance(model, RewardModel) for model in judges):
        return False
    from align import scores

    bases = {scores.base(model) for model in judges if isinstance(model, RewardModel)}
    return len(bases) == 1 and None not in bases


def grade(reward: Reward, items: list[dict[str, Any]], answers: list[str]) -> list[Numbers]:
    """A task's `grade` by a reward: `score` and its details per item; None where it does not apply.

    The items' other columns reach the reward as they reach it in a `score` stage.
    """
    columns = columns_of([{k: v for k, v in i.items() if k not in ("id", "prompt")} for i in items])
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    numbers = call(reward, [item["prompt"] for item in items], completions, columns)
    reward.free()
    return numbers


def text(completion: Dialog) -> str:
    """What an answer says: the text of its messages."""
    return "\n".join(str(message.get("content") or "") for message in completion)


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as lists by column, None where a row lacks one."""
    wanted = dict.fromkeys(key for row in rows for key in row)
    return {name: [row.get(name) for row in rows] for name in wanted}
