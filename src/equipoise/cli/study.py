"""``equipoise study``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.compare import Cluster
from equipoise.cli.errors import Traceback, plain_errors
from equipoise.cli.progress import Progress, console
from equipoise.cli.words import check_outputs


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The Python file that declares the study.")],
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the records and of the report; runs/NAME of the file if omitted.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; as many as there are cores if omitted.")
    ] = None,
    cluster: Cluster = None,
    trace: Traceback = False,
) -> None:
    """Carry out a study: tune every method with equal effort, compare them on other seeds, and write the report.

    Runs that have a record are not run again, so that an interrupted study goes on where it was.
    """
    from equipoise.lab.files import write_whole
    from equipoise.lab.results.table import to_rich as table_of
    from equipoise.lab.store.store import Store
    from equipoise.lab.studies.page import write_page
    from equipoise.lab.studies.run import number_of_runs, run_study
    from equipoise.lab.studies.source import load_study
    from equipoise.lab.studies.summary import summary
    from equipoise.lab.studies.tuning import to_document, to_rich

    folder = runs or Path("runs") / file.stem
    with plain_errors(folder, trace=trace):
        for name in ("report.html", "report.md"):
            check_outputs({"--runs": folder / name})
        declared = load_study(file)
        number = number_of_runs(declared)
        steps = [problem.steps if declared.steps is None else declared.steps for problem in declared.problems]
        with Progress(number, number * sum(steps) // len(steps)) as progress:
            found = run_study(declared, store=Store(folder), jobs=jobs, cluster=cluster, on_event=progress.show)
        command = shlex.join(["equipoise", "study", file.name])
        results = [replace(result, comparison=replace(result.comparison, command=command)) for result in found]
        write_page(results, folder / "report.html")
        write_whole(folder / "report.md", to_document(results))
        out = console()
        out.print(f"{declared.title}\nExpected beforehand: {declared.expectation}", markup=False)
        for result in results:
            out.print(to_rich(result), table_of(result.comparison, out.width))
            out.print(summary(result), markup=False)
        typer.echo(f"report: {folder / 'report.html'}, {folder / 'report.md'}")
