"""The tables of the README: generated from the committed records, never typed.

``python -m docs.generate.readme`` writes them; a test compares.
"""

from __future__ import annotations

import inspect

from equipoise.lab.results.comparison import group
from equipoise.lab.results.markdown import to_markdown
from equipoise.lab.runs.methods import METHODS
from equipoise.lab.store.store import Store

from .methods import methods as all_methods
from .pages import ROOT, summary, write

README = ROOT / "README.md"
RECORDS = ROOT / "results" / "first_light"


def methods() -> str:
    """Every public balancer, with the first sentence of its docstring and its name on the command line."""
    commands = {getattr(factory, "__name__", ""): name for name, (factory, _) in METHODS.items()}
    commands["Static"] = commands.pop("static")
    lines = ["| class | what it is | on the command line |", "|:--|:--|:--|"]
    for name, cls in all_methods().items():
        command = f"`{commands[name]}`" if name in commands else ""
        lines.append(f"| `eq.{name}` | {summary(inspect.getdoc(cls))} | {command} |")
    return "\n".join(lines) + "\n"


def first_light() -> str:
    """The tables of the records."""
    comparisons = group(Store(RECORDS).load_all())
    return "\n".join(f"**{c.spec.problem}**\n\n{to_markdown(c, tasks=False)}" for c in comparisons)


TABLES = {"results/first_light": first_light, "methods": methods}


def main() -> None:
    """Write the tables anew."""
    write(README, TABLES)


if __name__ == "__main__":
    main()
