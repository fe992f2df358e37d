"""The frame that all answers share: what a page holds, and how it is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.format import format_estimate
from equipoise.lab.results.markdown import escape

from .contrasts import SIGNS, Contrast, interval, listed, of_search
from .records import has_figures, study

_ELSEWHERE = (
    "This page has no study of its own. The expectation of each study is compared with its figures on the page for which "
    "the study was run."
)
_RULE = (
    "The figures agree if the 95 % interval lies wholly on the expected side (for “level” inside the margin), disagree if it "
    "lies wholly outside, and else do not decide it. Where methods were expected not to be told apart, or to have the smallest "
    "or the largest losses, the corrected tests decide."
)
CORRECTION = (
    "Holm's correction over all methods of the study on the problem (of two, the study's first is the reference)"
)
"""The correction in words: a contrast has the same verdict on all pages."""


@dataclass(frozen=True)
class Prediction:
    """A part of what was expected beforehand, held against the figures.

    Attributes:
        study: The name of the study that says so.
        words: The part of its expectation, to the letter.
        agrees: Whether the figures agree; None if they decide nothing.
        figures: The figures, in sentences.
    """

    study: str
    words: str
    agrees: bool | None
    figures: str

    def __post_init__(self) -> None:
        if self.words not in study(self.study).expectation:
            raise ValueError(f"studies/{self.study}.py does not say {self.words!r}")


@dataclass(frozen=True)
class Page:
    """An answer.

    Attributes:
        title: The title.
        asked_by: Who asked.
        question: The question in one line.
        line: The answer, here and in the index: a sentence that answers the question, then one with its figures.
        answer: Further sentences with their figures.
        predictions: What was expected, and what came; None where the records for it are not there.
        picture: The picture, as SVG.
        alt: The picture in words.
        table: The table, as Markdown, and how it is read.
        for_user: What follows for a user.
        limits: Where the answer ends. The page of all studies says what each cost, and what a larger machine would add.
        studies: The studies that it rests on; those without records are named.
        more: Further parts of the page by heading, as Markdown.
        further: Further pictures that these show, as SVG, by the name of their file.
    """

    title: str
    asked_by: str
    question: str
    line: str
    answer: Sequence[str]
    predictions: Sequence[Prediction | None]
    picture: str
    alt: str
    table: str
    for_user: str
    limits: str
    studies: Sequence[str]
    more: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, str] = field(default_factory=dict)


def written(name: str, page: Page) -> str:
    """A page as Markdown."""
    parts = [
        f"# {page.title}",
        f"**Question** ({page.asked_by}). {page.question}",
        f"**Answer.** {prose(page.line)}",
        bullets(page.answer),
        "## The picture",
        f"![{page.alt}]({name}.svg)",
        "## The table",
        page.table,
        *(part for heading, text in page.more.items() for part in (f"## {heading}", text)),
        "## For a user",
        page.for_user,
        "## Limits",
        page.limits,
        _rests_on([name for name in page.studies if has_figures(name)]),
        *_waiting([name for name in page.studies if not has_figures(name)]),
        "## Expected beforehand",
        *(_folded(expected) if (expected := [each for each in page.predictions if each]) else [_ELSEWHERE]),
    ]
    return "\n\n".join(parts) + "\n"


def bullets(sentences: Iterable[str]) -> str:
    """Sentences as a list."""
    return "\n".join(f"- {prose(each)}" for each in sentences)


def prose(text: str) -> str:
    """A sentence as Markdown: escaped, except for the backticks around code."""
    return re.sub(r"\\`([^`\\]+)\\`", r"`\1`", escape(text))


def _waiting(studies: Sequence[str]) -> list[str]:
    names = listed([f"`studies/{name}.py`" for name in studies])
    return [f"Declared, and not yet run: {names}."] if studies else []


def _rests_on(studies: Sequence[str]) -> str:
    names = listed([f"[`{name}`](studies.md#{name})" for name in studies])
    return f"Records: {names}. Behind each name are the budget, all rows, and the commands that make the records again."


def _folded(expected: Sequence[Prediction]) -> list[str]:
    number = {agrees: sum(each.agrees is agrees for each in expected) for agrees in (True, False, None)}
    return [
        f"Written into the studies' files before their runs. The figures agree with {number[True]} of the "
        f"{len(expected)} parts, disagree with {number[False]} and leave {number[None]} open.",
        "<details><summary>Every part, with its figures</summary>",
        _RULE,
        *map(_prediction, expected),
        "</details>",
    ]


def _prediction(each: Prediction) -> str:
    verdict = {True: "The figures agree.", False: "The figures disagree.", None: "The figures do not decide it."}
    return f"- `{each.study}`: “{escape(each.words)}” **{verdict[each.agrees]}** {escape(each.figures)}"


def has_tables(name: str) -> bool:
    """Whether a study has a page with all its tables: one with few problems."""
    return len(study(name).problems) <= 12


def table(contrasts: Sequence[Contrast], comparisons: Mapping[str, Comparison]) -> str:
    """A row for each method and a column for each problem: mean, paired difference, and a mark that a corrected test earns.

    Args:
        contrasts: The contrasts of all methods with the same reference.
        comparisons: The runs by the problem's name.
    """
    problems = list(dict.fromkeys(each.problem for each in contrasts))
    methods = list(dict.fromkeys(each.method for each in contrasts))
    by_place = {(each.method, each.problem): each for each in contrasts}
    first = {problem: next(each for each in contrasts if each.problem == problem) for problem in problems}
    lines = [[contrasts[0].reference, *(_reference(each, comparisons[name]) for name, each in first.items())]]
    for method in methods:
        cells = (by_place.get((method, problem)) for problem in problems)
        lines.append([method, *("" if each is None else cell(each) for each in cells)])
    heads = ["method", *(_head(each) for each in first.values())]
    shown = [_line(map(escape, heads)), _line([":--", *["--:"] * len(problems)])]
    shown += [_line(map(escape, line)) for line in lines]
    places = {each.problem: each.problem.removesuffix(f", {each.measure.name}") for each in contrasts}
    has_static = "tuned static" in (*methods, contrasts[0].reference)
    search = of_search({name: comparisons[problem] for problem, name in places.items()}) if has_static else ""
    return "\n".join(shown) + "\n\n" + escape(f"{legend(contrasts)} {search}".rstrip())


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _reference(first: Contrast, comparison: Comparison) -> str:
    """The cell of the reference: its mean, or nothing where the others' values are differences from it."""
    if first.measure.unit:
        return "0"
    return format_estimate(first.measure.cell(comparison, first.reference, first.reference).value, compact=True)


