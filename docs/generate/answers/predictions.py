"""What was expected beforehand, held against contrasts.

One rule: an expectation names a range for a difference. The figures agree if the whole 95 % interval of every difference lies
inside, disagree if that of one lies wholly outside, and else do not decide it. Where methods were expected not to be told
apart, the corrected tests decide, and so they do on the largest and the smallest means. A search that returned equal weights
says nothing of other static weights: an expectation about tuned static weights is then not decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from equipoise.lab.results.comparison import Comparison

from .contrasts import Contrast, Ends, contrast, listed, quoted, said
from .measures import LOSS
from .page import Prediction


def chosen(contrasts: Sequence[Contrast], problem: str, *methods: str) -> list[Contrast]:
    """Those of some methods on a problem, in this order; none where the problem's study has no records yet."""
    by_method = {each.method: each for each in contrasts if each.problem == problem}
    return [by_method[method] for method in methods if method in by_method]


def inside(found: Sequence[Ends], low: float, high: float) -> bool | None:
    """Whether all intervals lie inside a range: True if they do, False if one lies wholly outside, None else."""
    if any(each.high <= low or each.low >= high for each in found):
        return False
    return True if all(low <= each.low and each.high <= high for each in found) else None


def expected(
    study: str, words: str, contrasts: Sequence[Contrast], outcome: Literal["better", "worse", "level"]
) -> Prediction | None:
    """The contrasts were all expected to come to the same. None without contrasts."""
    if outcome == "level":
        margin = contrasts[0].measure.margin if contrasts else math.nan
        return _decided(
            study, words, contrasts, inside([each.change or each.ends for each in contrasts], -margin, margin)
        )
    low, high = (-math.inf, 0.0) if outcome == "better" else (0.0, math.inf)
    return _decided(study, words, contrasts, inside([*map(_turned, contrasts)], low, high))


def not_apart(study: str, words: str, contrasts: Sequence[Contrast]) -> Prediction | None:
    """Methods were expected not to be told apart, level or not. None without contrasts."""
    told = any(each.outcome in ("better", "worse") for each in contrasts)
    lost = any(each.outcome == "diverged" for each in contrasts)
    return _decided(study, words, contrasts, False if told else None if lost else True)


def no_better(study: str, words: str, contrasts: Sequence[Contrast]) -> Prediction | None:
    """No method was expected to be better than its reference, by more than what counts as level. None without contrasts."""
    margin = contrasts[0].measure.margin if contrasts else math.nan
    found = [_turned(each, each.change) for each in contrasts]
    return _decided(study, words, contrasts, inside(found, -margin, math.inf))


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
    sound = [each for each in contrasts if each.outcome != "diverged"]
    if not sound:
        return None
    first = min(sound, key=lambda each: _turned(each).low)
    agrees = inside([*map(_turned, sound)], -limit, math.inf)
    return Prediction(study, words, agrees, f"The interval that reaches furthest: {said(first)}")


def within(study: str, words: str, contrasts: Sequence[Contrast], limit: float) -> Prediction | None:
    """Every difference was expected to lie within a limit on both sides. None without contrasts."""
    return _decided(study, words, contrasts, inside([each.ends for each in contrasts], -limit, limit))


def at_the_end(
    study: str, words: str, comparison: Comparison, methods: Sequence[str], end: Literal["smallest", "largest"]
) -> Prediction:
    """Some methods were expected to have the smallest losses of all, or the largest.

    The one of them that is furthest from that end is held against the one of the others that is nearest to it.
    """
    sound = [label for label in comparison.runs if not comparison.diverged[label]]
    means = {label: LOSS.mean(comparison, label) for label in sound}
    ranked = sorted(means, key=lambda label: means[label], reverse=end == "largest")
    ours, theirs = (
        [each for each in ranked if each in methods][-1],
        next(each for each in ranked if each not in methods),
    )
    one = contrast(comparison, "", ours, theirs)
    wanted, other = ("better", "worse") if end == "smallest" else ("worse", "better")
    agrees = {wanted: True, other: False}.get(one.outcome) if set(methods) <= {*sound} else None
    shown = listed([f"{quoted(label)} {means[label]:.3g}" for label in ranked[: len(methods) + 2]])
    return Prediction(study, words, agrees, f"The {end} means: {shown}. {said(one, where=False)}")


def _decided(study: str, words: str, contrasts: Sequence[Contrast], agrees: bool | None) -> Prediction | None:
    """What the figures say of an expectation; None without contrasts."""
    if not contrasts:
        return None
    places = listed(list(dict.fromkeys(each.problem for each in contrasts if each.unsearched)))
    reason = f" On {places} the search for static weights returned equal weights, which says nothing of others."
    text = " ".join(map(said, contrasts)) + (reason if places else "")
    return Prediction(study, words, None if places else agrees, text)


def _turned(each: Contrast, found: Ends | None = None) -> Ends:
    """The interval of a contrast, or another one, with the better end below."""
    ends = found or each.ends
    return Ends(-ends.mean, -ends.high, -ends.low, ends.n) if each.measure.higher_is_better else ends
