"""The tables of the README: generated from the committed records, never typed.

``python tests/readme.py`` writes them; a test compares.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pages

import equipoise as eq
from equipoise.lab._methods import METHODS
from equipoise.lab._statistics import group
from equipoise.lab._store import Store
from equipoise.lab._table import to_markdown

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RECORDS = ROOT / "results" / "first_light"


def methods() -> str:
    """Every public balancer, with the first line of its docstring and its name on the command line."""
    commands = {getattr(factory, "__name__", ""): name for name, (factory, _) in METHODS.items()}
    commands["Static"] = commands.pop("static")
    lines = ["| class | what it is | on the command line |", "|:--|:--|:--|"]
    for name, value in sorted(vars(eq).items()):
        if isinstance(value, type) and issubclass(value, eq.Balancer) and value is not eq.Balancer:
            command = f"`{commands[name]}`" if name in commands else ""
            lines.append(f"| `eq.{name}` | {_plain(inspect.getdoc(value))} | {command} |")
    return "\n".join(lines) + "\n"


def _plain(docstring: str | None) -> str:
    """The first sentence, its formulas as code."""
    first = " ".join((docstring or "").split("\n\n")[0].split())
    return re.sub(r":math:`(.*?)`", r"$\1$", first).replace("``", "`").replace("|", r"\|")


def first_light() -> str:
    """What the records say."""
    comparisons = group(Store(RECORDS).load_all())
    return "\n".join(f"**{c.spec.problem}**\n\n{to_markdown(c, tasks=False)}" for c in comparisons)


TABLES = {"results/first_light": first_light, "methods": methods}


if __name__ == "__main__":
    pages.write(README, TABLES)
