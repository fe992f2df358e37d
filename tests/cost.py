"""The page on what balancing costs: its table and its figure, generated from the committed records, never typed.

``python tests/cost.py`` writes them; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from equipoise.bench._figure import to_svg
from equipoise.bench._record import Record, load_all
from equipoise.bench._table import to_markdown
from equipoise.bench.workloads import workloads

ROOT = Path(__file__).parents[1]
PAGE, FIGURE, RECORDS = ROOT / "docs" / "cost.md", ROOT / "docs" / "cost.svg", ROOT / "results" / "cost"
BEGIN, END = "<!-- table: results/cost -->\n", "<!-- end of table -->"


def records() -> list[Record]:
    """Those committed, in the order of the workloads; those of a GPU at the end."""
    order = list(workloads("cpu"))
    return sorted(load_all(RECORDS), key=lambda record: (record.device, order.index(record.workload)))


def table() -> str:
    """What the records say."""
    return to_markdown(records())


def figure() -> str:
    """What they say of the number of tasks."""
    return to_svg([record for record in records() if record.device == "cpu"])


def parts() -> tuple[str, str, str]:
    """The page before, in and after the table."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


def main() -> None:
    """Write table and figure anew."""
    before, _, after = parts()
    PAGE.write_text(before + table() + after, encoding="utf-8")
    FIGURE.write_text(figure(), encoding="utf-8")


if __name__ == "__main__":
    main()
