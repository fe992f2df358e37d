"""The toy, made fair."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence

import equipoise as eq
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.studies.run import Result

from . import causes, everything, gaps, lengths
from .contrasts import Contrast, against, contrast, interval, listed, standing, tally
from .forests import forest
from .gaps import CLOSED, GRADNORM, INITIAL, PLAIN, STARTED
from .measures import SUM_CHANGE
from .page import Page, Prediction, bullets, table
from .predictions import at_the_end, chosen, expected, no_better, not_apart, within
from .records import results

COMPARED = ("toy_two", "toy_ten", "toy_sgd", "toy_sgd_ten", "toy_full", "toy_full_sgd", "toy_full_ten")
STUDIES = (*COMPARED, "toy_long", "toy_full_long", "toy_causes", "toy_full_causes", "toy_full_heads")
NEEDED = STUDIES
STATIC, VARIANCE = "tuned static", "1 / target variance"
SHOWN = (INITIAL, "CoV", "PCGrad", PLAIN, STARTED, GRADNORM, CLOSED, STATIC)
PAPERS = "GradNorm, alpha 0.12"
"""GradNorm with the alpha that the paper takes for its toy."""
ALPHAS = (GRADNORM, *(f"GradNorm, alpha {alpha}" for alpha in ("0", "0.12", "0.5", "3")))


def page() -> Page:
    """The page."""
    found = everything.of(*COMPARED)
    equal = against(found, "equal")
    sums = against(found, "equal", SUM_CHANGE)
    initial = [
        contrast(comparison, problem, method, INITIAL)
        for method in (GRADNORM, PAPERS, CLOSED, STARTED, STATIC, VARIANCE)
        for problem, comparison in found.items()
        if method in comparison.runs
    ]
    return Page(
        title="Is the toy fair?",
        asked_by="review 2",
        question="On the paper's toy, does GradNorm beat a baseline that is trained on the evaluated metric, once "
        "every method has its own learning rate and longer runs?",
        line=_line(initial),
        answer=[
            _alphas(initial, equal),
            lengths.told_of_lengths(),
            lengths.told_of_rest(),
            causes.told_of_causes(),
            causes.told_of_full_causes(),
            *(tally(equal, method) for method in (INITIAL, GRADNORM, CLOSED, STATIC, PLAIN, STARTED)),
            "By the sum of the losses as they are, the paper's other reading: "
            + " ".join(tally(sums, method) for method in (INITIAL, GRADNORM)),
            _shared_rate(results("toy_two")[0]),
            _at_rest(found),
        ],
        predictions=_predictions(found, equal, initial),
        picture=forest([each for each in equal if each.method in SHOWN], "Methods against equal weights on the toy"),
        alt="Difference of the task-normalised test loss of eight methods from equal weights, on two and ten tasks, with "
        "Adam and SGD, at a fifth and at the full size, with 95 % intervals",
        table=table(equal, found),
        for_user="Give every method its own learning rate, and as many steps as you will train with, before you compare: in "
        "short runs methods differ by how soon their weights are right. Weights that are right from the first step on (1 / "
        'L(0), `initial="losses"`, `initial_weights="balanced"`) spare Adam a wrong start, and an Adam that forgets sooner '
        "(`betas=(0.9, 0.99)`) forgives one. Or standardise the targets, which takes the scales away from losses and heads.",
        limits="One draw of the toy's matrices for each number of tasks. At a fifth of the size 50 inputs, 20 neurons "
        "in a layer and 20 outputs. The rate falls to 0 along a cosine, which freezes a run and does not show that it has "
        "converged: whether more steps change the order was tried with two tasks alone, for some of the methods. Runs are "
        "compared where each is best on validation.",
        studies=STUDIES,
        further={"toy_curves": lengths.course()},
        more={
            "Against 1 / L(0)": table(initial, found),
            "The smallest means": bullets(standing(*each) for each in found.items()),
            "Ever longer runs": "![Task-normalised test loss against training steps in the longest runs, at the full size and "
            f"at a fifth, with intervals](toy_curves.svg)\n\n{lengths.of_lengths()}",
            "The causes, by intervention": causes.of_causes(),
            "The causes at the full size": causes.of_full_causes(),
        },
    )


def _predictions(
    found: Mapping[str, Comparison], equal: Sequence[Contrast], initial: Sequence[Contrast]
) -> list[Prediction | None]:
    """The expectations of the studies, held against the contrasts with equal weights and with 1 / L(0)."""
    two, ten, sgd, sgd_ten, full, full_sgd, full_ten = (everything.NAMES[study] for study in COMPARED)
    return [
        at_the_end(
            "toy_two",
            "1 / L(0), which is trained on the metric that is evaluated, and uncertainty weighting from log L(0) "
            "have the smallest task-normalised loss",
            found[two],
            (INITIAL, STARTED),
            "smallest",
        ),
        not_apart(
            "toy_two",
            "tuned static weights and the closed form balanced from the first batch are not told apart from "
            "equal weights",
            chosen(equal, two, STATIC, CLOSED),
        ),
        expected("toy_two", "uncertainty weighting from 0 is behind equal weights", chosen(equal, two, PLAIN), "worse"),
        within(
            "toy_two",
            "with 12,000 steps GradNorm is within 0.05 of equal weights at every alpha.",
            chosen(equal, two, *ALPHAS),
            0.05,
        ),
        not_apart(
            "toy_ten",
            "1 / L(0), uncertainty weighting from log L(0) and GradNorm are not told apart",
            chosen(initial, ten, STARTED, GRADNORM),
        ),
        at_the_end("toy_ten", "uncertainty weighting from 0 is far behind all others", found[ten], [PLAIN], "largest"),
        no_better(
            "toy_ten",
            "tuned static weights are no better than equal ones, as seven trials find nothing in ten dimensions.",
            chosen(equal, ten, STATIC),
        ),
        at_the_end(
            "toy_sgd",
            "1 / L(0) and 1 / target variance have the smallest task-normalised loss",
            found[sgd],
            (INITIAL, VARIANCE),
            "smallest",
        ),
        not_apart(
            "toy_sgd",
            "tuned static weights are level with them",
            chosen(initial, sgd, STATIC),
        ),
        expected("toy_sgd", "equal weights are far behind", chosen(equal, sgd, INITIAL, VARIANCE), "better"),
        expected(
            "toy_sgd",
            "GradNorm is between the two",
            [*chosen(equal, sgd, GRADNORM), *_turned(chosen(initial, sgd, GRADNORM))],
            "better",
        ),
        expected(
            "toy_sgd_ten",
            "1 / L(0), 1 / target variance and uncertainty weighting from log L(0) are ahead of equal weights",
            chosen(equal, sgd_ten, INITIAL, VARIANCE, STARTED),
            "better",
        ),
        not_apart(
            "toy_sgd_ten",
            "GradNorm and PCGrad are not told apart from them",
            chosen(equal, sgd_ten, GRADNORM, "PCGrad"),
        ),
        at_the_end(
            "toy_full",
            "1 / L(0) and uncertainty weighting from log L(0) have the smallest task-normalised loss",
            found[full],
            (INITIAL, STARTED),
            "smallest",
        ),
        expected(
            "toy_full",
            "GradNorm as published and uncertainty weighting from 0 are behind equal weights.",
            chosen(equal, full, GRADNORM, PLAIN),
            "worse",
        ),
        expected(
            "toy_full_sgd",
            "1 / target variance and uncertainty weighting from log L(0) have smaller task-normalised losses than 1 / L(0)",
            chosen(initial, full_sgd, VARIANCE, STARTED),
            "better",
        ),
        expected(
            "toy_full_sgd",
            "1 / target variance is ahead of equal weights",
            chosen(equal, full_sgd, VARIANCE),
            "better",
        ),
        not_apart(
            "toy_full_sgd",
            "GradNorm, its closed form and PCGrad are not told apart from equal weights.",
            chosen(equal, full_sgd, GRADNORM, CLOSED, "PCGrad"),
        ),
        at_the_end(
            "toy_full_ten",
            "uncertainty weighting from 0 has the largest task-normalised loss",
            found[full_ten],
            [PLAIN],
            "largest",
        ),
        at_the_end(
            "toy_full_ten",
            "1 / L(0) and uncertainty weighting from log L(0) the smallest",
            found[full_ten],
            (INITIAL, STARTED),
            "smallest",
        ),
        not_apart("toy_full_ten", "GradNorm is not told apart from equal weights.", chosen(equal, full_ten, GRADNORM)),
        *lengths.of_lengths_expected(),
        *causes.of_causes_expected(),
        *causes.of_full_causes_expected(),
    ]


def _shared_rate(result: Result) -> str:
    """What 1 / L(0) gains over equal weights at each learning rate that both have tried, and each at its best one."""
    ours, theirs = (
        {trial.searched["learning_rate"]: trial.value for trial in result.searches[label].trials}
        for label in (INITIAL, "equal")
    )
    at_one = [ours[rate] - theirs[rate] for rate in ours if math.isfinite(ours[rate] - theirs[rate])]
    tuned = min(ours.values()) - min(theirs.values())
    return (
        f"At a shared learning rate the comparison can come out either way: on toy (2 tasks) the difference of {INITIAL} "
        f"from equal weights lies between {min(at_one):+.3f} and {max(at_one):+.3f} at "
        f"{len(at_one)} common rates, and is {tuned:+.3f} with each at its best (validation loss of the search, one seed)."
    )


def _at_rest(found: Mapping[str, Comparison]) -> str:
    """How many of the final runs have come to rest."""
    words = [f"{gaps.at_rest(comparison)} on {problem}" for problem, comparison in found.items()]
    return f"Runs whose validation loss fell by less than 1 % over the last fifth of the steps: {', '.join(words)}."


def _line(initial: Sequence[Contrast]) -> str:
    """Whether GradNorm beats 1 / L(0) on the toy."""
    ours = [each for each in initial if each.method == GRADNORM]
    better, worse = ([each for each in ours if each.outcome == kind] for kind in ("better", "worse"))
    verdict = "No" if not better else "Yes" if not worse else "On some versions only"
    return (
        f"{verdict}: GradNorm is better than 1 / L(0) on {len(better) or 'none'} of {len(ours)} versions of the toy and "
        f"worse on {len(worse) or 'none'}. {_differences(initial, GRADNORM)}; above 0 is worse."
    )


def _differences(contrasts: Sequence[Contrast], method: str) -> str:
    """The difference of a method from its reference on every problem, with intervals."""
    ours = [each for each in contrasts if each.method == method]
    parts = [f"{interval(each.ends)} on {each.problem}" for each in ours]
    return f"Its task-normalised test loss less that of {ours[0].reference} is {listed(parts)}"


def _alphas(initial: Sequence[Contrast], equal: Sequence[Contrast]) -> str:
    """GradNorm's alpha on the page, and GradNorm with that of the paper."""
    alpha = inspect.signature(eq.GradNorm).parameters["alpha"].default
    return (
        f"On this page GradNorm has alpha {alpha:g}, the library's default. With 0.12, which the paper takes for its toy: "
        f"{tally(initial, PAPERS)} {_differences(initial, PAPERS)}. {tally(equal, PAPERS)}"
    )


def _turned(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The same contrasts from the side of the reference."""
    found = everything.of(*COMPARED)
    return [contrast(found[each.problem], each.problem, each.reference, each.method) for each in contrasts]
