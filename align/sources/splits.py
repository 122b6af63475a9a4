"""Held-out data that is not: prompts that are learnt from and measured on."""

from __future__ import annotations

from collections.abc import Sequence

from align.artifacts import Rows
from align.data import Source, mix
from align.errors import StageFailed
from align.sources.questions import Questions, asked, number


def refuse_overlap(
    data: Sequence[Rows | Source], held_out: Sequence[Rows | Source], kind: type[Rows], seed: int
) -> None:
    """Stop where a prompt of `held_out` is in `data` too, before anything is loaded.

    A prompt is the dialog up to the first answer. Both are read once for it, in 8 bytes a prompt
    of `held_out`.

    Raises:
        StageFailed: there is one; or the data cannot be read.
    """
    if not held_out:
        return
    known = Questions(mix(held_out, kind, seed, None))
    shared: set[int] = set()
    examples: list[str] = []
    rows = 0
    for row in mix(data, kind, seed, None):
        if row in known:
            rows += 1
            if (asks := number(row)) not in shared and len(examples) < 2:
                said = " ".join(str(asked(row)[-1].get("content")).split())
                examples.append(f'{row["id"]} ("{said[:80]}")')
            shared.add(asks)
    if shared:
        without = ", ".join(dict.fromkeys(map(_without, data)))
        raise StageFailed(
            f"{len(shared)} prompts of eval_data are in data too, in {rows} of its rows, such as "
            f"{' and '.join(examples)}: numbers on eval_data would flatter. Leave them out of "
            f"data: data: [{without}]."
        )


def _without(source: Rows | Source) -> str:
    """The block of a source, a stage or a path, that leaves out what is held out."""
    stage = source if isinstance(source, Rows) else source.stage
    begins = "path: …" if stage is None else f"stage: {stage.name or '…'}"
    return f"{{{begins}, without: [the source of eval_data]}}"
