"""What was expected beforehand, held against contrasts."""

from __future__ import annotations

from collections.abc import Sequence

from .contrasts import Contrast, Outcome, said
from .page import Prediction


def chosen(contrasts: Sequence[Contrast], problem: str, *methods: str) -> list[Contrast]:
    """Those of some methods on a problem, in this order; none where the problem's study has no records yet."""
    by_method = {each.method: each for each in contrasts if each.problem == problem}
    return [by_method[method] for method in methods if method in by_method]


def expected(study: str, words: str, contrasts: Sequence[Contrast], outcome: Outcome) -> Prediction | None:
    """The contrasts were all expected to come to the same: one that comes to another thing is against it.

    Where none comes to another thing and some are not told apart, the figures decide nothing. None without contrasts.
    """
    if not contrasts:
        return None
    found = [each.outcome for each in contrasts]
    agrees = True if set(found) == {outcome} else None
    if set(found) - {outcome, "not told apart"}:
        agrees = False
    return Prediction(study, words, agrees, " ".join(map(said, contrasts)))


def not_apart(study: str, words: str, contrasts: Sequence[Contrast]) -> Prediction | None:
    """Methods were expected not to be told apart, level or not. None without contrasts."""
    if not contrasts:
        return None
    told = [each for each in contrasts if each.outcome not in ("level", "not told apart")]
    return Prediction(study, words, not told, " ".join(map(said, contrasts)))


def no_better(study: str, words: str, contrasts: Sequence[Contrast]) -> Prediction | None:
    """No method was expected to be better than its reference. None without contrasts."""
    if not contrasts:
        return None
    found = {each.outcome for each in contrasts}
    agrees = True if found <= {"worse", "level", "diverged"} else None
    return Prediction(study, words, False if "better" in found else agrees, " ".join(map(said, contrasts)))


def not_ahead(study: str, words: str, contrasts: Sequence[Contrast], limit: float) -> Prediction | None:
    """No method was expected to be ahead by more than a limit: the interval of the one that is furthest ahead decides.

    Args:
        study: The study's name.
        words: The part of its expectation.
        contrasts: The methods against their reference.
        limit: The limit, in the unit of the measure.

    Returns:
        None without contrasts.
    """
    if not contrasts:
        return None
    sign = -1 if contrasts[0].measure.higher_is_better else 1
    sound = [each for each in contrasts if each.outcome != "diverged"]
    lead = [(-sign * each.difference.mean, each.difference.half_width, each) for each in sound]
    agrees = True if all(mean + half <= limit for mean, half, _ in lead) else None
    if any(mean - half > limit for mean, half, _ in lead):
        agrees = False
    _, _, first = max(lead, key=lambda some: some[0] + some[1])
    return Prediction(study, words, agrees, f"The interval that reaches furthest: {said(first)}")


def within(study: str, words: str, contrasts: Sequence[Contrast], limit: float) -> Prediction | None:
    """Every difference was expected to lie within a limit on both sides, with its whole interval. None without contrasts."""
    if not contrasts:
        return None
    ends = [each.ends for each in contrasts]
    agrees = True if all(-limit < each.low and each.high < limit for each in ends) else None
    if any(each.low > limit or each.high < -limit for each in ends):
        agrees = False
    return Prediction(study, words, agrees, " ".join(map(said, contrasts)))
