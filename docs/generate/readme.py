"""The tables of the README: generated from the committed records, never typed.

``python -m docs.generate.readme`` writes them; a test compares.
"""

from __future__ import annotations

import inspect

from equipoise.lab.results.cells import Row
from equipoise.lab.results.comparison import Comparison, group
from equipoise.lab.results.format import format_cell, format_unit
from equipoise.lab.results.markdown import to_document
from equipoise.lab.results.rows import summarise
from equipoise.lab.runs.methods import METHODS
from equipoise.lab.store.store import Store

from .methods import methods as all_methods
from .pages import ROOT, summary, write

README = ROOT / "README.md"
RECORDS = ROOT / "results" / "first_light"
PAGE = ROOT / "docs" / "first_comparison.md"
QUANTITIES = {"pinn": "equation", "multimnist": "mean of the tasks", "yeast": "mean of the tasks"}
"""The row of each problem that the README shows: of the physics-informed network the error of the solution."""


def methods() -> str:
    """Every public balancer, with the first sentence of its docstring and its name on the command line."""
    commands = {getattr(factory, "__name__", ""): name for name, (factory, _) in METHODS.items()}
    commands["Static"] = commands.pop("static")
    lines = ["| class | what it is | on the command line |", "|:--|:--|:--|"]
    for name, cls in all_methods().items():
        command = f"`{commands[name]}`" if name in commands else ""
        lines.append(f"| `eq.{name}` | {summary(inspect.getdoc(cls))} | {command} |")
    return "\n".join(lines) + "\n"


def comparisons() -> list[Comparison]:
    """The comparisons of the records."""
    return group(Store(RECORDS).load_all())


def first_light() -> str:
    """One row per method, one column per problem, and what they say in a sentence."""
    found = {comparison.spec.problem: (comparison, _row(comparison)) for comparison in comparisons()}
    problems = [name for name in QUANTITIES if name in found]
    methods = list(found[problems[0]][0].runs)
    heads = [
        f"`{name}`: {row.label}, {format_unit(row)}" for name, (_, row) in ((name, found[name]) for name in problems)
    ]
    lines = [f"| method | {' | '.join(heads)} |", f"|:--|{'--:|' * len(problems)}"]
    for number, method in enumerate(methods):
        cells = [format_cell(found[name][1].cells[number], compact=True) for name in problems]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    seeds = {len(comparison.seeds) for comparison, _ in found.values()}
    (count,) = seeds
    said = " ".join(_said(name, *found[name]) for name in problems)
    legend = (
        f"Mean over {count} seeds on the test split, with half of its 95 % t-interval: 0.767(32) stands for 0.767 ± 0.032. "
        "In brackets the paired difference from equal weights, marked ✓ better or ✗ worse where p < 0.05 by the paired "
        "t-test after Holm's correction. Every row: [the first comparison](docs/first_comparison.md)."
    )
    return "\n".join([*lines, "", said, "", legend]) + "\n"


def tables() -> str:
    """All rows of the same comparisons, as a page."""
    head = "# The first comparison\n\nThe README's comparison, with every summary row.\n\n"
    return head + to_document(comparisons(), tasks=False).replace("\n### ", "\n## ").replace("### ", "## ", 1)


def _row(comparison: Comparison) -> Row:
    return next(row for row in summarise(comparison) if row.label == QUANTITIES[comparison.spec.problem])


def _said(name: str, comparison: Comparison, row: Row) -> str:
    """The best and the worst mean, and who is marked against equal weights."""
    cells = dict(zip(comparison.runs, row.cells, strict=True))
    ranked = sorted(cells, key=lambda label: cells[label].value.mean, reverse=bool(row.higher_is_better))
    best, worst = (f"{cells[label].value.mean:.3g} with `{label}`" for label in (ranked[0], ranked[-1]))
    words = [
        f"{verdict} than equal weights: {', '.join(f'`{label}`' for label in cells if cells[label].verdict == verdict)}"
        for verdict in ("better", "worse")
        if any(cell.verdict == verdict for cell in cells.values())
    ]
    marked = "; ".join(words) or f"no method can be told from equal weights with {len(comparison.seeds)} seeds"
    return f"On `{name}` means go from {best} to {worst}; {marked}."


TABLES = {"results/first_light": first_light, "methods": methods}


def main() -> None:
    """Write the tables anew."""
    write(README, TABLES)
    PAGE.write_text(tables(), encoding="utf-8")


if __name__ == "__main__":
    main()
