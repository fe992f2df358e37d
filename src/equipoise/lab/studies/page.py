"""The study's part of the HTML report: expectation, summary, search, and quality against its cost."""

from __future__ import annotations

import html
import itertools
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from equipoise.lab.results.report import write_comparisons
from equipoise.lab.studies.run import Result
from equipoise.lab.studies.search import Search
from equipoise.lab.studies.summary import summary
from equipoise.lab.studies.tuning import HEAD, caption, tuning_rows

_ASSETS = Path(__file__).parent / "assets"
_LAYOUT = {
    "template": "none",
    "height": 380,
    "margin": {"l": 58, "r": 12, "t": 6, "b": 42},
    "xaxis": {"title": {"text": "training steps of the search, all trials and seeds"}, "rangemode": "tozero"},
    "yaxis": {"title": {"text": "smallest validation mean L/L(0) so far"}, "tickformat": "~g"},
}


def write_page(results: list[Result], path: Path) -> None:
    """Write the report on a study: one HTML file that opens anywhere and loads nothing.

    Args:
        results: The study's results.
        path: The file.
    """
    study = results[0].study
    environment = Environment(loader=FileSystemLoader(_ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    lead = environment.get_template("study.html").render(
        study=study,
        command=results[0].comparison.command,
        head=HEAD,
        caption=caption(study),
        problems=[
            {
                "title": result.comparison.title,
                "summary": summary(result),
                "rows": list(tuning_rows(result)),
                "cost": Markup(cost_figure(result).to_json()) if "cost" in study.figures else None,
            }
            for result in results
        ],
    )
    write_comparisons([result.comparison for result in results], path, lead=lead)


def cost_figure(result: Result) -> go.Figure:
    """The best validation loss so far against the training steps that the search took so far, a line for each method."""
    figure = go.Figure(layout=_LAYOUT)
    for search in result.searches.values():
        steps, best = spent_and_best(search)
        figure.add_scatter(
            x=steps,
            y=best,
            mode="lines+markers",
            line={"shape": "hv"},
            name=html.escape(search.candidate.label, quote=False),
            hovertemplate="%{fullData.name}<br>after %{x:,d} steps: %{y:.4g}<extra></extra>",
        )
    return figure


def spent_and_best(search: Search) -> tuple[list[int], list[float]]:
    """The steps spent and the best value found after every trial."""
    steps = list(itertools.accumulate(trial.steps for trial in search.trials))
    return steps, list(itertools.accumulate((trial.value for trial in search.trials), min))
