"""Answers that somebody compared: pairs, rankings, two answers and a number."""

from __future__ import annotations

import math
import re

from align.formats.answers import (
    DIALOG,
    QUESTION,
    after,
    asked,
    conversation_of,
    parted,
    prompt_of,
    with_rest,
)
from align.formats.dialogs import (
    HUMAN,
    STRONGEST,
    Choice,
    Made,
    Row,
    Unusable,
    checked,
    column,
    dialog,
    listed,
    says,
    shown,
)
from align.formats.strength import SIGNED, level, signed
from align.settings import Dialog

CHOSEN = ("chosen", "chosen_response", *DIALOG)
"""Columns of the better answer: beside ms-swift's of the worse it is the end of the dialog."""

REJECTED = ("rejected", "rejected_response", "rejected_messages")
"""Columns of the worse answer."""

RESPONSES = (("response_1", "response1"), ("response_2", "response2"), SIGNED)
"""Columns of two answers and of which is better, as in HelpSteer2 and HelpSteer3."""


def preference(row: Row, choice: Choice) -> Made:
    """A pair or a ranking, row by row: of a ranking of two, a stage makes a pair."""
    yield from ranking(row, choice) if "ranked" in row else pair(row, choice)


def best(row: Row, choice: Choice) -> Made:
    """The better answer of a pair, the first one of a ranking."""
    yield from best_of_ranking(row, choice) if "ranked" in row else best_of_pair(row, choice)


# -- pairs ---------------------------------------------------------------------------------------


def is_pair(row: Row) -> bool:
    """Whether there is a prompt: in a column, or at the beginning of whole dialogs."""
    chosen = row[column(row, *CHOSEN)]
    is_dialog = not isinstance(chosen, str) or chosen.startswith(HUMAN)
    return any(name in row for name in QUESTION) or is_dialog


def pair(row: Row, choice: Choice) -> Made:
    """Answers to a prompt; or whole dialogs, whose shared beginning is the prompt.

    Of lists of texts the first chosen one is better than every rejected one, as in RewardBench 2.
    With an edited answer it is a ranking: edited > chosen > rejected (Llama 3, §4.2.1).
    """
    _check_level(level(row), choice)
    said, answers = _sides(row)
    if len(answers) > 2:
        yield compared(said, answers, row)
        return
    more: Row = {
        name: number
        for key, name in NUMBERS.items()
        if isinstance(row.get(key), (int, float, str)) and str(row[key]).strip()
        if (number := _number(row[key], key)) is not None
    }
    if _is_set(row) and (also := _set(row)[2:]):
        more["also_rejected"] = also
    if row.get("also_rejected"):
        others = listed(row["also_rejected"], "also_rejected")
        more["also_rejected"] = [dialog(one, "assistant", "also_rejected") for one in others]
    yield _judged({"prompt": said, "chosen": answers[0], "rejected": answers[1]} | more, row)


def _check_level(found: str | None, choice: Choice) -> None:
    """Leave out a pair whose level is not read, and one without a level where levels are named."""
    if found is None and choice.strength is not None:
        raise Unusable("no_strength")
    if found is not None and found not in (choice.strength or STRONGEST):
        raise Unusable("weak_preference", strength=found)


NUMBERS = {
    "margin": "margin",
    "score_chosen": "chosen_score",  # as UltraFeedback calls them
    "score_rejected": "rejected_score",
    "chosen_score": "chosen_score",
    "rejected_score": "rejected_score",
}
"""Columns of numbers that stay with a pair, and what they are called then."""


def _number(value: int | float | str, name: str) -> float | None:
    """A number; None for NaN, as pandas writes a null."""
    try:
        found = float(value)
    except (ValueError, OverflowError):
        found = math.inf
    if math.isnan(found):
        return None
    if math.isfinite(found):
        return found
    raise ValueError(
        f'"{name}" is {shown(value)}, and must be a number. To leave the column out, write '
        f'under `columns:` {name}: ""'
    )


def best_of_pair(row: Row, _: Choice) -> Made:
    """The better side of a pair, in its last edition."""
    said, answers = _sides(row)
    yield conversation_of(row, said, answers[0])


def prompt_of_pair(row: Row, _: Choice) -> Made:
    """What two dialogs have in common at their beginning."""
    yield prompt_of(row, _shared(row)[0])


def _sides(row: Row) -> tuple[Dialog, list[Dialog]]:
    """The prompt and the answers, best first: the edited one where there is one."""
    said, chosen, rejected = _shared(row)
    if not row.get("edited"):
        return said, [chosen, rejected]
    edited = dialog(row["edited"], "assistant", "edited")
    if edited[: len(said)] == said:  # a whole dialog, too
        edited = edited[len(said) :]
    if edited == rejected:  # it cannot be the best and the worst
        raise Unusable("equal_answers")
    return said, [edited, chosen, rejected]


