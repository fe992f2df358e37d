"""The table of the search: trials, steps, best settings, and whether they lie at an edge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from equipoise.lab.results.markdown import escape, to_markdown
from equipoise.lab.studies.run import Result
from equipoise.lab.studies.search import Search
from equipoise.lab.studies.study import Study
from equipoise.lab.studies.summary import summary

HEAD = ("method", "trials", "steps of the search", "best settings", "validation loss", "at the edge")


def tuning_rows(result: Result) -> Iterator[tuple[str, ...]]:
    """A row for every method, below `HEAD`."""
    for label, search in result.searches.items():
        trials = str(len(search.trials))
        if not search.is_searched:
            trials = f"{trials} (nothing to search)"
        elif len(search.trials) != result.study.trials:
            trials = f"{trials} (others {result.study.trials})"
        best = search.best
        edge = ", ".join(best.at_edge) or "no"
        yield label, trials, f"{result.steps_spent(label):,}", _settings(search), f"{best.value:.4g}", edge
    for label, before in result.source.items():
        yield label, "none of its own", f"{result.steps_spent(label):,}", f"those of {before}, its mean weights", "", ""


def caption(study: Study) -> str:
    """How the table of the search is read."""
    seeds = ", ".join(map(str, study.tuning_seeds))
    return (
        "Validation loss: task-normalised, mean L/L(0), or the error by which the problem is judged; the smallest of a run, a "
        f"mean over the tuning seeds {seeds}. At the "
        "edge: the best value lies in the outer tenth of its range or is the first or last of its list, so that a wider "
        "search could find a better one."
    )


def to_rich(result: Result) -> Table:
    """The table for a terminal."""
    table = Table(
        title=Text(f"{result.comparison.title}: search"), caption=Text(caption(result.study)), caption_justify="left"
    )
    for name in HEAD:
        table.add_column(name, justify="right" if name in HEAD[1:3] or name == HEAD[4] else "left", overflow="fold")
    for row in tuning_rows(result):
        table.add_row(*map(Text, row))
    return table


def to_document(results: list[Result]) -> str:
    """The whole study as Markdown."""
    study = results[0].study
    parts = [
        f"# {escape(study.title)}",
        "",
        f"Expected beforehand: {escape(study.expectation)}",
        "",
    ]
    for result in results:
        lines = [HEAD, *tuning_rows(result)]
        table = [f"| {' | '.join(map(escape, line))} |" for line in lines]
        parts += [f"## {escape(result.comparison.title)}", "", escape(summary(result)), ""]
        parts += [table[0], "|" + ":--|" * len(HEAD), *table[1:], "", escape(caption(study)), ""]
        parts += [to_markdown(result.comparison), ""]
    return "\n".join(parts)


def _settings(search: Search) -> str:
    searched: Mapping[str, Any] = search.best.searched
    return ", ".join(f"{name} {_value(value)}" for name, value in searched.items()) or "none"


def _value(value: Any) -> str:
    return "(" + ", ".join(map(_value, value)) + ")" if isinstance(value, tuple) else f"{value}"