def cell(each: Contrast) -> str:
    """The mean of a method, its paired difference, and its mark."""
    if each.outcome == "diverged":
        return "diverged"
    sign = SIGNS[each.outcome][0] + ("‡" if each.hides else "")
    if each.measure.unit:
        return f"{interval(each.ends)} {sign}".rstrip()
    difference = format_estimate(each.difference, compact=True, signed=True)
    return f"{format_estimate(each.cell.value, compact=True)} ({difference}) {sign}".rstrip()


def _head(each: Contrast) -> str:
    return f"{each.problem} {'↑' if each.measure.higher_is_better else '↓'}"


def legend(contrasts: Sequence[Contrast]) -> str:
    """How a table of contrasts is read."""
    measures = list({each.measure.name: each.measure for each in contrasts}.values())
    reference, first = contrasts[0].reference, measures[0]
    kind = listed([measure.name for measure in measures])
    if first.unit:
        kind += f" against {reference} in{first.unit} with its 95 % interval; positive is worse"
    else:
        kind += f", mean over seeds; in brackets the paired difference from {reference}. 0.767(32) stands for 0.767 ± 0.032, "
        kind += "half of the 95 % t-interval"
    margins = listed(
        [f"±{m.margin:g}{(m.change or m).unit}" + (f" ({m.name})" if len(measures) > 1 else "") for m in measures]
    )
    return (
        f"{kind[0].upper()}{kind[1:]}. ✓ better, ✗ worse: p < 0.05 by the paired t-test after {CORRECTION}, with the same sign "
        f"at the last step; ‡ a task goes the other way, or one task decides the mean. = level: the whole interval lies inside "
        f"{margins}. No mark: not told apart."
    )
