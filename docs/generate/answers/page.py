"""The frame that all answers share: what a page holds, and how it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.format import format_estimate
from equipoise.lab.results.markdown import escape

from .contrasts import Contrast
from .pictures import SIGNS
from .records import study


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
        line: The answer in one line, for the index.
        answer: The answer: sentences with their figures.
        predictions: What was expected, and what came.
        picture: The picture, as SVG.
        alt: The picture in words.
        table: The table, as Markdown, and how it is read.
        for_user: What follows for a user.
        limits: Where the answer ends.
        studies: The studies whose records it rests on.
        more: Further parts of the page by heading, as Markdown.
    """

    title: str
    asked_by: str
    question: str
    line: str
    answer: Sequence[str]
    predictions: Sequence[Prediction]
    picture: str
    alt: str
    table: str
    for_user: str
    limits: str
    studies: Sequence[str]
    more: Mapping[str, str] = field(default_factory=dict)


def written(name: str, page: Page) -> str:
    """A page as Markdown."""
    parts = [
        f"# {page.title}",
        f"**Question** ({page.asked_by}). {page.question}",
        "**Answer.** " + " ".join(map(escape, page.answer)),
        "## Expected beforehand",
        *(_prediction(each) for each in page.predictions),
        "## The picture",
        f"![{page.alt}]({name}.svg)",
        "## The table",
        page.table,
        *(part for heading, text in page.more.items() for part in (f"## {heading}", text)),
        "## For a user",
        page.for_user,
        "## Limits",
        page.limits,
        "## Made again",
        _commands(page.studies),
    ]
    return "\n\n".join(parts) + "\n"


def _prediction(each: Prediction) -> str:
    verdict = {True: "The figures agree.", False: "The figures disagree.", None: "The figures do not decide it."}
    return f"- “{escape(each.words)}” **{verdict[each.agrees]}** {escape(each.figures)}"


def _commands(studies: Sequence[str]) -> str:
    lines = ["```sh"]
    for name in studies:
        lines.append(f"equipoise study studies/{name}.py --runs runs/{name}      # all runs anew")
        lines.append(f"python -m docs.generate.answers keep {name} runs/{name}   # their records in the place of these")
        lines.append(
            f"python -m docs.generate.answers rerun {name}              # one record, drawn at random, run again"
        )
    lines += ["make answers   # this page from the committed records", "```"]
    links = ", ".join(f"[{study(name).title}](tables/{name}.md)" for name in studies if has_tables(name))
    return "\n".join(lines) + (f"\n\nEvery row, and the search of every method: {links}." if links else "")


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
    first = contrasts[0]
    lines = [["method", *problems], [":--", *["--:"] * len(problems)]]
    lines.append([first.reference, *(_reference(first, comparisons[problem]) for problem in problems)])
    for method in methods:
        cells = (by_place.get((method, problem)) for problem in problems)
        lines.append([method, *("" if each is None else cell(each) for each in cells)])
    head, rule, *body = lines
    shown = [_line(map(escape, head)), _line(rule), *(_line(map(escape, line)) for line in body)]
    return "\n".join(shown) + "\n\n" + escape(legend(first))


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
    sign, _ = SIGNS[each.outcome]
    difference = format_estimate(each.difference, compact=True, signed=True)
    if each.measure.unit:
        return f"{difference} {sign}".rstrip()
    return f"{format_estimate(each.cell.value, compact=True)} ({difference}) {sign}".rstrip()


def legend(first: Contrast) -> str:
    """How a table of contrasts is read."""
    measure, other = first.measure, first.reference
    kind = f"{measure.name[0].upper()}{measure.name[1:]}"
    if measure.unit:
        kind += f" against {other} in{measure.unit}; positive is worse"
    else:
        kind += f", mean over seeds; in brackets the paired difference from {other}"
    return (
        f"{kind}. 0.767(32) stands for 0.767 ± 0.032, half of the 95 % t-interval. ✓ better, ✗ worse: p < 0.05 by the paired "
        "t-test after Holm's correction for the whole table, with the same sign at the last step and no task that goes the "
        f"other way. = level: the whole interval lies inside ±{measure.margin:g}{measure.unit}. No mark: not told apart."
    )