def _shared(row: Row) -> tuple[Dialog, Dialog, Dialog]:
    """Prompt, chosen and rejected. A prompt beside whole dialogs may hold the first question only:
    what they share is the prompt, after the system message that may stand in the other one.
    """
    if _is_set(row):
        chosen, rejected, *_ = _set(row)
        return asked(row), chosen, rejected
    sides = column(row, *CHOSEN), column(row, *REJECTED)
    chosen, rejected = (dialog(row[key], "assistant", key) for key in sides)
    whole = all(said and said[0]["role"] != "assistant" for said in (chosen, rejected))
    if not whole and sides[0] in DIALOG:
        said, chosen = parted(chosen)
        return after(row, said), chosen, rejected
    if not whole and any(name in row for name in QUESTION):
        return asked(row), chosen, rejected
    both = list(zip(chosen, rejected, strict=False))
    shared = next((i for i, (a, b) in enumerate(both) if a != b), len(both))
    shared = max(0, min(shared, len(chosen) - 1, len(rejected) - 1))
    said, beside = chosen[:shared], row.get("prompt")
    if isinstance(beside, list) and said and said[0]["role"] == "user":
        system = dialog(beside[:1], "user", "prompt")
        said = [*system, *said] if system and system[0]["role"] == "system" else said
    return after(row, said), chosen[shared:], rejected[shared:]


def _is_set(row: Row) -> bool:
    """Whether there are texts on the better side, several answers as in RewardBench 2."""
    chosen = row[column(row, *CHOSEN)]
    return isinstance(chosen, list) and bool(chosen) and isinstance(chosen[0], str)


def _set(row: Row) -> list[Dialog]:
    """The first chosen answer, and the rejected ones that say something else."""
    best, worst = column(row, *CHOSEN), column(row, *REJECTED)
    chosen = dialog(row[best][0], "assistant", best)
    rejected = [dialog(said, "assistant", worst) for said in listed(row[worst], worst)]
    return [chosen, *([answer for answer in rejected if answer != chosen] or [chosen])]


# -- two answers and a number --------------------------------------------------------------------


def better_of_two(row: Row, choice: Choice) -> Made:
    """Two answers and a number: which is better, and by how much."""
    better, worse, strength = _two(row)
    _check_level(strength, choice)
    yield _judged({"prompt": _context(row), "chosen": better, "rejected": worse}, row)


def best_of_two(row: Row, choice: Choice) -> Made:
    """The better one of two answers, however small the difference."""
    better, _, _ = _two(row)
    yield conversation_of(row, _context(row), better)


def _two(row: Row) -> tuple[Dialog, Dialog, str]:
    first, second, number = (column(row, *names) for names in RESPONSES)
    answers = [dialog(row[key], "assistant", key) for key in (first, second)]
    is_second, strength = signed(row[number], number)
    better, worse = reversed(answers) if is_second else answers
    return better, worse, strength


def _context(row: Row) -> Dialog:
    """The prompt; the turns of HelpSteer2's stand in one text, between marks."""
    if "<extra_id_1>" not in str(row.get("prompt")):
        return asked(row)
    turns = re.split(r"\n?<extra_id_1>(User|Assistant)\n", row["prompt"])
    roles = ["user", *(role.lower() for role in turns[1::2])]
    said: Dialog = [
        {"role": role, "content": text}
        for role, text in zip(roles, turns[::2], strict=True)
        if text
    ]
    return after(row, said)


# -- rankings ------------------------------------------------------------------------------------


def ranking(row: Row, _: Choice) -> Made:
    """Answers in an order, best first."""
    answers = [dialog(answer, "assistant", "ranked") for answer in listed(row["ranked"], "ranked")]
    yield compared(asked(row), answers, row)


def best_of_ranking(row: Row, _: Choice) -> Made:
    """The first answer of a ranking."""
    ranked = listed(row["ranked"], "ranked")
    if not ranked:
        raise Unusable("no_answer")
    yield conversation_of(row, asked(row), dialog(ranked[0], "assistant", "ranked"))


def compared(said: Dialog, answers: list[Dialog], row: Row) -> Row:
    """A ranking of answers, equal ones once; of two it is a pair."""
    ranked: list[Dialog] = []
    for answer in answers:
        if answer not in ranked:
            ranked.append(answer)
    if len(ranked) < 2:
        raise Unusable("equal_answers")
    if len(ranked) == 2:
        return _judged({"prompt": said, "chosen": ranked[0], "rejected": ranked[1]}, row)
    return _judged({"prompt": said, "ranked": ranked}, row)


def _judged(made: Row, row: Row) -> Row:
    """What was compared, if it can be: a question, and answers that say different things."""
    answers = made["ranked"] if "ranked" in made else [made["chosen"], made["rejected"]]
    said = made["prompt"]
    if not said or said[-1]["role"] == "assistant":
        raise Unusable("no_question")
    for answer in (*answers, *made.get("also_rejected", ())):
        if not answer or answer[0]["role"] != "assistant" or not any(map(says, answer)):
            raise Unusable("no_answer")
        checked(said + answer)
    if answers[0] == answers[1]:
        raise Unusable("equal_answers")
    return {**made, **with_rest(row)}
