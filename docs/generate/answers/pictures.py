"""The pages' pictures as SVG, the same to the letter each time: changes with intervals, curves, and points.

They bring their own paper, dark where the reader's system is dark, and are as wide as a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from equipoise.lab.results.format import format_estimate
from equipoise.lab.results.palette import METHOD_COLORS, TASK_COLORS

from .contrasts import Contrast, Ends, Outcome

WIDTH = 420
COLORS = tuple(dict.fromkeys((*METHOD_COLORS[1:], *TASK_COLORS)))
"""The colours of series; all can be seen on white and on black."""
SIGNS: dict[Outcome, tuple[str, str]] = {
    "better": ("✓", "#2e9a55"),
    "worse": ("✗", "#d1602a"),
    "level": ("=", "#2f7fc1"),
    "not told apart": ("", "#7c8794"),
}
_STYLE = (
    "text{fill:#1f2328;font:12px system-ui,sans-serif}.quiet{fill:#59616b}.head{font-weight:600}.paper{fill:#fff}"
    ".mean{stroke:#1f2328}.dot{fill:#1f2328}.axis{stroke:#8a9099;fill:none}.grid{stroke:#8a909040;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e6e8eb}.quiet{fill:#a3abb5}.paper{fill:#131416}"
    ".mean{stroke:#e6e8eb}.dot{fill:#e6e8eb}}"
)


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * 1.4:g}" viewBox="0 0 {WIDTH} {_f(height)}" role="img">'
    paper = f'<rect class="paper" width="{WIDTH}" height="{_f(height)}"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", paper, *parts, "</svg>", ""])


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    marks = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{_f(x)}" y="{_f(y)}"{marks}>{escape(text)}</text>'


@dataclass(frozen=True)
class Axis:
    """The numbers along one side of a panel.

    Attributes:
        title: The quantity.
        log: Whether its scale is logarithmic.
        low, high: The ends; None: those of the values.
    """

    title: str
    log: bool = False
    low: float | None = None
    high: float | None = None

    def over(self, values: Sequence[float]) -> Scale:
        """The scale for some values."""
        sound = [value for value in values if math.isfinite(value) and (value > 0 or not self.log)]
        low, high = (min(sound), max(sound)) if sound else (1.0, 2.0)
        low, high = (low if self.low is None else self.low), (high if self.high is None else self.high)
        if self.log:
            spare = (high / low) ** 0.04 if high > low else 1.2
            return Scale(low if self.low is not None else low / spare, high * spare, True)
        spare = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
        return Scale(low if self.low is not None else low - spare, high + spare, False)


@dataclass(frozen=True)
class Scale:
    """A part of the numbers.

    Attributes:
        low: The smallest.
        high: The largest.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    log: bool

    def part(self, value: float) -> float:
        """Where a number lies, from 0 to 1; beyond the ends, at the end."""
        if self.log:
            found = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            found = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, found))

    def ticks(self) -> list[float]:
        """About four round numbers."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for leads in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
                found = [t for e in decades for lead in leads if self.low <= (t := lead * 10.0**e) <= self.high]
                if len(found) <= 6:
                    return found
            return found[:: -(-len(found) // 6)]
        step = 10 ** math.floor(math.log10(self.high - self.low))
        step = next(size * step for size in (0.1, 0.2, 0.5, 1.0, 2.0) if (self.high - self.low) / (size * step) <= 5)
        first = math.ceil(self.low / step)
        return [round(n * step, 12) for n in range(first, math.floor(self.high / step) + 1)]


@dataclass(frozen=True)
class Series:
    """Numbers of one method.

    Attributes:
        label: Its name in the legend; those with the same name have the same colour and stand there once.
        x, y: The numbers.
        kind: A line, a dashed line, or points.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "line"


@dataclass(frozen=True)
class Panel:
    """Series in one system of axes.

    Attributes:
        heading: What is shown.
        series: The series.
        x: The horizontal axis.
        y: The vertical axis.
    """

    heading: str
    series: Sequence[Series]
    x: Axis
    y: Axis


