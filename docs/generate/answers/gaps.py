"""The toy's gaps between two methods: how they change with the length of the runs, and with interventions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape
from equipoise.lab.results.selection import converged
from equipoise.lab.results.statistics import Estimate, estimate

from .contrasts import SIGNS, Contrast, against, block, contrast, interval, listed, said
from .measures import losses
from .page import Prediction, table
from .predictions import expected, within
from .records import results

Pair = tuple[str, str]
"""A method and the one that it is compared with."""
INITIAL, GRADNORM, CLOSED = "1 / L(0)", "GradNorm", "closed form, balanced"
PLAIN, STARTED = "uncertainty", "uncertainty from log L(0)"
PCGRAD = "PCGrad"
LOW_FLOOR, LOG_SPACE, NO_PULL = "GradNorm, floor 1e-5", "log space", "closed form, alpha 0, balanced"
VARIANTS = {
    GRADNORM: "for GradNorm",
    LOW_FLOOR: "with its floor at 1e-5",
    LOG_SPACE: "in log space",
    f"{LOG_SPACE}, balanced": "there from balanced weights",
    CLOSED: "for the closed form",
    NO_PULL: "for that with alpha 0",
}
METHODS = (INITIAL, PLAIN, STARTED, GRADNORM, CLOSED, PCGRAD)


def of_lengths() -> str:
    """The gaps at each length of the runs, as a table, and every method against equal weights."""
    found = {f"{steps:,} steps": comparison for steps, comparison in _lengths().items()}
    found |= {f"full size, {steps:,} steps": comparison for steps, comparison in _full_lengths().items()}
    pairs = [(GRADNORM, INITIAL), (GRADNORM, "equal"), (CLOSED, INITIAL), (PLAIN, INITIAL), (STARTED, INITIAL)]
    pairs.append((PCGRAD, INITIAL))
    return _written(pairs, found, [["runs at rest", *map(at_rest, found.values())]])


def of_causes() -> str:
    """The gaps under each intervention, as a table, and every method against equal weights."""
    pairs = [(GRADNORM, INITIAL), (CLOSED, INITIAL), (PLAIN, STARTED)]
    return _written(pairs, {_named(*key): comparison for key, comparison in _causes().items()}, [])


def _written(pairs: Sequence[Pair], found: Mapping[str, Comparison], more: Sequence[Sequence[str]]) -> str:
    gaps = block(
        contrast(comparison, name, *pair)
        for pair in pairs
        for name, comparison in found.items()
        if comparison.runs.keys() >= {*pair}
    )
    lines = [["gap", *found], [":--", *["--:"] * len(found)]]
    for pair in pairs:
        cells = {each.problem: each for each in gaps if (each.method, each.reference) == pair}
        shown = [_marked(cells[name]) if name in cells else "" for name in found]
        lines.append([escape(f"{pair[0]} less {pair[1]}"), *map(escape, shown)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *more])
    return (
        f"{text}\n\nPaired differences of the task-normalised test loss with 95 % intervals; above 0 the first method is "
        f"worse. ✗ worse and ✓ better: p < 0.05 after Holm's correction for these {len(gaps)}.\n\n"
        + table(against(found, "equal", methods=METHODS), found)
    )


def _marked(gap: Contrast) -> str:
    sign = SIGNS[gap.outcome][0] if gap.outcome in SIGNS else gap.outcome
    return f"{interval(gap.difference)} {sign}".rstrip()


def at_rest(comparison: Comparison) -> str:
    """How many of the final runs have come to rest."""
    states = [state for record in comparison.records if (state := converged(record)) is not None]
    return f"{sum(states)} of {len(states)}"


def of_lengths_expected() -> list[Prediction | None]:
    """The expectations of the study of lengths, held against its figures."""
    found, full = _lengths(), _full_lengths()
    shortest, longest = found[min(found)], found[max(found)]
    *early, late = block(
        [
            *(contrast(shortest, f"runs of {min(found):,} steps", method, INITIAL) for method in (GRADNORM, PLAIN)),
            contrast(longest, f"runs of {max(found):,} steps", GRADNORM, INITIAL),
        ]
    )
    larger = [each.outcome == "worse" and each.ends.low > 0.1 for each in early]
    smaller = [each.ends.high < 0.1 for each in early]
    return [
        Prediction(
            "toy_long",
            "With 2000 steps GradNorm and uncertainty weighting from 0 are behind 1 / L(0) by more than 0.1.",
            False if any(smaller) else (True if all(larger) else None),
            " ".join(map(said, early)),
        ),
        Prediction(
            "toy_long",
            "with 32,000 steps that of GradNorm is a third of what it is with 2000 or less",
            *_closed((GRADNORM, INITIAL), shortest, longest, 1 / 3),
        ),
        Prediction(
            "toy_long",
            "1 / L(0) is still ahead of it.",
            {"worse": True, "level": False, "better": False}.get(late.outcome),
            said(late),
        ),
        Prediction(
            "toy_full_long",
            "the gap of GradNorm to 1 / L(0) is half of what it is with 2000 steps or less.",
            *_closed((GRADNORM, INITIAL), full[min(full)], full[max(full)], 1 / 2),
        ),
        *_of_added(full[max(full)]),
    ]


def _of_added(comparison: Comparison) -> list[Prediction | None]:
    """The expectations of the methods that were added to the longest runs at the full size."""
    name = f"runs of {comparison.spec.steps:,} steps at the full size"
    pairs = [(STARTED, INITIAL), (CLOSED, INITIAL), (GRADNORM, CLOSED), (PLAIN, INITIAL), (PCGRAD, INITIAL)]
    started, closed, gradnorm, plain, pcgrad = block(contrast(comparison, name, *pair) for pair in pairs)
    study = "toy_full_long"
    return [
        within(study, "uncertainty weighting from log L(0) is within 0.05 of 1 / L(0)", [started], 0.05),
        expected(
            study,
            "the closed form balanced from the first batch lies between 1 / L(0) and GradNorm",
            [closed, gradnorm],
            "worse",
        ),
        expected(study, "uncertainty weighting from 0 and PCGrad are behind 1 / L(0).", [plain, pcgrad], "worse"),
    ]


def of_causes_expected() -> list[Prediction]:
    """The expectations of the study of causes, held against its figures."""
    causes = _causes()
    plain = causes[False, 0.999]
    heads = _closed((GRADNORM, INITIAL), plain, causes[True, 0.999], 1 / 2)
    memory = _closed((PLAIN, STARTED), plain, causes[False, 0.99], 1 / 2)
    both = causes[True, 0.99]
    labels = list(both.runs)
    pairs = block(
        contrast(both, "both", one, other) for number, one in enumerate(labels) for other in labels[number + 1 :]
    )
    told = [each for each in pairs if each.outcome in ("better", "worse")]
    words = [f"{len(told)} of {len(pairs)} pairs are told apart.", *(said(each, where=False) for each in told)]
    return [
        Prediction(
            "toy_causes",
            "Heads in proportion to their scale close most of the gap between GradNorm and 1 / L(0)",
            *heads,
        ),
        Prediction(
            "toy_causes",
            "beta2 = 0.99 closes most of that between uncertainty weighting from 0 and from log L(0)",
            *memory,
        ),
        Prediction("toy_causes", "with both, no method is told apart from another.", not told, " ".join(words)),
    ]


def of_full_causes() -> str:
    """Every variant of GradNorm at the full size against 1 / L(0), as a table."""
    found = {"full size": _full_causes()}
    return table(against(found, INITIAL), found)


def of_full_causes_expected() -> list[Prediction | None]:
    """The expectations of the study of causes at the full size, held against its figures."""
    study, found = "toy_full_causes", _full_causes()

    def halved(label: str) -> tuple[bool | None, str]:
        return _closed((GRADNORM, INITIAL), found, found, 1 / 2, (label, INITIAL))

    pairs = [(f"{LOG_SPACE}, balanced", LOG_SPACE), (NO_PULL, CLOSED)]
    started, unpulled = block(contrast(found, "the full size", *pair) for pair in pairs)
    return [
        Prediction(
            study,
            "with a floor of 1e-5 the gap of GradNorm to 1 / L(0) is half of what it is or less",
            *halved(LOW_FLOOR),
        ),
        Prediction(study, "so it is in log space, which has no floor.", *halved(LOG_SPACE)),
        expected(
            study,
            "in log space, GradNorm balanced from the first batch is ahead of GradNorm from equal weights.",
            [started],
            "better",
        ),
        expected(study, "the closed form with alpha 0 is ahead of that with alpha 1.5.", [unpulled], "better"),
    ]


def told_of_full_causes() -> str:
    """The gaps of GradNorm's variants to 1 / L(0) at the full size, in a sentence."""
    found = _full_causes()
    parts = [f"{interval(contrast(found, '', label, INITIAL).difference)} {words}" for label, words in VARIANTS.items()]
    return f"At the full size, with {found.spec.steps:,} steps, the gap to 1 / L(0) is {listed(parts)}."


