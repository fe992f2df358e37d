"""Records as tables: Markdown for a page, Rich for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from rich.table import Table
from rich.text import Text

from equipoise.bench.methods import FLOOR, METHODS
from equipoise.bench.ratio import paired_ratio
from equipoise.bench.record import Record

_MEBIBYTE = 2**20
_Cell = Callable[[Record, str], str]


def to_markdown(records: Sequence[Record]) -> str:
    """Tables of time and of memory, the reasons of the methods that were not run, and the origin of the figures.

    Args:
        records: One for every workload and device; they stand in this order.
    """
    methods, reasons = _methods(records), _reasons(records)
    ours = [method for method in methods if METHODS[method].ours]
    theirs = [method for method in methods if method not in ours and method != FLOOR]
    time, memory = "**Time per step**", "**Peak memory of a step**"
    explained = f"{FLOOR} in ms, the others divided by it: median over the rounds, 95 % interval"
    tables = [
        (f"{time}, this library: {explained}", [FLOOR, *ours], _time),
        (f"{time}, the others: as above", [FLOOR, *theirs], _time),
        (f"{memory}, this library: {FLOOR} in MiB, the others divided by it", [FLOOR, *ours], _memory),
        (f"{memory}, the others: as above", [FLOOR, *theirs], _memory),
    ]
    lines: list[str] = []
    for title, columns, cell in tables:
        rows = [["workload", "T", *columns], [":--", "--:", *["--:"] * len(columns)], *_rows(records, columns, cell)]
        lines += [title, "", *(f"| {' | '.join(row)} |" for row in rows), ""] if columns[1:] else []
    lines += [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)] + [""] * bool(reasons)
    lines += ["| workload | description | W |", "|:--|:--|:--|"]
    lines += [f"| {_label(record)} | {record.line} | {record.last_shared} |" for record in records]
    lines += ["", "| method | description |", "|:--|:--|"]
    lines += [f"| {method} | {METHODS[method].line} |" for method in methods]
    lines += [
        "",
        "<details><summary>Where these figures come from</summary>",
        "",
        _provenance(records),
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def to_rich(record: Record) -> Table:
    """One record for a terminal, a row for each method."""
    table = Table(title=f"{_label(record)}: {record.line}", title_justify="left")
    table.add_column("method")
    table.add_column("time", justify="right")
    table.add_column("memory", justify="right")
    table.add_column("not run")
    for method in _methods([record]):
        if method in record.costs:
            table.add_row(method, _time(record, method), _memory(record, method), "")
        else:
            table.add_row(method, "", "", Text(record.not_run[method]))
    return table


def _rows(records: Sequence[Record], methods: Sequence[str], cell: _Cell) -> Iterable[list[str]]:
    reasons = _reasons(records)
    for record in records:
        cells = [
            cell(record, method)
            if method in record.costs
            else f"[{reasons.index(record.not_run[method]) + 1}]"
            if method in record.not_run
            else ""
            for method in methods
        ]
        yield [_label(record), str(record.num_tasks), *cells]


def _time(record: Record, method: str) -> str:
    seconds, floor = record.costs[method].seconds, record.costs[FLOOR].seconds
    if method == FLOOR:
        return f"{1000 * median(seconds):.3g} ms"
    ratio = paired_ratio(seconds, floor)
    interval = "" if math.isnan(ratio.low) else f" ({_number(ratio.low)} to {_number(ratio.high)})"
    return f"{_number(ratio.median)}{interval}"


def _memory(record: Record, method: str) -> str:
    peak, floor = record.costs[method].peak_bytes, record.costs[FLOOR].peak_bytes
    return f"{peak / _MEBIBYTE:.3g} MiB" if method == FLOOR else _number(peak / floor)


def _number(ratio: float) -> str:
    """Two places behind the point, three digits at least."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def _label(record: Record) -> str:
    return record.workload if record.device == "cpu" else f"{record.workload}, {record.device}"


def _methods(records: Sequence[Record]) -> list[str]:
    """Those that any record speaks of, in their own order."""
    return [method for method in METHODS if any(method in {*record.costs, *record.not_run} for record in records)]


def _reasons(records: Sequence[Record]) -> list[str]:
    """Why methods were not run; those of methods that are gone are in no row."""
    not_run = [(method, reason) for record in records for method, reason in record.not_run.items()]
    return list(dict.fromkeys(reason for method, reason in not_run if method in METHODS))


def _provenance(records: Sequence[Record]) -> str:
    facts = {
        name: sorted({str(record.environment[name]) for record in records})
        for name in records[0].environment
        if name != "date"
    }
    dates = sorted(str(record.environment["date"]) for record in records)
    rounds = sorted({len(record.costs[FLOOR].seconds) for record in records})
    facts = {"rounds": [str(number) for number in rounds], **facts, "date": sorted({dates[0], dates[-1]})}
    return " · ".join(f"{name}: {', '.join(values)}" for name, values in facts.items())
