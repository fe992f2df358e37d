"""What balancing saves: one run against a search for static weights, and where good static weights lie."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from scipy import stats

from equipoise.lab.studies.run import Result

from ..pictures import Axis, Panel, Series, plot
from .contrasts import Contrast, against, contrast, quoted, said
from .measures import LOSS_CHANGE
from .page import Page, Prediction, table
from .predictions import at_the_end, expected, inside
from .records import is_there, results

STUDIES = ("savings", "static_weights", "pinn")
NEEDED = ("savings", "pinn")
STATIC, GRADNORM, INITIAL, CLOSED = "tuned static", "GradNorm", "1 / L(0)", "closed form, balanced"
ERROR_CHANGE = replace(LOSS_CHANGE, name="change of the error of the solution")
ALPHA_0, INVERSE = "closed form, alpha 0, balanced", "inverse gradient norm"


def page() -> Page:
    """The page."""
    searches = {_named(result): result for result in results("savings")}
    random = {_named(result): result for result in (results("static_weights") if is_there("static_weights") else ())}
    two, ten = searches
    pinn = results("pinn")[0].comparison
    found = {name: result.comparison for name, result in searches.items()}
    planned = [
        contrast(comparison, problem, STATIC, other)
        for problem, comparison in found.items()
        for other in (GRADNORM, INITIAL, CLOSED)
    ]
    solution = against({"pinn": pinn}, "equal", ERROR_CHANGE)
    of_pinn = {each.method: each for each in solution}
    closed = [contrast(pinn, "pinn", method, ALPHA_0, ERROR_CHANGE) for method in pinn.runs if method != ALPHA_0]
    of_closed = {each.method: each for each in closed}
    passes = {
        (name, other): _passes(result, other) for name, result in searches.items() for other in (GRADNORM, INITIAL)
    }
    return Page(
        title="What balancing saves",
        asked_by="review 2",
        question="How good is one method that chooses weights while it trains, beside a search for static weights and "
        "its cost?",
        line=" ".join(_said(searches[name], other, passes[name, other]) for name in searches for other in (GRADNORM,)),
        answer=[
            *(_said(searches[name], INITIAL, passes[name, INITIAL]) for name in searches),
            *map(said, planned),
            *(_correlation(name, result)[1] for name, result in random.items()),
            said(of_pinn[ALPHA_0]),
            said(of_closed[STATIC]),
        ],
        predictions=[
            Prediction(
                "savings",
                "With two tasks, static weights pass GradNorm after about ten trials",
                (number := passes[two, GRADNORM]) is not None and 5 <= number <= 20,
                _said(searches[two], GRADNORM, number),
            ),
            Prediction(
                "savings",
                "1 / L(0) not at all or after some thirty",
                (number := passes[two, INITIAL]) is None or 20 <= number <= 45,
                _said(searches[two], INITIAL, number),
            ),
            Prediction(
                "savings",
                "with ten tasks, 63 trials do not find weights as good as those of GradNorm or of 1 / L(0).",
                passes[ten, GRADNORM] is None and passes[ten, INITIAL] is None,
                " ".join(_said(searches[ten], other, passes[ten, other]) for other in (GRADNORM, INITIAL)),
            ),
            *([_farther(random[ten]), _elsewhere(random[two])] if random else []),
            _twofold(of_pinn[ALPHA_0]),
            at_the_end("pinn", "is far behind all others", pinn, [INITIAL], "largest"),
            expected(
                "pinn",
                "The balanced gradient norms of Wang et al. are level with the closed form",
                [of_closed[INVERSE]],
                "level",
            ),
            expected("pinn", "GradNorm as published is behind it", [of_closed[GRADNORM]], "worse"),
            expected("pinn", "Static weights from six trials are behind the closed form", [of_closed[STATIC]], "worse"),
        ],
        picture=plot(
            [
                *(_cost_panel(name, result) for name, result in searches.items()),
                *(_distance_panel(name, result) for name, result in random.items()),
            ],
            "Quality against the number of trials, and random static weights against their distance from GradNorm's",
        ),
        alt="Above: the expected best validation loss after a number of trials, for four methods and for static "
        "weights, with two and ten tasks. Below: the validation loss of random static weights against their "
        "distance from GradNorm's mean weights",
        table=table(against(found, "equal"), found) + "\n\n" + table(solution, {"pinn": pinn}),
        for_user=_advice(passes),
        limits="One order of trials, drawn evenly over the space; the curve is the expectation over all orders. "
        "Weights of the physics-informed network have seven trials, as every method there. Random static weights on the "
        "toy have 3000 steps: with two tasks the differences shrink in longer runs, see [the toy](toy.md).",
        studies=STUDIES,
    )


def _named(result: Result) -> str:
    return f"{len(result.comparison.tasks)} tasks"


def _values(result: Result, label: str) -> list[float]:
    """The validation losses of a search's trials, smallest first."""
    return sorted(trial.value for trial in result.searches[label].trials)


