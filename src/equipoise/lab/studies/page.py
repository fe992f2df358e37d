"""The study's part of the HTML report: expectation, summary, search, and quality against its cost."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from equipoise.lab.results.figures import TEMPLATE
from equipoise.lab.results.palette import method_colors
from equipoise.lab.results.report import write_comparisons
from equipoise.lab.studies.run import Result
from equipoise.lab.studies.search import Search
from equipoise.lab.studies.study import Range
from equipoise.lab.studies.summary import summary
from equipoise.lab.studies.tuning import HEAD, caption, tuning_rows

_ASSETS = Path(__file__).parent / "assets"
_LAYOUT = {
    "template": TEMPLATE,
    "showlegend": True,
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    "margin": {"t": 12},
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
                "figures": [(title, Markup(figure.to_json())) for title, figure in _figures(result)],
            }
            for result in results
        ],
    )
    write_comparisons([result.comparison for result in results], path, lead=lead)


def _figures(result: Result) -> Iterator[tuple[str, go.Figure]]:
    """The figures that the study asks for, with their titles."""
    if "cost" in result.study.figures:
        yield "Quality against the cost of the search", cost_figure(result)
    ranges = [name for name, space in result.study.space.items() if isinstance(space, Range)]
    if "trials" in result.study.figures and ranges:
        yield f"Every trial against its {ranges[0]}", trials_figure(result, ranges[0])


def cost_figure(result: Result) -> go.Figure:
    """The best validation loss so far against the training steps that the search took so far, a line for each method.

    A task alone has no mean over tasks, and no line.
    """
    figure = go.Figure(layout=_LAYOUT)
    for label, color in method_colors(result.comparison).items():
        if label not in result.searches:
            continue
        steps, best = spent_and_best(result.searches[label])
        figure.add_scatter(
            x=steps,
            y=best,
            mode="lines+markers",
            line={"shape": "hv", "color": color},
            name=html.escape(label, quote=False),
            hovertemplate="%{fullData.name}<br>after %{x:,d} steps: %{y:.4g}<extra></extra>",
        )
    figure.update_xaxes(title_text="training steps of the search, all trials and seeds", rangemode="tozero")
    figure.update_yaxes(title_text="smallest validation loss so far")
    return figure


def trials_figure(result: Result, setting: str) -> go.Figure:
    """The validation loss of every trial that is sound against one of its settings, by method."""
    figure = go.Figure(layout=_LAYOUT)
    for label, color in method_colors(result.comparison).items():
        if label not in result.searches:
            continue
        sound = [trial for trial in result.searches[label].trials if math.isfinite(trial.value)]
        figure.add_scatter(
            x=[trial.searched[setting] for trial in sound],
            y=[trial.value for trial in sound],
            mode="markers",
            marker={"color": color, "size": 7},
            name=html.escape(label, quote=False),
            hovertemplate=f"%{{fullData.name}}<br>{setting} %{{x:.4g}}: %{{y:.4g}}<extra></extra>",
        )
    space = result.study.space[setting]
    figure.update_xaxes(title_text=setting, type="log" if isinstance(space, Range) and space.log else "linear")
    figure.update_yaxes(title_text="validation loss")
    return figure


def spent_and_best(search: Search) -> tuple[list[int], list[float]]:
    """The steps spent and the best value found after every trial."""
    steps = list(itertools.accumulate(trial.steps for trial in search.trials))
    return steps, list(itertools.accumulate((trial.value for trial in search.trials), min))
