"""A comparison as a table: for the terminal (Rich) and as Markdown. The cells read the same everywhere."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from dataclasses import fields

from rich.table import Table
from rich.text import Text

from equipoise.lab.problems import PROBLEMS
from equipoise.lab.record import RunSpec
from equipoise.lab.results.statistics import Cell, Comparison, Estimate, Row, summarise

MARKS = {"better": "✓", "worse": "✗"}
"""Sign of a verdict behind a value."""

_STYLES = {"better": "green", "worse": "red", None: ""}


def format_estimate(value: Estimate) -> str:
    """``mean ± half-width``, rounded to two digits of the half-width; a value without interval says why.

    Example:
        >>> format_estimate(Estimate(0.53218, 0.01034, n=5))
        '0.532 ± 0.010'
        >>> format_estimate(Estimate(0.53218, float("nan"), n=1))
        '0.5322 (n = 1)'
    """
    if not math.isfinite(value.mean):
        return "–"
    alone = math.isnan(value.half_width)
    largest = abs(value.mean) if alone else max(abs(value.mean), value.half_width)
    magnitude = math.floor(math.log10(largest)) if largest else 0
    last = magnitude - 3 if alone or not value.half_width else math.floor(math.log10(value.half_width)) - 1
    last = max(last, magnitude - 5)
    scale, exponent = (1.0, "") if -4 <= magnitude < 6 else (10.0**magnitude, f"e{magnitude}")
    decimals = max(0, -last + (magnitude if exponent else 0))
    mean = f"{round(value.mean / scale, decimals) + 0.0:.{decimals}f}"  # + 0.0 turns -0 into 0
    if alone:
        return f"{mean}{exponent} (n = {value.n})"
    text = f"{mean} ± {value.half_width / scale:.{decimals}f}"
    return f"({text}){exponent}" if exponent else text


def format_cell(cell: Cell) -> str:
    """The cell's value with the mark of its verdict; a diverged run takes the place of the value."""
    if cell.diverged:
        return f"{cell.diverged} run{'s' if cell.diverged > 1 else ''} diverged"
    note = f" ({cell.note})" if cell.note else ""
    mark = f" {MARKS[cell.verdict]}" if cell.verdict else ""
    return f"{format_estimate(cell.value)}{note}{mark}"


def format_unit(row: Row) -> str:
    """Metric or unit, with an arrow that points to the better side."""
    return f"{row.unit} {'↑' if row.higher_is_better else '↓'}"


def format_spec(spec: RunSpec) -> str:
    """The settings that the runs of a comparison have in common, in one line."""
    settings = "".join(f", {key} {value}" for key, value in spec.problem_settings.items() if key != "steps")
    return f"{spec.steps} steps{settings}, evaluated every {spec.evaluate_every} steps, {spec.device}, {spec.precision}"


def legend(comparison: Comparison) -> str:
    """How the table is read."""
    return (
        "Mean ± half of the 95 % t-interval over seeds, test split, read where the task-normalised validation loss is "
        f"smallest; ✓ better and ✗ worse than {comparison.reference}: the 95 % interval of the paired differences "
        f"excludes 0; changes against {comparison.reference}: positive is worse"
    )


def command(comparison: Comparison) -> str:
    """The command that makes these runs. A problem that the library does not know is a file in the working folder."""
    spec = comparison.spec
    known = PROBLEMS.get(spec.problem)
    defaults = {field.name: field.default for field in fields(known)} if known else {}
    options = {"--methods": ",".join(comparison.runs), "--seeds": max(comparison.seeds) + 1, "--steps": spec.steps}
    words = [
        "equipoise",
        "compare",
        spec.problem if known else f"{spec.problem}.py",
        *(str(word) for option in options.items() for word in option),
    ]
    for key, value in spec.problem_settings.items():
        if key != "steps" and not (key in defaults and defaults[key] == value):
            words += ["--set", f"{key}={value}"]
    return shlex.join([*words, "--device", spec.device, "--precision", spec.precision])


def provenance(comparison: Comparison) -> dict[str, str]:
    """Where the numbers come from: seeds, settings, environment (every value that occurs), code digest and command."""
    counts = sorted({len(runs) for runs in comparison.runs.values()})
    found: dict[str, dict[str, None]] = {}
    for record in comparison.records:
        for key, value in record.environment.items():
            found.setdefault(key, {})[str(value)] = None
    return {
        "runs": f"n = {' or '.join(map(str, counts))} per method, seeds {', '.join(map(str, comparison.seeds))}",
        "settings": format_spec(comparison.spec),
        **{key: _joined(key, list(values)) for key, values in found.items()},
        "code": comparison.spec.code,
        "command": command(comparison),
    }


def _joined(key: str, values: list[str]) -> str:
    """Every value; of the runs' dates only the first and the last."""
    return " to ".join(sorted({min(values), max(values)})) if key == "date" else "; ".join(values)


def to_rich(comparison: Comparison) -> Table:
    """The table for a terminal."""
    table = Table(title=Text(comparison.spec.problem), caption=Text(legend(comparison)), caption_justify="left")
    table.add_column("task")
    table.add_column("metric")
    for label, runs in comparison.runs.items():
        table.add_column(Text(f"{label}\nn = {len(runs)}", justify="right"), justify="right")
    rows = summarise(comparison)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        cells = [Text(format_cell(cell), style=_STYLES[cell.verdict]) for cell in row.cells]
        last_task = row.is_task and (following is None or not following.is_task)
        table.add_row(Text(row.label), Text(format_unit(row)), *cells, end_section=last_task)
    return table


def to_markdown(comparison: Comparison, *, tasks: bool = True) -> str:
    """The table with its legend and provenance as Markdown; names are escaped, so they show as they are.

    Args:
        comparison: The runs.
        tasks: Whether to show a row for every task, or the summary alone.
    """
    head = ["task", "metric", *(f"{label} (n = {len(runs)})" for label, runs in comparison.runs.items())]
    body = [
        [row.label, format_unit(row), *map(format_cell, row.cells)]
        for row in summarise(comparison)
        if tasks or not row.is_task
    ]
    rule = [":--", ":--", *["--:"] * len(comparison.runs)]
    lines = [head, *body]
    table = [_line(map(_escape, cells)) for cells in lines]
    facts = provenance(comparison)
    made = facts.pop("command")
    origin = " · ".join(f"{key}: {value}" for key, value in facts.items())
    text = [f"{_escape(legend(comparison))}.", "", f"`` {made} ``", ""]
    text += ["<details><summary>Where these figures come from</summary>", "", _escape(origin), "", "</details>", ""]
    return "\n".join([table[0], _line(rule), *table[1:], "", *text])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """The text with its mark-up characters escaped for Markdown; underscores inside words are safe as they are."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*<>\[\]|~$&#]|(?<!\w)_|_(?!\w))", r"\\\1", flat)
