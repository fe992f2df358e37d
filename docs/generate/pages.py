"""Pages with tables that are generated: everything between ``<!-- table: its name -->`` and ``<!-- end of table -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The root of the repository."""
END = "<!-- end of table -->"


def parts(page: Path, name: str) -> tuple[str, str, str]:
    """The page before, in and after a table."""
    begin = f"<!-- table: {name} -->\n"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    table, after = rest.split(END, 1)
    return before + begin, table, END + after


def write(page: Path, tables: Mapping[str, Callable[[], str]]) -> None:
    """Write the tables of a page anew."""
    for name, generated in tables.items():
        before, _, after = parts(page, name)
        page.write_text(before + generated() + after, encoding="utf-8")


def as_cell(text: str) -> str:
    """Text of a docstring as a cell of a table, with formulas as code."""
    text = re.sub(r":math:`(.*?)`", r"$\1$", " ".join(text.split()))
    return text.replace("``", "`").replace("|", r"\|")


def summary(docstring: str | None) -> str:
    """The first sentence of a docstring as a cell of a table."""
    return as_cell((docstring or "").split("\n\n")[0])
