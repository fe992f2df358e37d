"""Simple and intuitive baselines over all problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape

from . import everything
from .contrasts import Contrast, against, counted, interval, listed, mean_change, quoted, tally
from .everything import EQUAL, ONE_LINERS, OTHERS
from .forests import strip
from .measures import LOSS_CHANGE
from .page import Page, table

STUDIES = (*everything.GENERATED, *everything.REAL)
NEEDED = ("toy_two", "toy_ten", "groups", "yeast")
METHODS = (*ONE_LINERS, *OTHERS)
VARIANCE = "1 / loss variance"


def page() -> Page:
    """The page."""
    found = everything.of(*STUDIES)
    contrasts = changes(found)
    means = {method: mean_change(_of(contrasts, method)) for method in METHODS}
    return Page(
        title="Simple and intuitive baselines",
        asked_by="review 1",
        question="What do weights from the variance of a task, and other one-liners, do across all problems?",
        line=tally(contrasts, VARIANCE),
        answer=[_verdict(contrasts), *(tally(contrasts, method) for method in METHODS if method != VARIANCE)],
        predictions=[],
        picture=strip(contrasts, means, "Change of every method against equal weights on all problems"),
        alt="Change of the task-normalised test loss against equal weights, for every method and problem, with the "
        "mean over problems and its 95 % interval",
        table=f"{counts(contrasts)}\n\n{table(contrasts, found)}",
        for_user=_advice(contrasts),
        limits="Every method has the same few trials of the learning rate on each problem. The mean weighs every "
        "problem alike, and these problems are no sample of yours. Of `pinn` the error of the solution takes the "
        "place of the loss.",
        studies=STUDIES,
    )


def changes(found: Mapping[str, Comparison]) -> list[Contrast]:
    """The change that every method brings against equal weights on each problem: one block."""
    return against(found, EQUAL, LOSS_CHANGE, METHODS)


def _of(contrasts: Sequence[Contrast], method: str) -> list[Contrast]:
    return [each for each in contrasts if each.method == method]


def counts(contrasts: Sequence[Contrast]) -> str:
    """On how many problems every method is better, level, open, worse or lost, and its mean change, as a table."""
    methods = dict.fromkeys(each.method for each in contrasts)
    heads = ("method", "problems", "better", "level", "not told apart", "worse", "diverged", "mean change")
    lines = [f"| {' | '.join(heads)} |", "|:--|" + "--:|" * (len(heads) - 1)]
    for method in methods:
        ours = _of(contrasts, method)
        found = counted(ours)
        numbers = [str(found[outcome]) for outcome in ("better", "level", "not told apart", "worse", "diverged")]
        mean = escape(interval(mean_change(ours), ours[0].measure.unit))
        lines.append(f"| {escape(method)} | {len(ours)} | {' | '.join(numbers)} | {mean} |")
    return "\n".join(lines)


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
    first = f"Better than equal weights somewhere and worse nowhere, after the correction: {words[0]}."
    return f"{first} Worse more often than better: {words[1]}."


def _advice(contrasts: Sequence[Contrast]) -> str:
    found = {method: counted(_of(contrasts, method)) for method in METHODS}
    behind = {each.method for each in contrasts if each.outcome == "diverged" or each.ends.low > 0}  # uncorrected
    simple = [method for method in ONE_LINERS if found[method]["better"] and method not in behind]
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
