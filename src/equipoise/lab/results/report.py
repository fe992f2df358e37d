"""One HTML file that shows comparisons: a picture, tables, curves, and where the numbers come from. It needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from equipoise.lab.files import write_whole
from equipoise.lab.printable import inert
from equipoise.lab.record import Record
from equipoise.lab.results import figures, forest
from equipoise.lab.results.cells import Row
from equipoise.lab.results.comparison import Comparison, group
from equipoise.lab.results.csv import to_csv
from equipoise.lab.results.flags import flags
from equipoise.lab.results.format import (
    format_difference,
    format_last,
    format_sign,
    format_unit,
    format_value,
)
from equipoise.lab.results.palette import method_colors, task_colors
from equipoise.lab.results.provenance import format_spec, legend, provenance
from equipoise.lab.results.rows import summarise

_ASSETS = Path(__file__).parent / "assets"


def write_report(records: Iterable[Record], path: Path, reference: str | None = None) -> None:
    """Write the report on runs: one self-contained HTML file, which opens anywhere and loads nothing.

    Args:
        records: Runs of any number of problems; `group` sorts them into comparisons.
        path: The file. Its folder is made if need be.
        reference: The method that the others are compared with; see `group`.

    Raises:
        ValueError: There are no records, they contradict each other, or none is of the reference.
    """
    comparisons = group(records, reference)
    if not comparisons:
        raise ValueError("report: wanted at least one record, found none")
    write_comparisons(comparisons, path)


def write_comparisons(comparisons: Sequence[Comparison], path: Path, *, lead: str = "") -> None:
    """Write the report on comparisons.

    Args:
        comparisons: At least one.
        path: The file. Its folder is made if need be.
        lead: HTML that stands before them.
    """
    scripts = [get_plotlyjs(), (_ASSETS / "report.js").read_text(encoding="utf-8")]
    environment = Environment(loader=FileSystemLoader(_ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html").render(
        problems=[_problem(comparison) for comparison in comparisons],
        csv=base64.b64encode(to_csv(comparisons).encode()).decode(),
        lead=Markup(lead),
        runs=sum(len(comparison.records) for comparison in comparisons),
        scripts=[Markup(script) for script in scripts],
        # The page's policy lets these two scripts run and nothing else, with any names in the records.
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
    )
    write_whole(path, page)


def _problem(comparison: Comparison) -> dict[str, Any]:
    """The part of the template for one comparison."""
    methods, tasks = list(comparison.runs), [task.name for task in comparison.tasks]
    rows = summarise(comparison)
    return {
        "title": inert(comparison.title),
        "older": comparison.older,
        "steps": comparison.spec.steps,
        "settings": inert(format_spec(comparison.spec)),
        "seeds": len(comparison.seeds),
        "reference": comparison.reference,
        "methods": [
            {"name": method, "shown": inert(method), "color": color, "n": len(comparison.runs[method])}
            for method, color in method_colors(comparison).items()
        ],
        "tasks": [{"shown": inert(task), "color": color} for task, color in task_colors(comparison).items()],
        "rows": [_row(row) for row in rows],
        "legend": [inert(line) for line in legend(comparison, rows)],
        "flags": [inert(flag) for flag in flags(comparison)],
        "forest": Markup(forest.to_svg(comparison)) if len(methods) > 1 else None,
        "opening": figures.opening(comparison),
        "balancing": figures.balancing(comparison),
        "losses": figures.per_task(comparison, figures.losses),
        "metrics": figures.per_task(comparison, figures.metrics),
        "bands": {"tasks": len(tasks) <= figures.BAND_LIMIT, "methods": len(methods) <= figures.BAND_LIMIT},
        "provenance": {key: inert(value) for key, value in provenance(comparison).items()},
        "csv": base64.b64encode(to_csv([comparison]).encode()).decode(),
    }


def _row(row: Row) -> dict[str, Any]:
    cells = []
    for cell in row.cells:
        sign = "" if cell.diverged or cell.text else format_sign(cell)
        cells.append(
            {
                "text": f"{format_value(replace(cell, note=''), signed=row.relative)} {sign if row.relative else ''}".rstrip(),
                "note": inert(cell.note),
                "difference": "" if row.relative else format_difference(cell),
                "last": format_last(cell, signed=row.relative),
                "verdict": cell.verdict,
                "diverged": cell.diverged,
                "p": "" if cell.p_value != cell.p_value else f"p = {cell.p_value:.2g} after Holm's correction",
                "sort": cell.value.mean if cell.value.mean == cell.value.mean else "",
            }
        )
    return {"label": inert(row.label), "unit": inert(format_unit(row)), "part": row.part, "cells": cells}
