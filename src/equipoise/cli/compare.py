"""``equipoise compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipoise.cli.errors import Traceback, plain_errors
from equipoise.cli.progress import Progress, console
from equipoise.cli.words import check_outputs, read_settings

if TYPE_CHECKING:
    from equipoise.lab.record import Record
    from equipoise.lab.results.comparison import Comparison

Reference = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD", help="The method that the others are compared with; equal, or the first, if omitted."
    ),
]
Csv = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the numbers of the tables to a CSV file.")]

Cluster = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786, whose workers do the runs."),
]


def compare(
    problems: Annotated[list[str], typer.Argument(metavar="PROBLEM...", help="Problems by name, or Python files.")],
    methods: Annotated[str, typer.Option(help="Methods, for instance 'equal,gradnorm(alpha=0.5)'.")] = "equal,gradnorm",
    reference: Reference = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, counted from 0, the same for every method.")] = 5,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; the problem's own number if omitted.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the problems; repeatable.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the records; runs that have one are not run again.")] = Path(
        "runs"
    ),
    report: Annotated[Path | None, typer.Option(help="The HTML report; RUNS/report.html if omitted.")] = None,
    csv: Csv = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; as many as there are cores if omitted.")
    ] = None,
    cluster: Cluster = None,
    device: Annotated[str, typer.Option(help="Accelerator, for instance cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Precision, for instance 32-true or bf16-mixed.")] = "32-true",
    trace: Traceback = False,
) -> None:
    """Run every method on every problem with every seed, print a table per problem and write the report.

    The exit status is 1 if a run failed or diverged.
    """
    from equipoise.lab.runs.methods import parse_methods
    from equipoise.lab.runs.source import load_problem
    from equipoise.lab.store.compare import compare as run_comparison
    from equipoise.lab.store.store import Store

    with plain_errors(runs, trace=trace):
        page = report or runs / "report.html"
        check_outputs({"--report" if report else "--runs": page, "--csv": csv})
        chosen = [load_problem(problem, read_settings(settings or [])) for problem in problems]
        parsed = parse_methods(methods)
        # Single tasks are the base of delta_m; they are compared with each other only where there is nothing else.
        compared = [method for method in parsed if method.name != "single_task"] or parsed
        if reference is not None and reference not in [name for one in compared for name in (one.name, str(one))]:
            raise ValueError(f"--reference: wanted one of {', '.join(map(str, compared))}; found {reference!r}")
        total = sum(problem.steps if steps is None else steps for problem in chosen) * len(parsed) * seeds
        with Progress(len(chosen) * len(parsed) * seeds, total) as progress:
            records = run_comparison(
                chosen,
                parsed,
                range(seeds),
                steps,
                store=Store(runs),
                jobs=jobs,
                cluster=cluster,
                on_event=progress.show,
                device=device,
                precision=precision,
            )
        _show(records, reference, page, csv)


def _show(records: Sequence[Record], reference: str | None, report: Path, csv: Path | None) -> None:
    """Write the report, print the tables, write the CSV, and end with exit status 1 if a run diverged."""
    from equipoise.lab.printable import inert
    from equipoise.lab.results.comparison import group, method_label
    from equipoise.lab.results.report import write_report
    from equipoise.lab.results.selection import divergence
    from equipoise.lab.results.table import to_rich

    out = console()
    comparisons = group(records, reference)
    write_report(records, report, reference)
    for comparison in comparisons:
        out.print(to_rich(comparison, out.width))
    typer.echo(f"report: {report}")
    write_csv(comparisons, csv)
    diverged = [(record.spec, why) for record in records if (why := divergence(record))]
    for spec, why in diverged:
        named = inert(f"{spec.problem}, {method_label(spec)}, seed {spec.seed}")
        typer.echo(f"equipoise: {named}: diverged; {why}", err=True)
    if diverged:
        raise typer.Exit(1)


def write_csv(comparisons: Sequence[Comparison], path: Path | None) -> None:
    """Write the numbers of the tables, if a file is named."""
    from equipoise.lab.files import write_whole
    from equipoise.lab.results.csv import to_csv

    if path is not None:
        write_whole(path, to_csv(comparisons))
        typer.echo(f"numbers: {path}")
