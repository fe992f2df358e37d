"""Groups and hierarchies of tasks: flat against nested balancing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import everything
from .contrasts import Contrast, against, contrast, interval, listed, tally
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
    both = [each for each in nested if each.method == BOTH]
    return Page(
        title="Groups and hierarchies of tasks",
        asked_by="review 1",
        question="Tasks come in groups, correlated within and not between, or in a tree: is it better to balance "
        "groups first and the tasks within them after?",
        line=_line(both),
        answer=[tally(_as_code(nested), method) for method in (ROOT, LEAVES)]
        + [tally(_as_code(equal), method) for method in (FLAT, BOTH, "GradNorm")],
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
                [*chosen(nested, "groups", ROOT), contrast(found["groups"], "groups", ROOT, BOTH, LOSS_CHANGE)],
                "worse",
            ),
            expected("groups", "and level with equal weights.", chosen(equal, "groups", ROOT), "level"),
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
        for_user=f"{_advice(both)} Nest where a group should count as one task however many members it has: then the number "
        "of its members no longer decides its weight. That is a choice about the objective, and no table can make it.",
        limits="Two generated problems and two on data (thirty proteins, twenty-one assays of three platforms), with "
        "some hundreds of steps and five seeds; one network each. Runs end before they converge. A larger machine "
        "would add all twelve platforms, longer runs, more trials, and groups of very unequal size.",
        studies=STUDIES,
    )


def _as_code(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The same contrasts with the names of the problems as code: one of them is called groups."""
    return [replace(each, problem=f"`{each.problem}`") for each in contrasts]


def _line(both: Sequence[Contrast]) -> str:
    better, worse = ([each for each in both if each.outcome == kind] for kind in ("better", "worse"))
    verdict = "No" if not better else "Yes" if not worse else "Only in places"
    figures = [f"{interval(each.ends, each.measure.unit)} on {each.problem}" for each in _as_code(both)]
    return (
        f"{verdict}: balancing groups first and tasks after was better than balancing all tasks at once on "
        f"{len(better) or 'none'} of {len(both)} problems and worse on {len(worse) or 'none'}. "
        f"The {both[0].measure.name} is {listed(figures)} "
        f"(n = {both[0].seeds} each; above 0 is worse{_behind(both)})."
    )


def _behind(both: Sequence[Contrast]) -> str:
    """The problems with a mark, and those behind by their own interval without one."""
    marked = [f"`{each.problem}`" for each in both if each.outcome in ("better", "worse")]
    alone = [f"`{each.problem}`" for each in both if each.ends.low > 0 and each.outcome != "worse"]
    words = f"; after Holm's correction {listed(marked) or 'no problem'} counts"
    return words + (f", and {listed(alone)} is behind by its own interval" if alone else "")


def _advice(both: Sequence[Contrast]) -> str:
    paid, cost, perhaps = (
        listed([f"`{each.problem}`" for each in both if holds(each)])
        for holds in (
            lambda each: each.outcome == "better",
            lambda each: each.outcome == "worse",
            lambda each: each.outcome != "worse" and each.ends.low > 0,
        )
    )
    words = [f"on {names}" if names else "nowhere" for names in (paid, cost)]
    also = f", and by its interval alone on {perhaps}" if perhaps else ""
    return f"Balancing in two steps paid {words[0]} and cost {words[1]}{also}."
