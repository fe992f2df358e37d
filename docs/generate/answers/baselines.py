"""Simple and intuitive baselines over all problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape

from . import everything
from .contrasts import (
    FEWEST,
    Contrast,
    against,
    by_interval,
    counted,
    hidden,
    in_common,
    interval,
    listed,
    mean_change,
    median_change,
    quoted,
    tally,
)
from .everything import EQUAL, ONE_LINERS, OTHERS, SINGLE
from .forests import strip
from .measures import LOSS_CHANGE
from .page import Page, table

STUDIES = (*everything.GENERATED, *everything.REAL)
NEEDED = ("toy_two", "toy_ten", "groups", "yeast")
METHODS = (*ONE_LINERS, *OTHERS)
OF_LOSSES, OF_TARGETS = "1 / loss variance", "1 / target variance"


def page() -> Page:
    """The page."""
    found = everything.of(*STUDIES)
    contrasts = changes(found)
    common = in_common(contrasts)
    means = {
        method: mean_change([each for each in _of(contrasts, method) if each.problem in common]) for method in METHODS
    }
    known = {problem: comparison for problem, comparison in found.items() if OF_TARGETS in comparison.runs}
    targets = against(known, EQUAL, LOSS_CHANGE, (OF_TARGETS, "1 / L(0)", "GradNorm"))
    beside = everything.alone(found)
    single = against(beside, EQUAL, LOSS_CHANGE)
    parts = {"": contrasts, "Where the variance of the targets was tried": targets, "One network for each task": single}
    return Page(
        title="Simple and intuitive baselines",
        asked_by="review 1",
        question="Is there a one-liner, such as weights from the variance of a task, that does better than equal weights "
        "across all problems?",
        line=_line(contrasts, targets),
        answer=[
            _verdict(contrasts),
            tally(targets, OF_TARGETS),
            *(tally(contrasts, method) for method in METHODS),
            tally(single, SINGLE),
        ],
        predictions=[],
        picture=strip(contrasts, means, "Change of every method against equal weights on all problems"),
        alt="Change of the task-normalised test loss against equal weights, for every method and problem, with the "
        "mean over the problems that all have in common and its 95 % interval",
        table="\n\n".join(
            [
                *(f"{words and words + ':'}\n\n{counts(some)}".strip() for words, some in parts.items()),
                table(contrasts, found),
                table(against(known, EQUAL, LOSS_CHANGE, (OF_TARGETS,)), known),
                table(single, beside),
            ]
        ),
        for_user=_advice(contrasts),
        limits="Every method has the same few trials of the learning rate on each problem. A mean weighs every "
        "problem alike, and these problems are no sample of yours: "
        f"of {len(found)}, {everything.groupings(found)}. Of `pinn` the error of the solution takes the "
        f"place of the loss. Random weights were not run; {OF_TARGETS} was on the toy alone, where the variances are known.",
        studies=STUDIES,
    )


def changes(found: Mapping[str, Comparison]) -> list[Contrast]:
    """The change that every method brings against equal weights on each problem."""
    return against(found, EQUAL, LOSS_CHANGE, METHODS)


def _of(contrasts: Sequence[Contrast], method: str) -> list[Contrast]:
    return [each for each in contrasts if each.method == method]


def counts(contrasts: Sequence[Contrast]) -> str:
    """On how many problems every method is better, level, open, worse or lost, and its mean change, as a table."""
    methods = dict.fromkeys(each.method for each in contrasts)
    common, unit = in_common(contrasts), contrasts[0].measure.unit
    by_error = list(dict.fromkeys(each.problem for each in contrasts if each.judged_by))
    heads = ["method", "problems", "better", "level", "not told apart", "worse", "diverged"]
    averaged = len(common) >= FEWEST
    heads += [f"mean change on {len(common)}", "median"] if averaged else []
    heads += [f"{problem}, change of its error" for problem in by_error]
    lines = [f"| {' | '.join(map(escape, heads))} |", "|:--|" + "--:|" * (len(heads) - 1)]
    for method in methods:
        ours = _of(contrasts, method)
        cells = [method, f"{len(ours)}"]
        for outcome in ("better", "level", "not told apart", "worse", "diverged"):
            some = [each for each in ours if each.outcome == outcome]
            hides = sum(each.hides for each in some)
            cells.append(f"{len(some)}" + (f" ({hides}‡)" if hides else ""))
        shared = [each for each in ours if each.problem in common]
        cells += [interval(mean_change(shared), unit), f"{median_change(shared):+.1f}{unit}"] if averaged else []
        errors = {each.problem: interval(each.ends, unit) for each in ours}
        cells += [errors.get(problem, "") for problem in by_error]
        lines.append(f"| {' | '.join(map(escape, cells))} |")
    note = "(n‡): on so many of them a task goes the other way, or one task decides the mean."
    if averaged:
        note += f" Mean, with its 95 % interval, and median over the problems that all rows have: {listed(common)}."
    return "\n".join(lines) + f"\n\n{escape(note)}"


def _line(contrasts: Sequence[Contrast], targets: Sequence[Contrast]) -> str:
    """Yes or no on the toy, for the variance of the targets; then for all one-liners on all problems."""
    proposed, gradnorm = (_of(targets, method) for method in (OF_TARGETS, "GradNorm"))
    on_toy = "yes" if counted(proposed)["better"] and not by_interval(proposed)[1] else "no"
    words = [
        f"On the toy, {on_toy}: the weights {OF_TARGETS} are {_better_and_worse(proposed)} of {len(proposed)} versions, "
        f"where GradNorm is {_better_and_worse(gradnorm)}."
    ]
    simple = _simple(contrasts)
    if simple:
        verb = "is" if len(simple) == 1 else "are"
        words.append(
            f"Across all problems, yes: {listed([*map(quoted, simple)])} {verb} better than equal weights somewhere and, by "
            "the 95 % intervals, behind them nowhere."
        )
    else:
        words.append(
            "Across all problems, no: every one-liner is behind equal weights on some problem by its 95 % interval, or better "
            "on none."
        )
    of_losses = _of(contrasts, OF_LOSSES)
    words.append(f"{OF_LOSSES} is {_better_and_worse(of_losses)} of {len(of_losses)} problems.")
    return " ".join(words)


def _better_and_worse(ours: Sequence[Contrast]) -> str:
    better, worse = ([each for each in ours if each.outcome == kind] for kind in ("better", "worse"))
    said_of = hidden(better) and f" ({hidden(better)})"
    return f"better than equal weights on {len(better)}{said_of} and worse on {len(worse)}"


def _simple(contrasts: Sequence[Contrast]) -> list[str]:
    """The one-liners that are better than equal weights somewhere, and behind nowhere by the interval of the problem."""
    some = {method: _of(contrasts, method) for method in ONE_LINERS}
    return [method for method, ours in some.items() if counted(ours)["better"] and not by_interval(ours)[1]]


def _verdict(contrasts: Sequence[Contrast]) -> str:
    """The methods that are better somewhere and worse nowhere, and those that are worse more often than better."""
    found = {method: counted(_of(contrasts, method)) for method in METHODS}
    safe = [
        method
        for method in METHODS
        if found[method]["better"] and not found[method]["worse"] + found[method]["diverged"]
    ]
    risky = [method for method in METHODS if found[method]["worse"] > found[method]["better"]]
    words = [listed([*map(quoted, some)]) or "none" for some in (safe, risky)]
    better = [each for method in safe for each in _of(contrasts, method) if each.outcome == "better"]
    said_of = f" (of these {len(better)} differences, {hidden(better)})" if hidden(better) else ""
    first = f"Better than equal weights somewhere and worse nowhere, after the correction: {words[0]}{said_of}."
    return f"{first} Worse more often than better: {words[1]}."


def _advice(contrasts: Sequence[Contrast]) -> str:
    found = {method: counted(_of(contrasts, method)) for method in METHODS}
    simple = _simple(contrasts)
    if not simple:
        nearest = max(ONE_LINERS, key=lambda method: (-found[method]["worse"], found[method]["better"]))
        ours = _of(contrasts, nearest)
        most = max(each.ends.mean for each in ours if each.outcome != "better")
        return (
            "No one-liner is a safe default: each is behind equal weights on some problem, by its own interval, or better on "
            f"none. {quoted(nearest)} comes nearest, better on {found[nearest]['better']} of {len(ours)} problems and behind "
            f"by {most:.1f} % at most. Standardise the targets, start with equal weights, and take a line of the table for a "
            "reason that holds for your losses."
        )
    verbs = "costs one line and was" if len(simple) == 1 else "cost one line and were"
    return (
        "Standardise the targets and start with equal weights. If losses still differ in size, "
        f"{listed([*map(quoted, simple)])} {verbs} worse than equal weights on no problem here."
    )
