"""A comparison as a table in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from equipoise.lab.printable import inert
from equipoise.lab.results.cells import at_last_step
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.flags import flags
from equipoise.lab.results.format import format_cell, format_unit
from equipoise.lab.results.provenance import legend, provenance
from equipoise.lab.results.rows import summarise


def to_markdown(comparison: Comparison, *, tasks: bool = True) -> str:
    """The table with its legend and provenance as Markdown; names are escaped, so they show as they are.

    Args:
        comparison: The runs.
        tasks: Whether to show a row for every task, or the summary alone.
    """
    rows = summarise(comparison)
    shown = [row for row in rows if row.is_task and tasks]
    summary = [row for row in rows if row.part == "summary"]
    shown += [*summary, *map(at_last_step, summary), *(row for row in rows if row.part == "run")]
    head = ["task", "metric", *(f"{label} (n = {len(runs)})" for label, runs in comparison.runs.items())]
    body = [
        [row.label, format_unit(row), *(format_cell(cell, relative=row.relative) for cell in row.cells)]
        for row in shown
    ]
    rule = [":--", ":--", *["--:"] * len(comparison.runs)]
    table = [_line(map(escape, cells)) for cells in [head, *body]]
    facts = provenance(comparison)
    made = facts.pop("command", "")
    origin = " · ".join(f"{key}: {value}" for key, value in facts.items())
    text = [escape(" ".join(legend(comparison, rows))), ""]
    text += [f"- {escape(flag)}" for flag in flags(comparison)] + [""]
    text += [_code(made), ""] if made else []
    text += ["<details><summary>Where these figures come from</summary>", "", escape(origin), "", "</details>", ""]
    return "\n".join([table[0], _line(rule), *table[1:], "", *text])


def to_document(comparisons: Iterable[Comparison], *, tasks: bool = True) -> str:
    """The tables of comparisons, each below its title; those of older code are folded away."""
    parts = []
    for comparison in comparisons:
        title, table = escape(comparison.title), to_markdown(comparison, tasks=tasks)
        if comparison.older:
            parts.append(f"<details><summary>Older code: {title}</summary>\n\n{table}\n</details>\n")
        else:
            parts.append(f"### {title}\n\n{table}")
    return "\n".join(parts)


def escape(text: str) -> str:
    """The text with its mark-up characters escaped for Markdown; underscores inside words are safe as they are."""
    flat = inert(" ".join(text.split()))
    return re.sub(r"([\\`*<>\[\]|~$&#]|(?<!\w)_|_(?!\w)|(?<=https):|(?<=http):|(?<=www)\.)", r"\\\1", flat)


def _code(text: str) -> str:
    """Text as code, however many backticks it holds."""
    flat = inert(" ".join(text.split()))
    fence = "`" * (max(map(len, re.findall("`+", flat)), default=1) + 1)
    return f"{fence} {flat} {fence}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
