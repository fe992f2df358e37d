"""The page of all methods: generated from the public classes, never typed.

``python -m docs.generate.methods`` writes it; a test compares.
"""

from __future__ import annotations

import inspect
import re

import equipoise as eq
from equipoise.combine.combining import CombiningBalancer

from .pages import ROOT, as_cell, summary

PAGE = ROOT / "docs" / "methods.md"
COST = {
    "losses": "none",
    "gradient norms at W": "norms of T gradients at W, within the one backward pass",
    "task gradients inside the fork": "T gradients at the features or at W, combined within the one backward pass",
}
"""The need of a method -> its cost in a step that is measured."""
_PAGES = {"losses": "losses.md", "gradient norms at W": "norms.md", "task gradients inside the fork": "gradients.md"}
"""The need of a method -> the page of the reference that describes it."""


HEAD = """# All methods

Which methods there are, when to use each, and what each needs and keeps. [Which method](start/which_method.md) helps you
choose. The name of a method links to its docstring, with the formula and the differences from the paper.

<!-- Generated from the code by python -m docs.generate.methods; do not edit. -->

"""
BETWEEN = """

W is the last shared layer, or the other parameters at which gradients are measured; T is the number of tasks. *Keeps* lists the
state beyond that of every balancer (weights, their mean, `L_i(0)`, counts of steps), without the buffers of a given aggregator.

"""


def methods() -> dict[str, type[eq.Balancer]]:
    """Every public balancer, by name."""
    found = {name: getattr(eq, name) for name in eq.__all__ if isinstance(getattr(eq, name), type)}
    return {name: cls for name, cls in sorted(found.items()) if issubclass(cls, eq.Balancer) and cls is not eq.Balancer}


def section(cls: type, title: str) -> str:
    """A section of a docstring in one line, with formulas as code; empty if there is none."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", inspect.getdoc(cls) or "", re.MULTILINE)
    return as_cell(found.group(1)) if found else ""


def needs(cls: type[eq.Balancer]) -> str:
    """The quantities that a step of the method needs."""
    if issubclass(cls, CombiningBalancer):
        return "task gradients inside the fork"
    return "gradient norms at W" if cls.needs_norms else "losses"


def state(cls: type[eq.Balancer]) -> tuple[str, ...]:
    """The fields of the method's state, beside those of every balancer."""
    return tuple(cls.state_type._fields)


def page() -> str:
    """The page, from the code as it is."""
    when = ["| class | description | when to use it |", "|:--|:--|:--|"]
    costs = ["| class | needs | cost of a measured step | keeps | reference |", "|:--|:--|:--|:--|:--|"]
    for name, cls in methods().items():
        needed = needs(cls)
        handed_in = ", and the values handed to `observe`" if hasattr(cls, "observe") else ""
        kept = ", ".join(f"`{entry}`" for entry in state(cls)) or "nothing"
        reference = section(cls, "References") or "none"
        link = f"[`eq.{name}`](reference/{_PAGES[needed]})"
        when.append(f"| {link} | {summary(inspect.getdoc(cls))} | {section(cls, 'When to use')} |")
        costs.append(f"| `eq.{name}` | {needed}{handed_in} | {COST[needed]} | {kept} | {reference} |")
    return HEAD + "\n".join(when) + BETWEEN + "\n".join(costs) + "\n"


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
