"""Changes against a reference as pictures: problem by problem with intervals, or all problems of a method in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from equipoise.lab.results.forest import Line, draw
from equipoise.lab.results.format import format_estimate
from equipoise.lab.results.svg import svg

from ..pictures import WIDTH, Scale, digits, text_at
from .contrasts import SIGNS, Contrast, Ends


def forest(contrasts: Sequence[Contrast], title: str) -> str:
    """The difference of every method from the reference with its 95 % interval, problem by problem.

    Args:
        contrasts: The contrasts.
        title: The picture in words.
    """
    measure, reference = contrasts[0].measure, contrasts[0].reference
    blocks: dict[str, list[Line]] = {}
    for each in contrasts:
        blocks.setdefault(each.problem, []).append(_line(each))
    legend = [
        f"{measure.name}{measure.unit and ' in' + measure.unit}",
        f"difference from {reference}, 95 % intervals",
        "✓ better, ✗ worse, = level, no mark: not told apart",
    ]
    if any(each.hides for each in contrasts):
        legend.append("‡ a task goes the other way, or one task decides the mean")
    return draw(blocks, limit=_limit(contrasts), title=title, legend=legend, alone=True)


def _limit(contrasts: Sequence[Contrast]) -> float:
    """The end of the axis: that of the longest interval, unless it would dwarf most of them."""
    found = (max(abs(each.ends.low), abs(each.ends.high)) for each in contrasts)
    ends = sorted(filter(math.isfinite, found)) or [1.0]
    return 1.05 * min(ends[-1], 6 * ends[len(ends) // 2]) or 1.0


def _line(each: Contrast) -> Line:
    found = each.ends
    if each.outcome == "diverged" or not math.isfinite(found.mean):
        return Line(each.method, "", math.nan, math.nan, math.nan, "diverged")
    sign, color = SIGNS[each.outcome]
    sign += "‡" if each.hides else ""
    number = f"{found.mean:+.1f}" if each.measure.unit else format_estimate(each.difference, compact=True, signed=True)
    return Line(each.method, color, found.low, found.mean, found.high, f"{number} {sign}".rstrip())


def strip(contrasts: Sequence[Contrast], means: Mapping[str, Ends], title: str) -> str:
    """The changes of every method, a dot for each problem, with the mean over problems and its interval below.

    Args:
        contrasts: The contrasts of all methods on all problems with the same reference.
        means: The mean change of each method.
        title: The picture in words.
    """
    left, right, line, top = 164.0, 312.0, 34.0, 26.0
    sizes = sorted(abs(each.ends.mean) for each in contrasts if each.outcome != "diverged")
    limit = min(60.0, 1.2 * sizes[int(0.9 * (len(sizes) - 1))])
    scale = Scale(-limit, limit, False)

    def at(value: float) -> float:
        return left + scale.part(value) * (right - left)

    parts = [text_at(at(0) - 8, 16, "← better", "quiet", "end"), text_at(at(0) + 8, 16, "worse →", "quiet")]
    for method, mean in means.items():
        ours = [each for each in contrasts if each.method == method and each.outcome != "diverged"]
        parts.append(text_at(6, top + 17, method))
        beyond = []
        for each in ours:
            value, (_, color) = each.ends.mean, SIGNS[each.outcome]
            parts.append(
                f'<circle cx="{digits(at(value))}" cy="{digits(top + 8)}" r="3.5" fill="{color}" fill-opacity=".8"/>'
            )
            if abs(value) > limit:
                beyond.append(f"{'▸' if value > 0 else '◂'} {value:+.0f}")
        parts.append(text_at(right + 8, top + 12, ", ".join(beyond), "quiet"))
        ends = f"M{digits(at(mean.low))} {digits(top + 19)}H{digits(at(mean.high))}"
        parts.append(f'<path class="mean" d="{ends}" stroke-width="2"/>')
        parts.append(
            f'<path class="dot" d="M{digits(at(mean.mean))} {digits(top + 14.5)}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"/>'
        )
        parts.append(text_at(right + 8, top + 24, f"{mean.mean:+.1f} %"))
        top += line
    frame = []
    for tick in scale.ticks():
        kind = "grid" if tick else "axis"
        frame.append(f'<path class="{kind}" d="M{digits(at(tick))} 24V{digits(top)}"/>')
        frame.append(text_at(at(tick), top + 14, f"{tick:g}", "quiet", "middle"))
    legend = (
        f"change against {contrasts[0].reference} in %; ◂ ▸ beyond the axis",
        "dots: problems; green better, orange worse,",
        "blue level, grey not told apart",
        "diamond: mean over those that all methods have, 95 % interval",
    )
    parts += [text_at(WIDTH / 2, top + 33 + 17 * row, text, "quiet", "middle") for row, text in enumerate(legend)]
    return svg([*frame, *parts], WIDTH, top + 33 + 17 * len(legend), title)
