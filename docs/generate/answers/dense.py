"""Dense prediction on three networks, then all real problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape

from . import digits, everything
from .baselines import counts
from .contrasts import Contrast, against, contrast, counted, interval, listed, of_search, quoted, said, tally
from .everything import EQUAL
from .forests import forest
from .measures import LOSS_CHANGE, METRICS_CHANGE
from .page import Page, Prediction, table
from .predictions import expected, inside
from .records import is_there

STUDIES = everything.REAL
NEEDED = ("yeast", "tox21", "molecules", "pinn", "rooms")
GRADNORM = "GradNorm"
CLOSED = "closed form, balanced"
SOLUTION = "pinn"
"""The problem that is judged by the error of a solution."""


def page() -> Page:
    """The page."""
    rooms = everything.of("rooms")
    dense = against(rooms, EQUAL, LOSS_CHANGE)
    by_metrics = against(rooms, EQUAL, METRICS_CHANGE)
    real = everything.of(*STUDIES)
    planned = [
        contrast(comparison, problem, method, reference, LOSS_CHANGE)
        for reference in (EQUAL, "1 / L(0)", "tuned static")
        for method in (GRADNORM, CLOSED)
        for problem, comparison in real.items()
        if {method, reference} <= comparison.runs.keys()
    ]
    first = _against(planned, GRADNORM, EQUAL)
    data = [each for each in planned if each.problem != SOLUTION]
    return Page(
        title="Dense prediction, strong networks, more than one data set",
        asked_by="review 2",
        question="Does the gain hold in the standard dense setting, on strong networks, and on more than one data set?",
        line=_line(_against(dense, GRADNORM, EQUAL), rooms),
        answer=[
            _marked(by_metrics),
            *(
                tally(_against(data, method, reference), method)
                for reference in (EQUAL, "1 / L(0)", "tuned static")
                for method in (GRADNORM, CLOSED)
            ),
            *(
                f"`pinn` is no data set and is judged by the error of its solution, so that it stands apart: {said(each)}"
                for each in first
                if each.problem == SOLUTION
            ),
            everything.short_runs({name: comparison for name, comparison in real.items() if name != SOLUTION}),
        ],
        predictions=[*_predictions(rooms), *digits.predictions()],
        picture=forest(first + _against(planned, CLOSED, EQUAL), "GradNorm and its closed form on all real problems"),
        alt="Change of the task-normalised test loss by GradNorm and its closed form against equal weights on every "
        "real problem, with 95 % intervals",
        table="\n\n".join(
            f"Without `pinn`, against {reference}:\n\n{counts([each for each in data if each.reference == reference])}"
            for reference in dict.fromkeys(each.reference for each in data)
        )
        + f"\n\n{escape(of_search(real))}",
        more={
            "Rooms, by their losses": table(dense, rooms),
            "Rooms, by their metrics": table(by_metrics, rooms),
            **({"Two overlaid digits, by accuracy": digits.table_by_accuracy()} if is_there(digits.STUDY) else {}),
        },
        for_user=_advice(first),
        limits="Rooms are rendered, with small images, short runs and three learning rates for each method: small enough "
        "for two cores, and too small to say what happens on NYUv2. No figure is claimed for NYUv2, whose licence does not "
        "let its data be passed on; who has it runs the same study with `nyuv2` in the place of `rooms`. The mean over "
        "problems weighs every problem alike, the three networks of the rooms included. The closed form with these settings "
        "was not run on `pinn`, where it has alpha 0: see [what balancing saves](savings.md).",
        studies=STUDIES,
    )


def _predictions(rooms: Mapping[str, Comparison]) -> list[Prediction | None]:
    losses = against(rooms, EQUAL, LOSS_CHANGE)
    methods = dict.fromkeys(each.method for each in losses)
    of_all = {name: [each.ends for each in losses if each.method == name] for name in methods}
    ahead = {method: inside(found, -math.inf, 0.0) for method, found in of_all.items()}
    everywhere = [method for method, is_ahead in ahead.items() if is_ahead]
    sides = {inside([each], 0.0, math.inf) for each in of_all[GRADNORM]}
    return [
        Prediction(
            "rooms",
            "No method is ahead of equal weights on all three networks",
            False if everywhere else None if None in ahead.values() else True,
            f"Ahead on all three, each by its own interval: {', '.join(map(quoted, everywhere)) or 'none'}.",
        ),
        Prediction(
            "rooms",
            "the sign of GradNorm's difference from equal weights is not the same on all of them",
            True if sides >= {True, False} else None if None in sides else False,
            f"{tally(losses, GRADNORM)} The means are {listed([f'{each.mean:+.1f} %' for each in of_all[GRADNORM]])}.",
        ),
        expected(
            "rooms",
            "1 / L(0) is level with equal weights.",
            [each for each in losses if each.method == "1 / L(0)"],
            "level",
        ),
    ]


def _against(contrasts: Sequence[Contrast], method: str, reference: str) -> list[Contrast]:
    return [each for each in contrasts if (each.method, each.reference) == (method, reference)]


def _line(gradnorm: Sequence[Contrast], rooms: Mapping[str, Comparison]) -> str:
    """Whether GradNorm has a gain in dense prediction, and by how much it differs from equal weights on each network."""
    better, worse = (sum(each.outcome == kind for each in gradnorm) for kind in ("better", "worse"))
    verdict = "Not shown" if not better else "Yes, on rendered rooms" if not worse else "On some networks only"
    spec = next(iter(rooms.values())).spec
    size = f"{spec.problem_settings['height']} x {spec.problem_settings['width']} pixels, {spec.steps} steps"
    figures = [f"{interval(each.ends, each.measure.unit)} on {each.problem}" for each in gradnorm]
    return (
        f"{verdict}: NYUv2 was not run, and on rendered rooms ({size}, n = {gradnorm[0].seeds}) GradNorm is better than equal "
        f"weights on {better or 'none'} of {len(gradnorm)} networks and worse on {worse or 'none'}. The "
        f"{gradnorm[0].measure.name} is {listed(figures)}; above 0 is worse."
    )


def _marked(by_metrics: Sequence[Contrast]) -> str:
    """By the metrics of the rooms: GradNorm on each network, and whatever is told apart."""
    ours = [f"{interval(each.ends, ' %')} on {each.problem}" for each in by_metrics if each.method == GRADNORM]
    told = [said(each) for each in by_metrics if each.outcome in ("better", "worse")]
    return (
        f"By the mean change of the rooms' metrics, GradNorm against equal weights: {listed(ours)}. Of all methods and "
        f"networks {len(told) or 'none'} of {len(by_metrics)} are told apart from equal weights. {' '.join(told)}".rstrip()
    )


def _advice(first: Sequence[Contrast]) -> str:
    found = counted(first)
    figures = (
        f"GradNorm was better than equal weights on {found['better'] or 'none'} of {len(first)} real problems and worse on "
        f"{found['worse'] or 'none'}."
    )
    if found["better"] > found["worse"]:
        return f"{figures} None of them tells you which kind yours is: compare on your own data before you rely on it."
    return f"{figures} Expect no gain from it without a comparison on your own data."
