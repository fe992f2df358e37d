"""The tables of the README: generated from the committed records, never typed.

``python -m docs.generate.readme`` writes them; a test compares.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median

from equipoise.lab.results.cells import metric_of, readings
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.runs.methods import METHODS

from .answers import baselines, everything
from .answers.contrasts import SIGNS, Contrast, by_interval, contrast, hidden, listed, of_search
from .answers.measures import LOSS, mean_metric
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
_LABEL = "GradNorm, closed form"
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
        f"Against equal weights on the {len(found)} problems of the studies ({everything.groupings(found)}): “behind” and "
        "“ahead” go by each problem's 95 % interval, “worse” and “better” by Holm's correction over all methods.",
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
    rows = {name: dict.fromkeys(found, name) for name in _SAME} | {_LABEL: _CLOSED}
    contrasts = {
        name: [contrast(found[name], name, row[name], "equal", measure) for row in rows.values()]
        for name, measure in _MEASURES.items()
    }
    heads = [f"`{name}`: {m.name} {'↑' if m.higher_is_better else '↓'} | difference" for name, m in _MEASURES.items()]
    lines = [f"| method | {' | '.join(heads)} |", f"|:--|{'--:|' * 2 * len(heads)}"]
    lines.append(f"| equal weights | {' | | '.join(_seeds(each, 'equal') for each in found.values())} | |")
    for number, (label, row) in enumerate(rows.items()):
        cells = [f"{_seeds(found[name], row[name])} | {_difference(contrasts[name][number])}" for name in found]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    (seeds,) = {len(comparison.seeds) for comparison in found.values()}
    margins = [
        f"±{measure.margin:g}{' %' if measure.change else ''} on `{name}`" for name, measure in _MEASURES.items()
    ]
    legend = (
        f"Results: the median of {seeds} seeds on the test split, in brackets the smallest and the largest. Difference: the "
        "mean of the paired differences from equal weights with its 95 % interval; ✗ worse, ✓ better (p < 0.05 by the paired "
        "t-test after Holm's correction), ‡ although a task goes the other way or one task decides the mean, = level (the "
        f"whole interval lies inside {listed(margins)}), no mark: not told apart. Every method had the same search for its "
        "learning rate; that of tuned static had the weights too. The closed form starts balanced, on `pinn` with alpha = 0."
    )
    verdicts = [_verdict(name, list(rows), contrasts[name]) for name in found]
    verdicts.append(of_search({f"`{name}`": comparison for name, comparison in found.items()}))
    return "\n".join([*lines, "", legend, "", " ".join(filter(None, verdicts))]) + "\n"


def _seeds(comparison: Comparison, label: str) -> str:
    """The median over the seeds, the smallest and the largest: of the error that judges the problem, or the mean metric."""
    judged = comparison.records[0].judged_by
    tasks = [judged] if judged else [task.name for task in comparison.tasks]
    by_task = readings(comparison.runs[label], list(map(metric_of, tasks))).selected
    values = [fmean(each[seed] for each in by_task) for seed in by_task[0]]
    return f"{median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _difference(each: Contrast) -> str:
    mean, low, high = (round(end, 3) + 0.0 for end in (each.ends.mean, each.ends.low, each.ends.high))
    return f"{mean:+.3f} [{low:.3f}, {high:.3f}] {SIGNS[each.outcome][0]}{'‡' if each.hides else ''}".rstrip()


def _verdict(name: str, labels: Sequence[str], contrasts: Sequence[Contrast]) -> str:
    """Which methods are worse than equal weights on a problem, and which are better."""
    words = []
    for outcome in ("worse", "better"):
        some = [label for label, each in zip(labels, contrasts, strict=True) if each.outcome == outcome]
        verb = "is" if len(some) < 2 else "are"
        words.append(f"{listed(some) or 'no method'} {verb} {outcome}")
    return f"On `{name}` {words[0]} than equal weights, and {words[1]}."


TABLES = {"headline": headline, "two problems": first_table, "methods": methods}


def main() -> None:
    """Write the tables anew."""
    write(README, TABLES)


if __name__ == "__main__":
    main()
