"""When does GradNorm help? The map over generated problems."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from equipoise.checking.rules import EQUAL, OPTIMIZERS, RuleOfThumb
from equipoise.lab.results.statistics import CONFIDENCE, Estimate, estimate

from .condensed import Cell, table
from .contrasts import listed
from .heat import Square, heat_map
from .page import Page, Prediction, bullets
from .records import study
from .thumb import MARGIN, Judged, judge, log_change, outcome, wilson

STUDIES = ("map",)
NEEDED = STUDIES
METHODS = ("GradNorm", "closed form, balanced")
OPPONENTS = {"equal": EQUAL, "1 / L(0)": "1 / L(0)", "tuned static": "tuned static weights"}

RARE = 0.25
"""A method that is ahead on a smaller part of the problems, and more often behind, is ahead rarely."""
PAIRS = [(method, opponent) for method in METHODS for opponent in OPPONENTS]


def _scale(cell: Cell) -> float:
    return max(cell["settings"]["scales"]) / min(cell["settings"]["scales"])


def _which(cell: Cell, setting: str) -> str:
    one, other = cell["settings"][setting]
    return "neither" if one == other else "the one of smaller scale" if one > other else "the one of larger scale"


FACTORS: Mapping[str, Callable[[Cell], str]] = {
    "ratio of the scales": lambda cell: f"{_scale(cell):g}",
    "the harder task": lambda cell: _which(cell, "frequencies"),
    "the noisy task": lambda cell: _which(cell, "noises"),
    "width": lambda cell: f"{cell['settings']['width']}",
    "training samples": lambda cell: f"{cell['settings']['train_samples']}",
    "optimiser": lambda cell: OPTIMIZERS[cell["settings"]["optimizer"]],
}
"""The level of a problem by factor. At equal scales the second task counts as the larger one."""


def page() -> Page:
    """The page."""
    cells: list[Cell] = table()["cells"]
    rules = {pair: judge(cells, *pair) for pair in PAIRS}
    declared = study("map")
    return Page(
        title="When does it help?",
        asked_by="review 1",
        question="For which scales, difficulties, noises, sizes of network and data, and optimisers is GradNorm better than "
        "equal weights, 1 / L(0) or tuned static weights?",
        line=_line(cells),
        answer=[
            _by_chance(cells),
            *(_counted(cells, *pair) for pair in PAIRS),
            *(_where(cells, method, "equal") for method in METHODS),
            _counted(cells, "1 / L(0)", "equal"),
            _counted(cells, "equal", "tuned static")
            + " The search for static weights has equal weights among its points, but few others: a method can be ahead "
            "of tuned static weights because that search is coarse.",
            f"{len(rules)} rules of thumb were fitted on one half of the problems and judged on the other, each at 95 %, so "
            f"that one may hold up by chance; {sum(rule.holds_up for rule in rules.values()) or 'none'} did.",
        ],
        predictions=_predictions(cells, rules),
        picture=_picture(cells),
        alt="Every problem as a square, for both forms of GradNorm against three opponents",
        table=_table(cells, [*PAIRS, ("1 / L(0)", "equal")]),
        more={"The rules of thumb": bullets(_rule(*pair, rules[pair]) for pair in PAIRS)},
        for_user=_for_user(cells, rules),
        limits=f"Two regressions with squared errors, networks of {_levels(cells, 'width')} neurons a layer, {declared.steps} "
        f"steps, n = {len(declared.seeds)} seeds a problem; every problem is one draw of its functions. Each method has "
        f"{declared.trials} trials: a coarse grid of learning rates, and for static weights as many points of a plane. "
        f"{_at_the_end()} The {table()['runs']:,} runs took "
        f"{table()['seconds'] / 60:.0f} minutes of training on one core.",
        studies=STUDIES,
    )


def rules() -> str:
    """The rules that hold up, for `equipoise.check`, as JSON."""
    found = []
    for method, opponent in PAIRS:
        judged = judge(table()["cells"], method, opponent)
        hits, base = judged.tested, judged.base
        if judged.holds_up:
            rule = RuleOfThumb(method, OPPONENTS[opponent], judged.rule, *hits, base[0], judged.base_answer)
            found.append(asdict(rule))
    return json.dumps(found, indent=1) + "\n"


def _found(cells: Sequence[Cell], method: str, opponent: str) -> tuple[int, int]:
    """On how many problems a method is ahead, and on how many behind."""
    found = [outcome(cell, method, opponent) for cell in cells]
    return found.count("ahead"), found.count("behind")


def _change(cells: Sequence[Cell], method: str, opponent: str) -> Estimate:
    """The mean over problems of the logarithmic change, without those where a run diverged."""
    changes = [log_change(cell, method, opponent).mean for cell in cells]
    return estimate([change for change in changes if math.isfinite(change)])


def _line(cells: Sequence[Cell]) -> str:
    """How often GradNorm is ahead of equal weights, and at which scales."""
    ahead, behind = _found(cells, "GradNorm", "equal")
    verdict = "Often" if ahead > behind else "Rarely" if ahead < RARE * len(cells) else "On a part of the problems"
    by_scale = {
        ratio: _found([cell for cell in cells if _scale(cell) == ratio], "GradNorm", "equal")
        for ratio in sorted(set(map(_scale, cells)))
    }
    counts = [listed([str(pair[side]) for pair in by_scale.values()]) for side in (0, 1)]
    at = [f"{ratio:g}" for ratio, (one, other) in by_scale.items() if one > other]
    where = f"more often ahead than behind at {listed(at)} alone" if at else "nowhere more often ahead than behind"
    simple = _found(cells, "1 / L(0)", "equal")
    return (
        f"{verdict}: GradNorm is ahead of equal weights on {ahead} of {len(cells)} generated problems and behind on {behind}. "
        f"Where the scales of the two tasks have the ratio {listed([f'{ratio:g}' for ratio in by_scale])}, it is ahead on "
        f"{counts[0]} problems and behind on {counts[1]}: {where}. 1 / L(0) is ahead of equal weights on {simple[0]} and "
        f"behind on {simple[1]}. {_converged(cells)}"
    )


def _quoted(method: str) -> str:
    """A method within a list."""
    return f"“{method}”" if "," in method else method


def _name(method: str) -> str:
    """A method at the beginning of a sentence."""
    name = OPPONENTS.get(method, method)
    return f"{name[0].upper()}{name[1:]}"


def _by_chance(cells: Sequence[Cell]) -> str:
    """How many problems would be ahead if no method differed from another."""
    by_chance = (1 - CONFIDENCE) / 2 * len(cells)
    return (
        f"Each problem is judged by itself, with {len(study('map').seeds)} seeds and a 95 % interval that is not corrected for "
        f"their number. If a method did not differ from another anywhere, it would be ahead on up to {by_chance:.0f} problems "
        "by chance, and behind on as many."
    )


def _counted(cells: Sequence[Cell], method: str, opponent: str) -> str:
    ahead, behind = _found(cells, method, opponent)
    low, high = wilson(ahead, len(cells))
    change = _change(cells, method, opponent)
    share, lost = f"{ahead / len(cells):.0%} [{low:.0%}, {high:.0%}]", len(cells) - change.n
    text = (
        f"{_name(method)} against {OPPONENTS[opponent]}: ahead on {ahead} of {len(cells)} problems ({share}), behind on "
        f"{behind}; the mean change of the task-normalised test loss is {_percent(change)}"
    )
    return (
        f"{text}; {lost} problems with a diverged run are counted, but have no part in the mean."
        if lost
        else f"{text}."
    )


def _percent(change: Estimate) -> str:
    """A mean logarithmic change in per cent, with its 95 % interval over problems.

    Example:
        >>> _percent(Estimate(0.0, 0.1, 9))
        '+0 % [-10, +11], n = 9'
    """
    ends = (change.mean, change.mean - change.half_width, change.mean + change.half_width)
    mean, low, high = (f"{100 * math.expm1(value):+.0f}" for value in ends)
    return f"{mean} % [{low}, {high}], n = {change.n}".replace("-0 ", "+0 ")


def _where(cells: Sequence[Cell], method: str, opponent: str) -> str:
    """The levels of the factors at which a method is most often ahead."""
    shares = {}
    for factor, level_of in FACTORS.items():
        for level in dict.fromkeys(map(level_of, cells)):
            some = [cell for cell in cells if level_of(cell) == level]
            ahead, behind = _found(some, method, opponent)
            shares[factor, level] = (
                (ahead - behind) / len(some),
                f"{factor} {level}: {ahead} ahead, {behind} behind of {len(some)}",
            )
    best, worst = (sorted(shares.values(), key=lambda share: sign * share[0])[0][1] for sign in (-1, 1))
    return f"{_name(method)} against {OPPONENTS[opponent]} does best at {best}; worst at {worst}."


def _rule(method: str, opponent: str, judged: Judged) -> str:
    (hits, number), (low, high) = judged.tested, judged.interval
    base, _ = judged.base
    verdict = "a rule holds up" if judged.holds_up else "no rule holds up; the best one"
    return (
        f"{_name(method)} against {OPPONENTS[opponent]}: {verdict}: “{judged.rule}” is right on "
        f"{hits} of the {number} problems that it was not fitted on ({hits / number:.0%} [{low:.0%}, {high:.0%}]), and "
        f"“{judged.base_answer}” everywhere on {base} ({base / number:.0%})."
    )


def _predictions(cells: Sequence[Cell], rules: Mapping[tuple[str, str], Judged]) -> list[Prediction]:
    def counted(opponent: str) -> str:
        found = [(method, *_found(cells, method, opponent)) for method in METHODS]
        return " ".join(f"{method}: ahead on {ahead}, behind on {behind}." for method, ahead, behind in found)

    equal = [[cell for cell in cells if outcome(cell, method, "equal") == "ahead"] for method in METHODS]
    favoured = [[cell for cell in some if _scale(cell) > 1 or cell["settings"]["optimizer"] == "sgd"] for some in equal]
    such = sum(_scale(cell) > 1 or cell["settings"]["optimizer"] == "sgd" for cell in cells)
    most = [
        f"{method}: {len(some)} of {len(all_)}." for method, some, all_ in zip(METHODS, favoured, equal, strict=True)
    ]
    most.append(f"Of all problems, {such} of {len(cells)} are such.")
    few = [_found(cells, method, "1 / L(0)")[0] / len(cells) for method in METHODS]
    none = [_found(cells, method, "tuned static")[0] for method in METHODS]
    held = [
        rules[method, "equal"].holds_up and rules[method, "equal"].rule.measured == "norm_ratio" for method in METHODS
    ]
    return [
        Prediction("map", "is ahead of equal weights on some of the problems", all(map(len, equal)), counted("equal")),
        Prediction(
            "map",
            "most of them trained by SGD or with scales that differ",
            all(2 * len(some) > len(all_) for some, all_ in zip(favoured, equal, strict=True)),
            " ".join(most),
        ),
        Prediction("map", "ahead of 1 / L(0) on few", max(few) < 0.1, counted("1 / L(0)")),
        Prediction("map", "ahead of tuned static weights on none", not any(none), counted("tuned static")),
        Prediction(
            "map",
            "A rule of thumb about the gradient norms of the first batch holds up against equal weights.",
            all(held) if len(set(held)) == 1 else None,
            " ".join(_rule(method, "equal", rules[method, "equal"]) for method in METHODS),
        ),
    ]


def _picture(cells: Sequence[Cell]) -> str:
    ordered = sorted(cells, key=_place)
    width = len({_place(cell)[2:] for cell in cells})
    panels = {
        f"against {words}": {
            method: [
                [
                    Square(log_change(cell, method, opponent).mean, outcome(cell, method, opponent) != "no difference")
                    for cell in ordered[begin : begin + width]
                ]
                for begin in range(0, len(ordered), width)
            ]
            for method in METHODS
        }
        for opponent, words in OPPONENTS.items()
    }
    return heat_map(
        panels,
        rows=["no task", "small task", "large task"],
        columns={name: [f"{ratio:g}" for ratio in sorted(set(map(_scale, cells)))] for name in OPTIMIZERS.values()},
        axes=("noise on", "ratio of the scales"),
        title="Every problem, for both forms of GradNorm against three opponents",
        notes=[
            "small and large task: the one of smaller and of larger scale",
            "each three columns: equally hard, large harder, small harder",
            f"each four rows: {_levels(cells, 'width')} neurons, with {_levels(cells, 'train_samples')} samples each",
        ],
    )


def _place(cell: Cell) -> tuple[object, ...]:
    """The place of a problem: two parts for its row, then those for its column."""
    settings = cell["settings"]
    order = ["neither", "the one of smaller scale", "the one of larger scale"]
    harder = ["neither", "the one of larger scale", "the one of smaller scale"]
    row = (settings["width"], settings["train_samples"])
    return (
        order.index(_which(cell, "noises")),
        row,
        list(OPTIMIZERS).index(settings["optimizer"]),
        _scale(cell),
        harder.index(_which(cell, "frequencies")),
    )


def _table(cells: Sequence[Cell], pairs: Sequence[tuple[str, str]]) -> str:
    lines = ["| problems | n | " + " | ".join(f"{method} against {OPPONENTS[o]}" for method, o in pairs) + " |"]
    lines.append("|:--|--:|" + "--:|" * len(pairs))
    groups = {"all": list(cells)}
    for factor, level_of in FACTORS.items():
        for level in dict.fromkeys(map(level_of, cells)):
            groups[f"{factor}: {level}"] = [cell for cell in cells if level_of(cell) == level]
    for name, some in groups.items():
        found = (_cell(some, *pair) for pair in pairs)
        lines.append(f"| {name} | {len(some)} | " + " | ".join(found) + " |")
    return "\n".join(lines) + (
        "\n\nProblems on which the method is ahead, without difference, behind; and the mean change of the task-normalised "
        f"test loss. Ahead: smaller by more than {MARGIN:.0%}, and the 95 % interval of the paired logarithmic differences "
        "over the seeds leaves out zero."
    )


def _cell(cells: Sequence[Cell], method: str, opponent: str) -> str:
    ahead, behind = _found(cells, method, opponent)
    change = 100 * math.expm1(_change(cells, method, opponent).mean)
    return f"{ahead} / {len(cells) - ahead - behind} / {behind} ({change:+.0f} %)"


def _for_user(cells: Sequence[Cell], rules: Mapping[tuple[str, str], Judged]) -> str:
    held = [f"{method} against {OPPONENTS[opponent]}" for (method, opponent), rule in rules.items() if rule.holds_up]
    quoted = f"`eq.check` says which side of the rule your network is on, for {listed(held)}. " if held else ""
    if not any(rules[method, "equal"].holds_up for method in METHODS):
        quoted += "No rule tells from a first batch whether GradNorm will be ahead of equal weights, and `eq.check` says that. "
    ahead, behind = _found(cells, "1 / L(0)", "equal")
    simple = f"Try equal weights and 1 / L(0) first: the latter is ahead on {ahead} problems, behind on {behind}. "
    methods = [
        f"{_quoted(method)} is ahead of 1 / L(0) on {_found(cells, method, '1 / L(0)')[0]}" for method in METHODS
    ]
    return f"{simple}{listed(methods)}. {quoted}".strip()


def _levels(cells: Sequence[Cell], setting: str) -> str:
    return listed([str(level) for level in sorted({cell["settings"][setting] for cell in cells})])


def _at_the_end() -> str:
    """How often the best learning rate is the smallest or the largest that was tried."""
    found = []
    for cell in table()["cells"]:
        for label, some in cell["methods"].items():
            rates = [trial["learning_rate"] for trial in table()["trials"][label]]
            best = min(range(len(rates)), key=lambda i: math.inf if some["trials"][i] is None else some["trials"][i])
            found.append(rates[best] in (min(rates), max(rates)))
    return f"The best learning rate is the smallest or the largest tried in {sum(found)} of {len(found):,} searches."


def _converged(cells: Sequence[Cell]) -> str:
    runs = [some for cell in cells for some in cell["methods"].values()]
    number = sum(len(some["test"]) for some in runs)
    rest = sum(some["converged"] for some in runs)
    return f"{'Only ' if 2 * rest < number else ''}{rest:,} of {number:,} final runs had converged."
