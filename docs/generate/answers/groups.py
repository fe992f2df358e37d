"""Groups and hierarchies of tasks: flat against nested balancing."""

from __future__ import annotations

from . import everything
from .contrasts import against, listed, tally
from .forests import forest
from .measures import LOSS_CHANGE
from .page import Page, table
from .predictions import chosen, expected, no_better, not_ahead

STUDIES = ("groups", "hierarchy", "molecules", "toxcast")
NEEDED = ("groups", "molecules")
FLAT = "closed form, balanced"
BOTH, ROOT, LEAVES = (
    "nested: groups and tasks balanced",
    "nested: groups balanced, tasks equal",
    "nested: groups equal, tasks balanced",
)


def page() -> Page:
    """The page."""
    found = everything.of(*STUDIES)
    equal = against(found, "equal", LOSS_CHANGE)
    nested = against(found, FLAT, LOSS_CHANGE, (BOTH, ROOT, LEAVES))
    scale_free = ("1 / L(0)", "uncertainty from log L(0)", "GradNorm")
    words_ahead = {
        "groups": "Methods that take the scale off (1 / L(0), uncertainty weighting from log L(0), GradNorm) are ahead "
        "of equal weights in the task-normalised test loss.",
        "hierarchy": "methods that take the scale off are ahead of equal weights in the task-normalised test loss.",
    }
    gains = [each for each in nested if each.method == BOTH and each.outcome == "better"]
    losses = [each for each in nested if each.method == BOTH and each.outcome == "worse"]
    if gains:
        advice = f"Balancing groups and tasks in two steps paid on {listed([each.problem for each in gains])}"
        advice += f" and cost on {listed([each.problem for each in losses])}." if losses else " and cost nowhere."
    elif losses:
        advice = f"Balancing in two steps paid nowhere and cost on {listed([each.problem for each in losses])}."
    else:
        advice = "Balancing in two steps neither paid nor cost anything that can be told."
    return Page(
        title="Groups and hierarchies of tasks",
        asked_by="review 1",
        question="Tasks come in groups, correlated within and not between, or in a tree: is it better to balance "
        "groups first and the tasks within them after?",
        line=tally(nested, BOTH),
        answer=[tally(nested, method) for method in (BOTH, ROOT, LEAVES)]
        + [tally(equal, method) for method in (FLAT, BOTH, "GradNorm")],
        predictions=[
            *(expected(name, words, chosen(equal, name, *scale_free), "better") for name, words in words_ahead.items()),
            expected(
                "groups",
                "The closed form is level whether it is flat or nested",
                chosen(nested, "groups", BOTH),
                "level",
            ),
            expected(
                "groups",
                "nested with equal weights inside the groups is behind both",
                chosen(nested, "groups", ROOT),
                "worse",
            ),
            expected(
                "hierarchy",
                "The closed form is level whether it is flat or nested at all levels",
                chosen(nested, "hierarchy", BOTH),
                "level",
            ),
            expected(
                "hierarchy",
                "nested with equal weights below the root is level with equal weights",
                chosen(equal, "hierarchy", ROOT),
                "level",
            ),
            not_ahead(
                "molecules",
                "No method is ahead of equal weights by more than 3 % of the task-normalised test loss",
                [each for each in equal if each.problem == "molecules"],
                3.0,
            ),
            expected("molecules", "flat and nested balancing are level", chosen(nested, "molecules", BOTH), "level"),
            not_ahead(
                "toxcast",
                "No method is ahead of equal weights by more than 2 % of the task-normalised test loss.",
                [each for each in equal if each.problem == "toxcast"],
                2.0,
            ),
            no_better("toxcast", "is no better than flat", chosen(nested, "toxcast", BOTH)),
        ],
        picture=forest(nested, "Nested against flat balancing, with intervals"),
        alt="Change of the task-normalised test loss of three ways of nested balancing against the flat closed form, "
        "problem by problem, with 95 % intervals",
        table=table(equal, found),
        for_user=f"{advice} Nest where a group should count as one task however many members it has: then the number "
        "of its members no longer decides its weight. That is a choice about the objective, and no table can make it.",
        limits="Two generated problems and two on data (thirty proteins, twenty-one assays of three platforms), with "
        "some hundreds of steps and five seeds; one network each. Runs end before they converge. A larger machine "
        "would add all twelve platforms, longer runs, more trials, and groups of very unequal size.",
        studies=STUDIES,
    )
