"""Comparisons as a table of numbers: a line for every row and method."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from equipoise.lab.printable import inert
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.rows import summarise
from equipoise.lab.results.statistics import Estimate

_COLUMNS = [
    *("comparison", "part", "row", "unit", "better", "method", "n", "value", "value_half_width"),
    *(
        "difference",
        "difference_half_width",
        "difference_n",
        "p_holm",
        "mark",
        "no_mark_because",
        "last_value",
        "last_value_half_width",
    ),
    *("last_difference", "last_difference_half_width", "diverged_runs", "note", "code", "older_code"),
]


def to_csv(comparisons: Iterable[Comparison]) -> str:
    """All numbers of the tables, unrounded; a number that is not there is empty.

    Runs of other code are another comparison, which ``code`` tells apart. Half-widths are those of 95 % t-intervals. ``n`` is
    the number of seeds behind the value, and ``difference_n`` the number of those that the method and the reference have in
    common.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    table.writeheader()
    for comparison in comparisons:
        table.writerows({key: _shown(value) for key, value in line.items()} for line in _lines(comparison))
    return text.getvalue()


def _lines(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for row in summarise(comparison):
        for (method, runs), cell in zip(comparison.runs.items(), row.cells, strict=True):
            better = None if row.higher_is_better is None else "higher" if row.higher_is_better else "lower"
            yield {
                "comparison": comparison.title,
                "code": comparison.spec.code[:12],
                "older_code": comparison.older,
                "part": row.part,
                "row": row.label,
                "unit": row.unit,
                "better": better,
                "method": method,
                "n": cell.value.n or len(runs),
                "p_holm": cell.p_value,
                **_numbers("value", cell.value),
                **_numbers("difference", cell.difference),
                "difference_n": cell.difference.n if cell.difference else None,
                **_numbers("last_value", cell.last),
                **_numbers("last_difference", cell.last_difference),
                "mark": cell.verdict,
                "no_mark_because": cell.withheld,
                "diverged_runs": cell.diverged,
                "note": "; ".join(filter(None, (cell.text, cell.note))),
            }


def _numbers(name: str, found: Estimate | None) -> dict[str, float | None]:
    return {name: found.mean, f"{name}_half_width": found.half_width} if found else {}


def _shown(value: Any) -> Any:
    """A name that a spreadsheet would read as a formula is led by an apostrophe; NaN is empty."""
    if isinstance(value, str):
        return f"'{inert(value)}" if value.startswith(("=", "+", "-", "@")) else inert(value)
    return "" if value is None or value != value else value
