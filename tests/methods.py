"""The page of all methods: generated from the code, never typed.

``python tests/methods.py`` writes it; a test compares.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import torch
from helpers.networks import MLP

import equipoise as eq
from equipoise.balancers._combining import CombiningBalancer

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
TASKS = ("a", "b", "c")
COST = {
    "losses": "none",
    "gradient norms at W": "norms of T gradients at W, within the one backward pass",
    "task gradients inside the fork": "T gradients at the features or at W, combined within the one backward pass",
    "task gradients at W": "T gradients at W, within the one backward pass, kept until the step",
}
"""What a method needs -> what that costs in a step that is measured."""


HEAD = """# All methods

Generated from the code (`python tests/methods.py`); do not edit. How each differs from its paper is said in its docstring.

"""
BETWEEN = """

W is the last shared layer, or what else is measured; T is the number of tasks. What every balancer keeps (weights, their mean,
`L_i(0)`, counts of steps) is not listed.

"""


def methods() -> dict[str, type[eq.Balancer]]:
    """Every public balancer, by name."""
    found = {name: value for name, value in vars(eq).items() if isinstance(value, type)}
    return {name: cls for name, cls in sorted(found.items()) if issubclass(cls, eq.Balancer) and cls is not eq.Balancer}


def section(cls: type, title: str) -> str:
    """A section of a docstring in one line, with formulas as code; empty if there is none."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", inspect.getdoc(cls) or "", re.MULTILINE)
    return plain(found.group(1)) if found else ""


def summary(cls: type) -> str:
    """The first sentence."""
    return plain((inspect.getdoc(cls) or "").split("\n\n")[0])


def plain(text: str) -> str:
    """Text of a docstring as a cell of a table."""
    text = re.sub(r":math:`(.*?)`", r"$\1$", " ".join(text.split()))
    return text.replace("``", "`").replace("|", r"\|")


def needs(balancer: eq.Balancer) -> str:
    """What a step of the method is made of."""
    if isinstance(balancer, CombiningBalancer):
        return "task gradients inside the fork"
    if type(balancer)._wants_gradients:
        return "task gradients at W"
    return "losses" if balancer._every is None else "gradient norms at W"


def state(balancer: eq.Balancer) -> list[str]:
    """What the method keeps beyond what every balancer keeps."""
    common = eq.Equal(TASKS)
    kept = balancer.state_dict().keys() - common.state_dict().keys()
    return sorted(kept | (balancer.get_extra_state().keys() - common.get_extra_state().keys()))


def one_of_each() -> dict[str, eq.Balancer]:
    """An instance of every method, as the contract builds it."""
    path = Path(__file__).parent / "balancers" / "test_contract.py"
    spec = importlib.util.spec_from_file_location("contract", path)
    contract = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contract)
    found: dict[str, eq.Balancer] = {}
    for build in contract.BALANCERS.values():
        balancer = build(MLP(TASKS).fork)
        found.setdefault(type(balancer).__name__, balancer)
    return found


def page() -> str:
    """The page, from the code as it is."""
    which = ["| class | what it is | when to use it |", "|:--|:--|:--|"]
    what = ["| class | needs | cost of a measured step | keeps | reference |", "|:--|:--|:--|:--|:--|"]
    instances = one_of_each()
    for name, cls in methods().items():
        needed = needs(instances[name])
        handed_in = ", and what `observe` is handed" if hasattr(cls, "observe") else ""
        kept = ", ".join(f"`{entry}`" for entry in state(instances[name])) or "nothing"
        reference = section(cls, "References") or "none"
        which.append(f"| `eq.{name}` | {summary(cls)} | {section(cls, 'When to use')} |")
        what.append(f"| `eq.{name}` | {needed}{handed_in} | {COST[needed]} | {kept} | {reference} |")
    return HEAD + "\n".join(which) + BETWEEN + "\n".join(what) + "\n"


def main() -> None:
    """Write the page anew."""
    torch.manual_seed(0)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
