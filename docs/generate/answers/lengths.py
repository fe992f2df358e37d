"""The toy's gaps in ever longer runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from equipoise.lab.results.comparison import Comparison

from ..pictures import Axis, Panel, plot
from .contrasts import contrast, interval, listed, said
from .gaps import CLOSED, GRADNORM, INITIAL, PCGRAD, PLAIN, STARTED, at_rest, closed, gaps_and_methods, of_gradnorm
from .page import Prediction
from .predictions import expected, inside, within
from .records import results
from .series import curves

SHOWN = ("equal", INITIAL, PLAIN, STARTED, GRADNORM, CLOSED, PCGRAD)
"""The methods of the curves."""


def of_lengths() -> str:
    """The gaps at each length of the runs, as a table, and every method against equal weights."""
    found = {f"{steps:,} steps": comparison for steps, comparison in _lengths().items()}
    found |= {f"full size, {steps:,} steps": comparison for steps, comparison in _full_lengths().items()}
    pairs = [(GRADNORM, INITIAL), (GRADNORM, "equal"), (CLOSED, INITIAL), (PLAIN, INITIAL), (STARTED, INITIAL)]
    pairs.append((PCGRAD, INITIAL))
    return gaps_and_methods(pairs, found, [["runs at rest", *map(at_rest, found.values())]])


def of_lengths_expected() -> list[Prediction | None]:
    """The expectations of the study of lengths, held against its figures."""
    found, full = _lengths(), _full_lengths()
    shortest, longest = found[min(found)], found[max(found)]
    early = [contrast(shortest, f"runs of {min(found):,} steps", method, INITIAL) for method in (GRADNORM, PLAIN)]
    late = contrast(longest, f"runs of {max(found):,} steps", GRADNORM, INITIAL)
    return [
        Prediction(
            "toy_long",
            "With 2000 steps GradNorm and uncertainty weighting from 0 are behind 1 / L(0) by more than 0.1.",
            inside([each.ends for each in early], 0.1, math.inf),
            " ".join(map(said, early)),
        ),
        Prediction(
            "toy_long",
            "with 32,000 steps that of GradNorm is a third of what it is with 2000 or less",
            *closed((GRADNORM, INITIAL), shortest, longest, 1 / 3),
        ),
        expected("toy_long", "1 / L(0) is still ahead of it.", [late], "worse"),
        Prediction(
            "toy_full_long",
            "the gap of GradNorm to 1 / L(0) is half of what it is with 2000 steps or less.",
            *closed((GRADNORM, INITIAL), full[min(full)], full[max(full)], 1 / 2),
        ),
        *_of_added(full[max(full)]),
    ]


def _of_added(comparison: Comparison) -> list[Prediction | None]:
    """The expectations of the methods that were added to the longest runs at the full size."""
    name = f"runs of {comparison.spec.steps:,} steps at the full size"
    pairs = [(STARTED, INITIAL), (CLOSED, INITIAL), (GRADNORM, CLOSED), (PLAIN, INITIAL), (PCGRAD, INITIAL)]
    started, balanced, gradnorm, plain, pcgrad = (contrast(comparison, name, *pair) for pair in pairs)
    study = "toy_full_long"
    return [
        within(study, "uncertainty weighting from log L(0) is within 0.05 of 1 / L(0)", [started], 0.05),
        expected(
            study,
            "the closed form balanced from the first batch lies between 1 / L(0) and GradNorm",
            [balanced, gradnorm],
            "worse",
        ),
        expected(study, "uncertainty weighting from 0 and PCGrad are behind 1 / L(0).", [plain, pcgrad], "worse"),
    ]


def told_of_lengths() -> str:
    """The gap of GradNorm to 1 / L(0) at each length, in a sentence."""

    def parts(found: Mapping[int, Comparison]) -> str:
        return listed([f"{interval(of_gradnorm(each))} with {steps:,} steps" for steps, each in found.items()])

    return (
        f"With two tasks the gap of GradNorm to 1 / L(0) is {parts(_lengths())}; at the full size it is "
        f"{parts(_full_lengths())}."
    )


def _lengths() -> dict[int, Comparison]:
    """The runs of each length, by steps."""
    return {result.comparison.spec.steps: result.comparison for result in results("toy_long")}


def _full_lengths() -> dict[int, Comparison]:
    """The runs at the full size, by steps."""
    both = (*results("toy_full"), *results("toy_full_long"))
    return {result.comparison.spec.steps: result.comparison for result in both}


def course() -> str:
    """The loss over the steps in the longest runs, at the full size and at a fifth, as a picture."""
    longest = {
        f"{size}, two tasks, Adam": found[max(found)]
        for size, found in (("Full size", _full_lengths()), ("A fifth of the size", _lengths()))
    }
    return plot(
        [
            Panel(
                f"{heading}: {comparison.spec.steps:,} steps",
                curves(comparison, [label for label in SHOWN if label in comparison.runs]),
                Axis("training steps"),
                Axis("task-normalised test loss", log=True),
                tall=220.0,
            )
            for heading, comparison in longest.items()
        ],
        "The test loss over the steps in long runs",
        "Means over seeds; bars: 95 % intervals.",
    )


def told_of_rest() -> str:
    """How many of the longest runs at the full size have come to rest, and why the end of a curve shows no convergence."""
    full = _full_lengths()
    longest = full[max(full)]
    return (
        f"Of the longest runs at the full size ({longest.spec.steps:,} steps) {at_rest(longest)} are at rest: their validation "
        "loss fell by less than 1 % over the last fifth of the steps. The learning rate falls to 0 along a cosine, which "
        "flattens the end of any curve: it freezes a run, and does not show that it has converged."
    )
