"""What balancing saves: one run against a search for static weights, and where good static weights lie."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scipy import stats

from equipoise.lab.results.format import format_estimate
from equipoise.lab.results.markdown import escape
from equipoise.lab.results.selection import judged, selected
from equipoise.lab.studies.run import Result

from ..pictures import Axis, Panel, Series, plot
from .contrasts import Contrast, against, contrast, listed, quoted, said
from .measures import LOSS, LOSS_CHANGE
from .page import Page, Prediction, table
from .predictions import at_the_end, expected, inside
from .records import is_there, results

STUDIES = ("savings", "static_weights", "pinn")
NEEDED = ("savings", "pinn")
STATIC, GRADNORM, INITIAL, CLOSED = "tuned static", "GradNorm", "1 / L(0)", "closed form, balanced"
Passes = Mapping[tuple[str, str], int | None]
"""After how many trials static weights pass a method, by the number of tasks and the method; None: after none."""
ERROR_CHANGE = replace(LOSS_CHANGE, name="change of the error of the solution")
OTHERS = ("equal", GRADNORM, INITIAL, CLOSED)
"""The methods that a search for static weights is held against."""
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
    passes = {(name, other): _passes(result, other) for name, result in searches.items() for other in OTHERS}
    return Page(
        title="What balancing saves",
        asked_by="review 2",
        question="How good is one method that chooses weights while it trains, beside a search for static weights and "
        "its cost?",
        line=_line(searches, passes, planned),
        answer=[
            _one_seed(searches),
            *map(said, planned),
            *(_correlation(name, result)[1] for name, result in random.items()),
            said(of_pinn[ALPHA_0]),
            said(of_closed[STATIC]),
            said(of_pinn[INITIAL]),
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
        table="\n\n".join(
            [_searched(searches, passes), table(against(found, "equal"), found), table(solution, {"pinn": pinn})]
        ),
        for_user=_advice(searches, passes, of_pinn[INITIAL]),
        limits="One draw of the trials, spread evenly over the space, with one tuning seed; the curve is the expectation over "
        "all orders of these trials. "
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


def _line(searches: Mapping[str, Result], passes: Passes, planned: Sequence[Contrast]) -> str:
    """Whether GradNorm is as good as the search and spares one, on each number of tasks."""
    told = [each for each in planned if each.outcome in ("better", "worse")]
    saved = {name: _saves(result, passes[name, GRADNORM]) for name, result in searches.items()}
    spared, not_spared = ([name for name in saved if saved[name] is wanted] for wanted in (True, False))
    quality = (
        "Not told apart from such a search" if not told else f"Told apart in {len(told)} of {len(planned)} comparisons"
    )
    cost = [f"with {listed(not_spared)} it saved none"] if not_spared else []
    cost += [f"with {listed(spared)} perhaps one"] if spared else []
    figures = [
        f"{passes[name, GRADNORM] or 'none'} of {len(result.searches[STATIC].trials)} trials with {name}"
        for name, result in searches.items()
    ]
    by_equal = [f"{passes[name, 'equal'] or 'none'}" for name in searches]
    own = listed(sorted({str(len(result.searches[GRADNORM].trials)) for result in searches.values()}))
    return (
        f"{quality}; {', '.join(cost)}. A search for static weights is expected to pass GradNorm after {listed(figures)}, and "
        f"GradNorm itself had {own}; equal weights, which choose nothing, are passed after {listed(by_equal)}. On the final "
        f"seeds {len(told) or 'none'} of {len(planned)} comparisons of tuned static weights with GradNorm, 1 / L(0) and the "
        f"closed form are told apart (n = {planned[0].seeds} each)."
    )


def _saves(result: Result, number: int | None) -> bool:
    """Whether a search for static weights needs more trials to pass GradNorm than that itself had."""
    return number is None or number > len(result.searches[GRADNORM].trials)


def _one_seed(searches: Mapping[str, Result]) -> str:
    """What the best of the search becomes on the final seeds, for the method that loses most."""
    _, name, label = max(
        (_again(result, label) - _values(result, label)[0], name, label)
        for name, result in searches.items()
        for label in OTHERS
    )
    result = searches[name]
    means = {each: LOSS.mean(result.comparison, each) for each in result.comparison.runs}
    place = sorted(means, key=means.__getitem__).index(label) + 1
    return (
        "The number of trials rests on the validation losses of one tuning seed, and their order is noise in part: the best "
        f"of {quoted(label)} with {name} is {_values(result, label)[0]:.3f} in the search and {_again(result, label):.3f} on "
        f"the final seeds, where its test loss is place {place} of {len(means)}. Read the numbers as an order of magnitude."
    )


def _again(result: Result, label: str) -> float:
    """The validation loss of a method on the final seeds, the mean."""
    runs = result.comparison.runs[label].values()
    return statistics.fmean(float(judged(record, record.validation)[selected(record)]) for record in runs)


def _searched(searches: Mapping[str, Result], passes: Passes) -> str:
    """The search of every method: its trials, its best, the same on the final seeds, and when static weights pass it."""
    heads = ("tasks", "method", "own trials", "best validation loss, 1 tuning seed", "validation loss, final seeds")
    heads += ("test loss, final seeds", "static weights pass it after")
    lines = [f"| {' | '.join(heads)} |", "|:--|:--|" + "--:|" * (len(heads) - 2)]
    for name, result in searches.items():
        for label, search in result.searches.items():
            test = LOSS.cell(result.comparison, label, label).value
            passed = "" if label == STATIC else str(passes[name, label] or "no trial")
            cells = (
                name,
                label,
                f"{len(search.trials)}",
                f"{_values(result, label)[0]:.3f}",
                f"{_again(result, label):.3f}",
            )
            lines.append(f"| {' | '.join([*map(escape, cells), format_estimate(test, compact=True), passed])} |")
    return "\n".join(lines)


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


def _advice(searches: Mapping[str, Result], passes: Passes, initial: Contrast) -> str:
    spared = [name for name, result in searches.items() if _saves(result, passes[name, GRADNORM])]
    words = f"A method that chooses weights may spare a search where tasks are many (here with {listed(spared)}). "
    if not spared:
        words = "Do not count on a method that chooses weights to spare a search. "
    fails = f" It is no safe choice: {said(initial)}" if initial.outcome == "worse" else ""
    return (
        f"{words}Where tasks are few, search static weights with equal weights as the first trial. 1 / L(0) takes one line and "
        f"no search but that of the learning rate.{fails}"
    )
