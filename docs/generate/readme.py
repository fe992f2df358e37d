"""The tables of the README: generated from the committed records, never typed.

``python -m docs.generate.readme`` writes them; a test compares.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

from equipoise.lab.results.format import format_estimate
from equipoise.lab.runs.methods import METHODS

from .answers import baselines, everything
from .answers.contrasts import by_interval, contrast, hidden, of_search, said, standing
from .answers.measures import LOSS, mean_metric
from .answers.page import cell
from .answers.records import results
from .methods import methods as all_methods
from .pages import ROOT, summary, write

README = ROOT / "README.md"
_MEASURES = {
    "pinn": replace(LOSS, name="error of the solution"),
    "yeast": mean_metric("", "mean AUROC", 0.01, higher_is_better=True),
}
"""What the front page shows of each of its studies."""
_HEADLINE = {
    "GradNorm": "GradNorm",
    "closed form, balanced": "Its closed form with a balanced start",
    "1 / L(0)": "The constant weights 1 / L(0)",
}
"""How the headline speaks of some methods."""
_SAME = ("1 / L(0)", "uncertainty", "GradNorm", "tuned static")
_CLOSED = {"pinn": "closed form, alpha 0, balanced", "yeast": "closed form, balanced"}


def methods() -> str:
    """Every public balancer, with the first sentence of its docstring and its name on the command line."""
    commands = {getattr(factory, "__name__", ""): name for name, (factory, _) in METHODS.items()}
    commands["Static"] = commands.pop("static")
    lines = ["| class | description | on the command line |", "|:--|:--|:--|"]
    for name, cls in all_methods().items():
        command = f"`{commands[name]}`" if name in commands else ""
        lines.append(f"| `eq.{name}` | {summary(inspect.getdoc(cls))} | {command} |")
    return "\n".join(lines) + "\n"


def headline() -> str:
    """On how many problems some methods are behind equal weights and ahead of them, by the interval and after correction."""
    found = everything.of(*baselines.STUDIES)
    contrasts = baselines.changes(found)
    lines = [
        f"Against equal weights on the {len(found)} problems of the studies ({everything.groupings(found)}): behind and ahead "
        "by the 95 % interval of each problem, worse and better after Holm's correction for all methods.",
        "",
    ]
    for method, name in _HEADLINE.items():
        ours = [each for each in contrasts if each.method == method]
        ahead, behind = by_interval(ours)
        better = [each for each in ours if each.outcome == "better"]
        worse = sum(each.outcome in ("worse", "diverged") for each in ours)
        said_of = hidden(better)
        lines.append(
            f"- {name}: behind on {behind} and ahead on {ahead} of {len(ours)}; worse on {worse} and better on {len(better)}"
            f"{said_of and f' ({said_of})'}."
        )
    return "\n".join(lines) + "\n"


def first_table() -> str:
    """A problem on which balancing matters beside one on which it does not, each from its study, and what they say."""
    found = {name: results(name)[0].comparison for name in _MEASURES}
    methods = [[name] * len(_MEASURES) for name in _SAME] + [list(_CLOSED.values())]
    contrasts = {
        name: [contrast(found[name], f"`{name}`", row[column], "equal", measure) for row in methods]
        for column, (name, measure) in enumerate(_MEASURES.items())
    }
    heads = [f"`{name}`: {m.name} {'↑' if m.higher_is_better else '↓'}" for name, m in _MEASURES.items()]
    lines = [f"| method | {' | '.join(heads)} |", f"|:--|{'--:|' * len(heads)}"]
    means = [
        format_estimate(m.cell(found[name], "equal", "equal").value, compact=True) for name, m in _MEASURES.items()
    ]
    lines.append(f"| equal weights | {' | '.join(means)} |")
    for number, (label, *_) in enumerate(methods):
        label = label if label in _SAME else "GradNorm in closed form, balanced start"
        lines.append(f"| {label} | {' | '.join(cell(contrasts[name][number]) for name in found)} |")
    said_of = [
        standing(f"`{name}`", found[name], measure)
        + " "
        + said(contrast(found[name], f"`{name}`", _CLOSED[name], "tuned static", measure), where=False)
        for name, measure in _MEASURES.items()
    ]
    said_of.append(of_search({f"`{name}`": comparison for name, comparison in found.items()}))
    (seeds,) = {len(comparison.seeds) for comparison in found.values()}
    legend = (
        f"Every method had the same search for its learning rate, tuned static weights shared theirs with the weights. Mean of "
        f"{seeds} seeds on the test split: 0.767(32) stands for 0.767 ± 0.032, half of the 95 % t-interval. In brackets the "
        "paired difference from equal weights; ✓ better, ✗ worse: p < 0.05 by the paired t-test after Holm's correction for "
        "all methods of the study, and the last step agrees; ‡ a task goes the other way, or the mean hangs on one; = level. "
        "The closed form has alpha = 0 on `pinn`. More: [answers to the reviewers](docs/answers/index.md)."
    )
    return "\n".join([*lines, "", " ".join(filter(None, said_of)), "", legend]) + "\n"


TABLES = {"headline": headline, "two problems": first_table, "methods": methods}


def main() -> None:
    """Write the tables anew."""
    write(README, TABLES)


if __name__ == "__main__":
    main()
