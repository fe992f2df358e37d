"""The changes of every method against the reference, with their intervals, as one figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

from equipoise.lab.printable import inert
from equipoise.lab.results.cells import Cell
from equipoise.lab.results.changes import Changes, named
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.format import format_estimate, format_sign
from equipoise.lab.results.palette import method_colors
from equipoise.lab.results.rows import summarise
from equipoise.lab.results.statistics import Estimate, estimate
from equipoise.lab.results.svg import svg

_WIDTH, _LEFT, _RIGHT, _LINE, _TOP = 536, 246, 406, 17, 30
_TASKS_AT_MOST = 20
"""With more tasks than this, the figure has the summary and the groups alone."""


@dataclass(frozen=True)
class Line:
    """One change with its interval, as a line of the figure.

    Attributes:
        name: On the left.
        color: Of the dot and the interval.
        low, mean, high: The mean and the ends of its interval; not finite where there is none.
        text: On the right.
    """

    name: str
    color: str
    low: float
    mean: float
    high: float
    text: str


def to_svg(comparison: Comparison, *, alone: bool = False) -> str:
    """The relative change of all tasks together, of each group, and of each metric, against the reference.

    A line for every method, with the 95 % interval of the paired changes and the mark of the table.

    Args:
        comparison: The runs.
        alone: Whether it is a picture of its own, as for `draw`.

    Raises:
        ValueError: There is no method beside the reference.
    """
    others = [method for method in comparison.runs if method != comparison.reference]
    if not others:
        raise ValueError(f"figure: wanted a method beside {comparison.reference}, found none")
    blocks = _blocks(comparison, others)
    return draw(
        blocks,
        limit=_limit([line for lines in blocks.values() for line in lines]),
        title=f"Change against {inert(comparison.reference)} with 95 % intervals",
        legend=[f"change against {_short(comparison.reference, 30)} in %, 95 % intervals"],
        alone=alone,
    )


def draw(
    blocks: Mapping[str, Sequence[Line]], *, limit: float, title: str, legend: Sequence[str], alone: bool = False
) -> str:
    """Changes with their intervals, block by block.

    Args:
        blocks: The lines of each block by its heading.
        limit: Both ends of the axis; an interval that reaches beyond them ends in an arrow.
        title: The figure in words.
        legend: Lines below the axis.
        alone: Whether it is a picture of its own, with a size.
    """
    parts, height = _head(), _TOP + 10
    for label, lines in blocks.items():
        parts.append(f'<text class="head" x="4" y="{height + 12}">{escape(_short(label, 60))}</text>')
        height += _LINE + 1
        for line in lines:
            parts += _drawn(line, height, limit)
            height += _LINE
        height += 5
    beyond = any(abs(end) > limit for lines in blocks.values() for line in lines for end in (line.low, line.high))
    notes = [*legend, *(["▸ beyond the axis"] if beyond else [])]
    bottom = height + 26 + 18 * len(notes)
    return svg([*_frame(limit, height, notes), *parts], _WIDTH, bottom, title, alone=alone)


def _blocks(comparison: Comparison, others: Sequence[str]) -> dict[str, list[Line]]:
    """The lines of every quantity by its label: first all tasks together, then the groups, then each metric."""
    reference = comparison.runs[comparison.reference]
    changes = Changes(comparison, lambda task: reference, relative=True)
    found = {method: changes.of(method) for method in others}
    rows = summarise(comparison)
    cells = {row.label: dict(zip(comparison.runs, row.cells, strict=True)) for row in rows if row.relative}
    task_cells = [dict(zip(comparison.runs, row.cells, strict=True)) for row in rows if row.is_task]
    colors = method_colors(comparison)
    blocks: dict[str, list[Line]] = {}
    summary = f"change against {comparison.reference}"
    parts = {summary: [task.name for task in comparison.tasks]}
    parts |= {f"{summary}, group {path}": list(tasks) for path, tasks in comparison.groups.items()}
    for label, tasks in parts.items():
        metrics = [metric for metric in changes.metrics if metric[0] in tasks]
        title = label.removeprefix(f"{summary}, ") if label != summary else "all tasks"
        blocks[title] = [
            _line(method, colors[method], _mean(found[method], metrics), cells[label][method]) for method in others
        ]
    if len(comparison.tasks) <= _TASKS_AT_MOST:
        for metric, of_method in zip(changes.metrics, task_cells, strict=True):
            blocks[named(metric)] = [
                _line(method, colors[method], estimate([*found[method][metric].values()]), of_method[method])
                for method in others
            ]
    return blocks


def _mean(changes: dict[tuple[str, str], dict[int, float]], metrics: Sequence[tuple[str, str]]) -> Estimate:
    seeds = changes[metrics[0]]
    return estimate([fmean(changes[metric][seed] for metric in metrics) for seed in seeds])


def _line(method: str, color: str, change: Estimate, cell: Cell) -> Line:
    low, high = change.mean - change.half_width, change.mean + change.half_width
    text = "not defined"
    if math.isfinite(change.mean):
        sign = "" if cell.diverged or cell.text else format_sign(cell)
        text = f"{format_estimate(change, compact=True, signed=True)} % {sign}".rstrip()
    return Line(method, color, low, change.mean, high, text)


def _limit(lines: Sequence[Line]) -> float:
    """The end of the axis: all means, and intervals as far as they do not dwarf them."""
    sound = [line for line in lines if math.isfinite(line.mean)]
    means = max((abs(line.mean) for line in sound), default=0.0)
    ends = max(
        (abs(end) for line in sound for end in (line.low, line.mean, line.high) if math.isfinite(end)), default=0.0
    )
    return 1.05 * min(ends, 3 * means) or 1.0


def _place(value: float, limit: float) -> float:
    middle = (_LEFT + _RIGHT) / 2
    return round(middle + max(-1.0, min(1.0, value / limit)) * (_RIGHT - _LEFT) / 2, 1)


def _drawn(line: Line, top: float, limit: float) -> list[str]:
    y = top + 8
    parts = [f'<text x="16" y="{y + 4}">{escape(_short(line.name, 36))}</text>']
    kind = "" if math.isfinite(line.mean) else ' class="quiet"'
    parts.append(f'<text{kind} x="{_RIGHT + 12}" y="{y + 4}">{escape(line.text)}</text>')
    if math.isfinite(line.low + line.high):
        if line.low < limit and line.high > -limit:
            path = f"M{_place(line.low, limit)} {y}H{_place(line.high, limit)}"
            parts.append(f'<path d="{path}" stroke="{line.color}" stroke-width="2"/>')
        for end in (line.low, line.high):
            if abs(end) > limit:
                tip, back = _place(end, limit), math.copysign(6, -end)
                parts.append(f'<path d="M{tip} {y}l{back:g} -4v8z" fill="{line.color}"/>')
    if abs(line.mean) <= limit:
        parts.append(f'<circle cx="{_place(line.mean, limit)}" cy="{y}" r="4" fill="{line.color}"/>')
    return parts


def _head() -> list[str]:
    return [
        f'<text class="quiet" x="{(_LEFT + _RIGHT) / 2 - 8}" y="{_TOP - 10}" text-anchor="end">← better</text>',
        f'<text class="quiet" x="{(_LEFT + _RIGHT) / 2 + 8}" y="{_TOP - 10}">worse →</text>',
    ]


def _frame(limit: float, bottom: float, legend: Sequence[str]) -> list[str]:
    middle = (_LEFT + _RIGHT) / 2
    step = 10 ** math.floor(math.log10(limit))
    step = next(size * step for size in (0.2, 0.5, 1, 2, 5) if limit / (size * step) < 4)
    parts = []
    for number in range(-int(limit / step), int(limit / step) + 1):
        x, kind = _place(number * step, limit), "grid" if number else "axis"
        parts.append(f'<path class="{kind}" d="M{x} {_TOP}V{bottom}"/>')
        label = f'<text class="quiet" x="{x}" y="{bottom + 16}" text-anchor="middle">{number * step:g}</text>'
        parts.append(label)
    for row, text in enumerate(legend):
        y = bottom + 34 + 18 * row
        parts.append(f'<text class="quiet" x="{middle}" y="{y}" text-anchor="middle">{escape(text)}</text>')
    return parts


def _short(text: str, length: int) -> str:
    """The text as it fits, without anything that is not printed."""
    shown = inert(text)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"