def told_of_lengths() -> str:
    """The gap of GradNorm to 1 / L(0) at each length, in a sentence."""

    def parts(found: Mapping[int, Comparison]) -> str:
        return listed([f"{interval(_gradnorm(each))} with {steps:,} steps" for steps, each in found.items()])

    return (
        f"With two tasks the gap of GradNorm to 1 / L(0) is {parts(_lengths())}; at the full size it is "
        f"{parts(_full_lengths())}."
    )


def told_of_causes() -> str:
    """The gap of GradNorm to 1 / L(0) as it is, when Adam forgets faster, and with heads that know their scale."""
    gaps = {key: interval(_gradnorm(comparison)) for key, comparison in _causes().items()}
    steps = next(iter(_causes().values())).spec.steps
    return (
        f"By intervention, with {steps:,} steps: that gap is {gaps[False, 0.999]} as it is, {gaps[False, 0.99]} where Adam "
        f"forgets ten times as fast (beta2 = 0.99), and {gaps[True, 0.999]} with heads in proportion to their scale."
    )


def _gradnorm(comparison: Comparison) -> Estimate:
    return contrast(comparison, "", GRADNORM, INITIAL).difference


def _lengths() -> dict[int, Comparison]:
    """The runs of each length, by steps."""
    return {result.comparison.spec.steps: result.comparison for result in results("toy_long")}