def plot(panels: Sequence[Panel], title: str, note: str = "") -> str:
    """Panels one below the other, with one legend.

    Args:
        panels: The panels.
        title: The picture in words.
        note: A line below the legend.
    """
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    colors = {label: COLORS[number % len(COLORS)] for number, label in enumerate(labels)}
    left, right, tall, top = 52.0, WIDTH - 14.0, 150.0, 4.0
    parts: list[str] = []
    for panel in panels:
        across = panel.x.over([value for series in panel.series for value in series.x])
        up = panel.y.over([value for series in panel.series for value in series.y])
        parts.append(_text(6, top + 14, panel.heading, "head"))
        parts.append(_text(6, top + 31, f"↑ {panel.y.title}", "quiet"))
        top += 40
        parts += _panel(panel.series, colors, across, up, (left, right, top, tall))
        parts.append(_text((left + right) / 2, top + tall + 31, panel.x.title, "quiet", "middle"))
        top += tall + 44
    kinds = {series.label: series.kind for panel in reversed(panels) for series in reversed(panel.series)}
    for number, label in enumerate(labels):
        row, column = divmod(number, 2)
        at, down = 14 + column * (WIDTH - 20) / 2, top + 12 + 17 * row
        parts.append(_mark(at + 9, down - 4, colors[label], kinds[label]))
        parts.append(_text(at + 24, down, label))
    top += 17 * -(-len(labels) // 2) + 12
    return _svg([*parts, _text(14, top, note, "quiet")] if note else parts, top + 8, title)


def _mark(x: float, y: float, color: str, kind: str) -> str:
    if kind == "points":
        return f'<circle cx="{_f(x)}" cy="{_f(y)}" r="3.5" fill="{color}"/>'
    dash = ' stroke-dasharray="5 3"' if kind == "dashed" else ""
    return f'<path d="M{_f(x - 9)} {_f(y)}h18" stroke="{color}" stroke-width="2.5"{dash}/>'


def _panel(
    some: Sequence[Series],
    colors: Mapping[str, str],
    across: Scale,
    up: Scale,
    box: tuple[float, float, float, float],
) -> list[str]:
    left, right, top, tall = box

    def at(x: float, y: float) -> tuple[str, str]:
        return _f(left + across.part(x) * (right - left)), _f(top + tall - up.part(y) * tall)

    parts = [f'<path class="axis" d="M{_f(left)} {_f(top)}v{_f(tall)}H{_f(right)}"/>']
    for tick in across.ticks():
        where, _ = at(tick, up.low)
        parts.append(f'<path class="grid" d="M{where} {_f(top)}v{_f(tall)}"/>')
        parts.append(_text(float(where), top + tall + 15, f"{tick:g}", "quiet", "middle"))
    for tick in up.ticks():
        _, where = at(across.low, tick)
        parts.append(f'<path class="grid" d="M{_f(left)} {where}H{_f(right)}"/>')
        parts.append(_text(left - 5, float(where) + 4, f"{tick:g}", "quiet", "end"))
    for series in some:
        color = colors[series.label]
        sound = [at(a, b) for a, b in zip(series.x, series.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
        if series.kind == "points":
            parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="{color}" fill-opacity=".75"/>' for a, b in sound]
        elif sound:
            dash = ' stroke-dasharray="5 3"' if series.kind == "dashed" else ""
            line = "L".join(f"{a} {b}" for a, b in sound)
            parts.append(f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>')
    return parts


def forest(contrasts: Sequence[Contrast], title: str, names: Mapping[str, str] | None = None) -> str:
    """The difference of every method from the reference with its 95 % interval, problem by problem.

    Args:
        contrasts: The contrasts.
        title: The picture in words.
        names: Shorter names of methods.
    """
    left, right, line, top = 168.0, 318.0, 17.0, 26.0
    middle = (left + right) / 2
    limit = _limit(contrasts)
    parts = [_text(middle - 8, 16, "← better", "quiet", "end"), _text(middle + 8, 16, "worse →", "quiet")]
    for problem in dict.fromkeys(each.problem for each in contrasts):
        parts.append(_text(6, top + 13, problem, "head"))
        top += line + 1
        for each in (one for one in contrasts if one.problem == problem):
            name = (names or {}).get(each.method, each.method)
            parts += _row(each, name, top + 8, (left, right), limit)
            top += line
        top += 6
    scale = Scale(-limit, limit, False)
    frame = []
    for tick in scale.ticks():
        at, kind = left + scale.part(tick) * (right - left), "grid" if tick else "axis"
        frame.append(f'<path class="{kind}" d="M{_f(at)} 24V{_f(top)}"/>')
        frame.append(_text(at, top + 14, f"{tick:g}", "quiet", "middle"))
    measure, reference = contrasts[0].measure, contrasts[0].reference
    legend = (
        f"{measure.name}{measure.unit and ' in' + measure.unit}",
        f"difference from {reference}, 95 % intervals",
        "✓ better, ✗ worse, = level; ▸ goes on",
    )
    parts += [_text(WIDTH / 2, top + 33 + 17 * row, text, "quiet", "middle") for row, text in enumerate(legend)]
    return _svg([*frame, *parts], top + 33 + 17 * len(legend), title)


def _limit(contrasts: Sequence[Contrast]) -> float:
    """The end of the axis: that of the longest interval, unless it would dwarf most of them."""
    found = (max(abs(each.ends.low), abs(each.ends.high)) for each in contrasts)
    ends = sorted(filter(math.isfinite, found)) or [1.0]
    return 1.05 * min(ends[-1], 6 * ends[len(ends) // 2]) or 1.0


def _row(each: Contrast, name: str, y: float, ends: tuple[float, float], limit: float) -> list[str]:
    (left, right), scale = ends, Scale(-limit, limit, False)
    parts = [_text(14, y + 4, name if len(name) <= 25 else f"{name[:24]}…")]
    found, outcome = each.ends, each.outcome
    if outcome == "diverged" or not math.isfinite(found.mean):
        return [*parts, _text(right + 10, y + 4, "diverged", "quiet")]
    sign, color = SIGNS[outcome]

    def at(value: float) -> float:
        return left + scale.part(value) * (right - left)

    if math.isfinite(found.low + found.high):
        if found.low < limit and found.high > -limit:
            line = f"M{_f(at(found.low))} {_f(y)}H{_f(at(found.high))}"
            parts.append(f'<path d="{line}" stroke="{color}" stroke-width="2"/>')
        for end in (found.low, found.high):
            if abs(end) > limit:  # it goes on beyond the axis
                parts.append(f'<path d="M{_f(at(end))} {_f(y)}l{math.copysign(6, -end):g} -4v8z" fill="{color}"/>')
    if abs(found.mean) <= limit:
        parts.append(f'<circle cx="{_f(at(found.mean))}" cy="{_f(y)}" r="4" fill="{color}"/>')
    number = f"{found.mean:+.1f}" if each.measure.unit else format_estimate(each.difference, compact=True, signed=True)
    text = f"{number} {sign}".rstrip()
    return [*parts, _text(right + 10, y + 4, text)]


def strip(contrasts: Sequence[Contrast], means: Mapping[str, Ends], title: str) -> str:
    """The changes of every method, a dot for each problem, with the mean over problems and its interval below.

    Args:
        contrasts: The contrasts of all methods on all problems with the same reference.
        means: The mean change of each method.
        title: The picture in words.
    """
    left, right, line, top = 168.0, 352.0, 30.0, 26.0
    sizes = sorted(abs(each.ends.mean) for each in contrasts if each.outcome != "diverged")
    limit = min(60.0, 1.2 * sizes[int(0.9 * (len(sizes) - 1))])
    scale = Scale(-limit, limit, False)

    def at(value: float) -> float:
        return left + scale.part(value) * (right - left)

    parts = [_text(at(0) - 8, 16, "← better", "quiet", "end"), _text(at(0) + 8, 16, "worse →", "quiet")]
    for method, mean in means.items():
        ours = [each for each in contrasts if each.method == method and each.outcome != "diverged"]
        parts.append(_text(6, top + 17, method))
        for each in ours:
            value, (_, color) = each.ends.mean, SIGNS[each.outcome]
            parts.append(f'<circle cx="{_f(at(value))}" cy="{_f(top + 8)}" r="3.5" fill="{color}" fill-opacity=".8"/>')
        ends = f"M{_f(at(mean.low))} {_f(top + 19)}H{_f(at(mean.high))}"
        parts.append(f'<path class="mean" d="{ends}" stroke-width="2"/>')
        parts.append(f'<path class="dot" d="M{_f(at(mean.mean))} {_f(top + 14.5)}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"/>')
        parts.append(_text(right + 8, top + 17, f"{mean.mean:+.1f} %"))
        top += line
    frame = []
    for tick in scale.ticks():
        kind = "grid" if tick else "axis"
        frame.append(f'<path class="{kind}" d="M{_f(at(tick))} 24V{_f(top)}"/>')
        frame.append(_text(at(tick), top + 14, f"{tick:g}", "quiet", "middle"))
    legend = (
        f"change against {contrasts[0].reference} in %, beyond ±{limit:.0f} at the edge",
        "dots: problems, green better, orange worse, blue level, grey open",
        "diamond: mean over problems, 95 % interval",
    )
    parts += [_text(WIDTH / 2, top + 33 + 17 * row, text, "quiet", "middle") for row, text in enumerate(legend)]
    return _svg([*frame, *parts], top + 33 + 17 * len(legend), title)
