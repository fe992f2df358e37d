"""Dense prediction on three networks, then all real problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape

from . import digits, everything
from .baselines import counts
from .contrasts import Contrast, against, contrast, counted, listed, of_search, quoted, tally
from .everything import EQUAL
from .forests import forest
from .measures import LOSS_CHANGE, METRICS_CHANGE
from .page import Page, Prediction, table
from .predictions import expected, inside
from .records import is_there

STUDIES = everything.REAL
NEEDED = ("yeast", "tox21", "molecules", "pinn")
GRADNORM = "GradNorm"
CLOSED = "closed form, balanced"


def page() -> Page:
    """The page."""
    rooms = everything.of("rooms")
    dense = against(rooms, EQUAL, METRICS_CHANGE)
    real = everything.of(*STUDIES)
    planned = [
        contrast(comparison, problem, method, reference, LOSS_CHANGE)
        for reference in (EQUAL, "1 / L(0)", "tuned static")
        for method in (GRADNORM, CLOSED)
        for problem, comparison in real.items()
        if {method, reference} <= comparison.runs.keys()
    ]
    first = _against(planned, GRADNORM, EQUAL)
    return Page(
        title="Dense prediction, strong networks, more than one data set",
        asked_by="review 2",
        question="Does the gain hold in the standard dense setting, on strong networks, and on more than one data set?",
        line=tally(first, GRADNORM),
        answer=[
            *(
                tally(_against(planned, method, reference), method)
                for reference in (EQUAL, "1 / L(0)", "tuned static")
                for method in (GRADNORM, CLOSED)
                if (method, reference) != (GRADNORM, EQUAL)
            ),
            *([f"By the metrics of rooms: {tally(dense, GRADNORM)}"] if rooms else []),
        ],
        predictions=[*(_predictions(rooms) if rooms else ()), *digits.predictions()],
        picture=forest(first + _against(planned, CLOSED, EQUAL), "GradNorm and its closed form on all real problems"),
        alt="Change of the task-normalised test loss by GradNorm and its closed form against equal weights on every "
        "real problem, with 95 % intervals",
        table="\n\n".join(
            f"Against {reference}:\n\n{counts([each for each in planned if each.reference == reference])}"
            for reference in dict.fromkeys(each.reference for each in planned)
        )
        + f"\n\n{escape(of_search(real))}",
        more={
            **({"Rooms, by their metrics": table(dense, rooms)} if rooms else {}),
            **({"Two overlaid digits, by accuracy": digits.table_by_accuracy()} if is_there(digits.STUDY) else {}),
        },
        for_user=_advice(first),
        limits="Rooms are rendered, with small images, short runs and three learning rates for each method: small enough "
        "for two cores, and too small to say what happens on NYUv2. No figure is claimed for NYUv2, whose licence does not "
        "let its data be passed on; who has it runs the same study with `nyuv2` in the place of `rooms`. The mean over "
        "problems weighs every problem alike, the three networks of the rooms included.",
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


def _advice(first: Sequence[Contrast]) -> str:
    found = counted(first)
    if found["better"] > found["worse"]:
        return (
            "Compare on your own data: GradNorm was better than equal weights on more real problems than it was worse "
            "on, and none of them tells you which kind yours is. Two methods with tuned rates and five seeds are an "
            "afternoon."
        )
    return (
        "Do not expect GradNorm to improve a network whose losses are of one size: on real problems it was not better "
        "than equal weights more often than worse. Compare on your own data before you rely on it."
    )