def expected_best(values: Sequence[float], number: int) -> float:
    """The mean smallest of some values over all ways to draw so many; infinite if a draw may have no finite one.

    Example:
        >>> expected_best([1.0, 2.0, 3.0], 2)
        1.3333333333333333
    """
    ordered, n = sorted(values), len(values)
    ways = math.comb(n, number)
    chances = [math.comb(n - rank - 1, number - 1) / ways for rank in range(n - number + 1)]
    return sum(chance * value for chance, value in zip(chances, ordered, strict=False))


def _passes(result: Result, other: str) -> int | None:
    """After how many trials static weights are expected to beat all trials of another method; None: after none."""
    ours, theirs = _values(result, STATIC), _values(result, other)[0]
    return next((n for n in range(1, len(ours) + 1) if expected_best(ours, n) < theirs), None)


def _said(result: Result, other: str, number: int | None) -> str:
    trials, theirs = len(result.searches[STATIC].trials), len(result.searches[other].trials)
    start = f"With {_named(result)} a search for static weights"
    if number is None:
        return (
            f"{start} is not expected to pass {quoted(other)} (best of {theirs} learning rates) within {trials} trials."
        )
    return f"{start} is expected to pass {quoted(other)} (best of {theirs} learning rates) after {number} of {trials} trials."


def _cost_panel(name: str, result: Result) -> Panel:
    series = []
    for label in result.searches:
        values = _values(result, label)
        places = [n for n in range(1, len(values) + 1) if math.isfinite(expected_best(values, n))]
        series.append(Series(label, places, [expected_best(values, n) for n in places]))
    return Panel(
        f"{name}: quality against the cost of the search",
        series,
        Axis(f"trials, of {result.comparison.spec.steps:,} training steps each", log=True),
        Axis("expected best validation loss so far"),
    )


def _distances(result: Result) -> tuple[list[float], list[float]]:
    """The distance of every static weight from GradNorm's mean weights in decades, and its validation loss."""
    runs = result.comparison.runs[GRADNORM].values()
    mean = [
        statistics.fmean(statistics.fmean(map(math.log10, record.curves.weights[task.name])) for record in runs)
        for task in result.comparison.tasks
    ]
    centre = [value - statistics.fmean(mean) for value in mean]
    distances, values = [], []
    for trial in result.searches[STATIC].trials:
        logs = [math.log10(weight) for weight in trial.searched["weights"]]
        shifted = [value - statistics.fmean(logs) for value in logs]
        distances.append(math.dist(shifted, centre) / math.sqrt(len(centre)))
        values.append(trial.value)
    return distances, values


def _distance_panel(name: str, result: Result) -> Panel:
    distances, values = _distances(result)
    return Panel(
        f"{name}: random static weights",
        [Series("random static weights", distances, values, "points")],
        Axis("distance from GradNorm's mean weights, in decades"),
        Axis("validation loss, mean L/L(0)"),
    )


def _correlation(name: str, result: Result) -> tuple[tuple[float, float], str]:
    distances, values = _distances(result)
    found = stats.spearmanr(distances, values)
    rho, p = float(found.statistic), float(found.pvalue)
    best = min(range(len(values)), key=values.__getitem__)
    text = (
        f"With {name} the rank correlation between the distance of random static weights from GradNorm's mean weights "
        f"and their loss is {rho:.2f} (p = {p:.2g}, n = {len(values)}); the best of them lies {distances[best]:.2f} "
        f"decades away, and {sum(distance < distances[best] for distance in distances)} of them are nearer."
    )
    return (rho, p), text


def _farther(result: Result) -> Prediction:
    (rho, p), text = _correlation(_named(result), result)
    words = "As the paper says, the farther static weights lie from GradNorm's mean weights, the worse they are with ten tasks"
    return Prediction("static_weights", words, rho > 0 if p < 0.05 else None, text)


def _elsewhere(result: Result) -> Prediction:
    distances, values = _distances(result)
    best = min(range(len(values)), key=values.__getitem__)
    nearer = sum(distance < distances[best] for distance in distances)
    words = "with two tasks the best static weights do not lie at GradNorm's."
    return Prediction("static_weights", words, nearer > len(values) / 10, _correlation(_named(result), result)[1])


def _twofold(one: Contrast) -> Prediction:
    words = (
        "the closed form that balances gradient norms from the first batch is ahead of equal weights by a factor of "
        "two or more"
    )
    return Prediction("pinn", words, inside([one.ends], -math.inf, -50), said(one))


def _advice(passes: dict[tuple[str, str], int | None]) -> str:
    words = []
    for (name, other), number in passes.items():
        trials = "in no number of trials that was tried" if number is None else f"after {number} trials"
        words.append(f"with {name} {other} {trials}")
    return (
        f"What a method that chooses weights saves is a search, and no more. Static weights are expected to overtake: "
        f"{'; '.join(words)}. Try 1 / L(0) first, which costs nothing; search static weights where tasks are few; with "
        "many tasks the search soon costs more than it finds."
    )
