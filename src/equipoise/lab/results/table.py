"""A comparison as a table for a terminal: of three layouts, the fullest that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from equipoise.lab.printable import inert
from equipoise.lab.results.cells import Cell, Row, at_last_step
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.flags import flags
from equipoise.lab.results.format import format_difference, format_last, format_sign, format_unit, format_value
from equipoise.lab.results.provenance import legend
from equipoise.lab.results.rows import summarise

_LABEL = 36
"""Columns of the longest label before it goes on in the next line."""
_STYLES = {"better": "green", "worse": "red", None: ""}


def to_rich(comparison: Comparison, width: int = 200) -> Group:
    """The table for a terminal, with its legend and the warnings.

    Beside a column per method for the values, one for the differences; or the differences below the values; or, where even
    that is too wide, a line per method.

    Args:
        comparison: The runs.
        width: Columns of the terminal.
    """
    rows = summarise(comparison)
    console = Console(width=10**6)
    for layout in (_wide, _stacked, _long):
        table = layout(comparison, rows)
        if console.measure(table).maximum <= width:
            break
    table.title, table.title_justify, table.title_style = _text(_title(comparison)), "left", "bold"
    notes = [_text(f"  {line}", "dim") for line in _notes(comparison, rows, compact=layout is not _wide)]
    warnings = [_text(f"! {line}", "yellow") for line in flags(comparison)]
    return Group(table, *notes, *warnings, Text())


def _title(comparison: Comparison) -> str:
    counts = sorted({len(runs) for runs in comparison.runs.values()})
    return f"{comparison.title} (n = {' or '.join(map(str, counts))})"


def _notes(comparison: Comparison, rows: Sequence[Row], *, compact: bool) -> list[str]:
    lines = legend(comparison, rows)
    if compact and _common_metric(rows):
        lines.insert(0, f"Tasks: {_common_metric(rows)}.")
    return [*lines, "0.767(32) stands for 0.767 ± 0.032."] if compact else lines


def _common_metric(rows: Sequence[Row]) -> str:
    """The metric of the tasks if all have the same; else empty."""
    found = {format_unit(row) for row in rows if row.is_task}
    return found.pop() if len(found) == 1 else ""


def _wide(comparison: Comparison, rows: Sequence[Row]) -> Table:
    table = Table(Column("task", max_width=_LABEL, overflow="fold"), "metric")
    for method, runs in comparison.runs.items():
        table.add_column(_text(f"{method}\nn = {len(runs)}"), justify="right")
        if method != comparison.reference:
            table.add_column("difference", justify="right")
    for row, end in _sections(rows):
        cells: list[Text] = []
        for method, cell in zip(comparison.runs, row.cells, strict=True):
            cells.append(_value(row, cell, compact=False))
            if method != comparison.reference:
                cells.append(_difference(row, cell, compact=False))
        table.add_row(_text(row.label), _text(format_unit(row)), *cells, end_section=end)
    return table


def _stacked(comparison: Comparison, rows: Sequence[Row]) -> Table:
    table = Table(Column("task", max_width=_LABEL, overflow="fold"))
    for method, runs in comparison.runs.items():
        table.add_column(_text(f"{method}\nn = {len(runs)}"), justify="right")
    for row, end in _sections(rows):
        cells = []
        for cell in row.cells:
            value, difference = _value(row, cell, compact=True), _difference(row, cell, compact=True)
            cells.append(Text("\n").join([value, difference]) if difference else value)
        table.add_row(_text(f"{row.label}\n{_unit(row, rows)}".rstrip()), *cells, end_section=end)
    return table


def _long(comparison: Comparison, rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("task, method", overflow="fold")
    for head in ("value", "difference", "last step"):
        table.add_column(head, justify="right", overflow="fold")
    for row in rows:
        table.add_row(_text(f"{row.label}  {format_unit(row)}" if _unit(row, rows) else row.label, "bold"))
        for number, (method, cell) in enumerate(zip(comparison.runs, row.cells, strict=True), 1):
            last = format_last(cell, compact=True, signed=row.relative)
            numbers = (_value(row, cell, compact=True), _difference(row, cell, compact=True), Text(last))
            table.add_row(_text(f"  {method}"), *numbers, end_section=number == len(row.cells) and _ends(row, rows))
    return table


def _ends(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a part of the table ends with the row."""
    return row is [other for other in rows if other.part == row.part][-1]


def _sections(rows: Sequence[Row]) -> Iterator[tuple[Row, bool]]:
    """The rows, with the summary once more at the last step, and whether a part of the table ends with it."""
    parts = {part: [row for row in rows if row.part == part] for part in ("task", "summary", "run")}
    for some in (parts["task"], parts["summary"], list(map(at_last_step, parts["summary"])), parts["run"]):
        yield from ((row, row is some[-1]) for row in some)


def _unit(row: Row, rows: Sequence[Row]) -> str:
    """The row's metric or unit, unless the notes tell it."""
    return "" if row.is_task and _common_metric(rows) else format_unit(row)


def _value(row: Row, cell: Cell, *, compact: bool) -> Text:
    value = format_value(cell, compact=compact, signed=row.relative)
    shown = row.relative and not cell.diverged and not cell.text
    sign = f" {format_sign(cell)}" if shown and format_sign(cell) else ""
    return _text(f"{value}{sign}", _STYLES[cell.verdict] if row.relative else "")


def _difference(row: Row, cell: Cell, *, compact: bool) -> Text:
    return Text() if row.relative else _text(format_difference(cell, compact=compact), _STYLES[cell.verdict])


def _text(text: str, style: str = "") -> Text:
    return Text("\n".join(map(inert, text.split("\n"))), style=style)
