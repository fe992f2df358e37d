"""The tables of the README: generated from the committed records, never typed.

``python tests/readme.py`` writes them; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from equipoise.lab._statistics import group
from equipoise.lab._store import Store
from equipoise.lab._table import to_markdown

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RECORDS = ROOT / "results" / "first_light"
BEGIN, END = "<!-- table: results/first_light -->\n", "<!-- end of table -->"


def generated() -> str:
    """What the records say."""
    comparisons = group(Store(RECORDS).load_all())
    return "\n".join(f"**{c.spec.problem}**\n\n{to_markdown(c, tasks=False)}" for c in comparisons)


def published() -> str:
    """What the README says."""
    return README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def main() -> None:
    """Write the tables anew."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(before + BEGIN + generated() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