def _full_lengths() -> dict[int, Comparison]:
    """The runs at the full size, by steps."""
    both = (*results("toy_full"), *results("toy_full_long"))
    return {result.comparison.spec.steps: result.comparison for result in both}


def _causes() -> dict[tuple[bool, float], Comparison]:
    """The four interventions by whether heads are scaled, and by beta2."""
    found = {}
    for result in results("toy_causes"):
        settings = result.comparison.spec.problem_settings
        found[settings["scaled_heads"], settings["betas"][1]] = result.comparison
    return found


def _full_causes() -> Comparison:
    """The variants of GradNorm at the full size."""
    return results("toy_full_causes")[0].comparison


def _named(scaled: bool, beta2: float) -> str:
    return f"{'scaled heads' if scaled else 'plain heads'}, beta2 {beta2:g}"


def _closed(
    pair: Pair, before: Comparison, after: Comparison, left: float, other: Pair | None = None
) -> tuple[bool | None, str]:
    """Whether a gap shrinks to a part of it or less, and by more than noise; afterwards it may be that of another pair."""
    gaps = []
    for comparison, labels in ((before, pair), (after, other or pair)):
        ours, theirs = (losses(comparison, label) for label in labels)
        gaps.append([ours[seed] - theirs[seed] for seed in sorted(ours)])
    shrunk = estimate([one - other for one, other in zip(*gaps, strict=True)])
    first, second = (estimate(gap) for gap in gaps)
    text = f"The gap goes from {interval(first)} to {interval(second)}, by {interval(shrunk)}, n = {shrunk.n}."
    if not math.isfinite(shrunk.mean):
        return None, "A run diverged, so that the gap has no mean."
    return _shrinks(first, second, shrunk, left), text


def _shrinks(first: Estimate, second: Estimate, shrunk: Estimate, left: float) -> bool | None:
    if first.mean <= 0 or not first.excludes_zero:
        return False
    if shrunk.mean > 0 and not shrunk.excludes_zero:
        return None
    return second.mean <= first.mean * left
