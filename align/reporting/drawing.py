"""Tables and drawings of the report: HTML and SVG as text, in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from html import escape
from typing import Any

from align.reporting.wording import interval

Entry = dict[str, Any]
Point = tuple[float, float]
Band = tuple[float, float, float]
"""A place across, and the ends of an interval there."""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int]) -> str:
    """Rows of HTML; the columns in `numbers` are aligned on the right."""
    mark = [' class="n"' if i in numbers else "" for i in range(len(heads))]
    head = "".join(f"<th{m}>{escape(h)}</th>" for m, h in zip(mark, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{c}</td>" for m, c in zip(mark, row, strict=True)) + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def figure(caption: str, drawing: str) -> str:
    """A drawing under its caption, which is HTML."""
    return f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>"


def intervals(scores: Sequence[Entry]) -> str:
    """A dot with its interval per model, one under the other."""
    known = [s[k] for s in scores for k in ("mean", "ci_low", "ci_high") if s[k] is not None]
    ticks = _ticks(min(known), max(known))
    label = 12 + 6.2 * max(len(str(score["model"])) for score in scores)
    left, right, step = min(label, 190.0), 500.0, 22
    bottom = 12 + step * len(scores)

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left - 14)

    marks = [
        f'<line class="rule" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="6" y2="{bottom}"/>'
        f'<text class="soft" text-anchor="middle" x="{x(t):.1f}" y="{bottom + 14}">{t:g}</text>'
        for t in ticks
    ]
    for i, score in enumerate(scores):
        y = 18 + step * i
        marks.append(f'<text x="0" y="{y + 4}">{escape(_short(str(score["model"])))}</text>')
        title = f"<title>{escape(score['model'])}: {interval(score, 'mean')}</title>"
        line = ""
        if score["ci_low"] is not None:
            line = (
                f'<line x1="{x(score["ci_low"]):.1f}" x2="{x(score["ci_high"]):.1f}" y1="{y}" '
                f'y2="{y}" stroke="var(--c0)" stroke-width="2.5" stroke-linecap="round"/>'
            )
        dot = f'<circle cx="{x(score["mean"]):.1f}" cy="{y}" r="4.5" fill="var(--c0)"/>'
        marks.append(f"<g>{title}{line}{dot}</g>")
    return _svg(500, bottom + 20, marks)


def lines(
    series: dict[str, list[Point]],
    unit: str,
    dots: bool = False,
    band: Sequence[Band] = (),
    mark: tuple[Point, str] | None = None,
) -> str:
    """Lines over a common x axis, over a band where there is one; one series needs no legend.

    `mark` is a point of a line and what is said of it.
    """
    points = [point for line in series.values() for point in line]
    points += [(x, y) for x, *ends in band for y in ends]
    across = _ticks(min(x for x, _ in points), max(x for x, _ in points), whole=True)
    up = _ticks(min(y for _, y in points), max(y for _, y in points))
    left = 14 + 6.2 * max(len(f"{tick:g}") for tick in up)
    right, top, bottom = 482.0, 10.0, 170.0

    def place(point: Point) -> Point:
        x = left + (point[0] - across[0]) / (across[-1] - across[0]) * (right - left)
        y = bottom - (point[1] - up[0]) / (up[-1] - up[0]) * (bottom - top)
        return round(x, 1), round(y, 1)

    marks = []
    for tick in up:
        y = place((across[0], tick))[1]
        marks.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        marks.append(
            f'<text class="soft" text-anchor="end" x="{left - 6}" y="{y + 4}">{tick:g}</text>'
        )
    for tick in across:
        x = place((tick, up[0]))[0]
        marks.append(
            f'<text class="soft" text-anchor="middle" x="{x}" y="{bottom + 15}">{tick:g}</text>'
        )
    marks.append(
        f'<text class="soft" text-anchor="end" x="{right}" y="{bottom + 30}">{escape(unit)}</text>'
    )
    if band:
        edge = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
        path = " ".join(f"{x},{y}" for x, y in map(place, edge))
        marks.append(f'<polygon points="{path}" fill="var(--c0)" opacity="0.18"/>')
    if mark:
        (x, y), text = place(mark[0]), escape(mark[1])
        marks.append(
            f'<line x1="{x}" x2="{x}" y1="{y}" y2="{bottom}" stroke="var(--soft)" '
            f'stroke-dasharray="3 3"/><text class="soft" x="{x + 6}" y="{bottom - 8}">{text}</text>'
        )
    at = left
    for i, (name, line) in enumerate(series.items()):
        path = " ".join(f"{x},{y}" for x, y in map(place, _thinned(line)))
        colour = f"var(--c{i % 6})"
        marks.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        )
        if dots:
            for point in line:
                (x, y), title = place(point), f"<title>{point[0]:g}: {point[1]:.3f}</title>"
                marks.append(f'<circle cx="{x}" cy="{y}" r="3.2" fill="{colour}">{title}</circle>')
        if name and len(series) > 1:
            marks.append(
                f'<rect x="{at}" y="{bottom + 24}" width="12" height="3" fill="{colour}"/>'
                f'<text class="soft" x="{at + 17}" y="{bottom + 30}">{escape(name)}</text>'
            )
            at += 30 + 6.2 * len(name)
    return _svg(500, 206, marks)


def _svg(width: int, height: float, marks: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height:g}" role="img">{"".join(marks)}</svg>'


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About five round numbers that enclose an interval."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _thinned(line: list[Point], most: int = 400) -> list[Point]:
    every = max(1, len(line) // most)
    return line if every == 1 else [*line[::every], line[-1]]


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
