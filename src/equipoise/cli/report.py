"""``equipoise report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from equipoise.cli.compare import Csv, Reference, write_csv
from equipoise.cli.errors import Traceback, plain_errors
from equipoise.cli.words import check_outputs

if TYPE_CHECKING:
    from equipoise.lab.record import Record
    from equipoise.lab.results.comparison import Comparison


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of the records.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    reference: Reference = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write the tables as Markdown instead, without -o to standard output.")
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Leave the single tasks out of the Markdown.")] = False,
    csv: Csv = None,
    figure: Annotated[
        Literal["forest"] | None, typer.Option(help="Write one figure as SVG instead, without -o to standard output.")
    ] = None,
    trace: Traceback = False,
) -> None:
    """Write the report on all records of some folders (report.html in the first of them if -o is omitted)."""
    from equipoise.lab.printable import inert
    from equipoise.lab.results.comparison import group, without_reference
    from equipoise.lab.results.forest import to_svg
    from equipoise.lab.results.markdown import to_document
    from equipoise.lab.results.report import write_report

    with plain_errors(runs[0], trace=trace):
        if markdown and figure:
            raise ValueError("--figure, --markdown: wanted one of them, found both")
        if summary and not markdown:
            raise ValueError("--summary: wanted --markdown beside it, found none")
        suffix = "" if output is None else output.suffix.lower()
        option = {".md": "--markdown", ".svg": "--figure", ".csv": "--csv"}.get(suffix)
        if option and not {"--markdown": markdown, "--figure": figure}.get(option):
            raise ValueError(f"--output: wanted {option} for a file that ends in {suffix}, found {str(output)!r}")
        for folder in runs:
            if not folder.is_dir():
                raise ValueError(f"there is no folder {str(folder)!r}")
        page = None if markdown or figure else runs[0] / "report.html"
        check_outputs({"--output": output or page, "--csv": csv})
        records = _records(runs)
        comparisons = group(records, reference)
        for each in without_reference(comparisons, reference):
            typer.echo(
                inert(f"equipoise: {each.title}: no run of {reference}; compared with {each.reference}"), err=True
            )
        write_csv(comparisons, csv)
        if figure:
            _write(output, to_svg(_only(comparisons), alone=True), figure)
        elif not markdown:
            path = output or runs[0] / "report.html"
            write_report(records, path, reference)
            typer.echo(f"report: {path}")
        else:
            _write(output, to_document(comparisons, tasks=not summary), "tables")


def _write(path: Path | None, text: str, what: str) -> None:
    """Write to a file, or to standard output where none is named."""
    from equipoise.lab.files import write_whole

    if path is None:
        typer.echo(text, nl=False)
    else:
        write_whole(path, text)
        typer.echo(f"{what}: {path}")


def _only(comparisons: Sequence[Comparison]) -> Comparison:
    """The one comparison that a figure shows.

    Raises:
        ValueError: There are several of current code.
    """
    current = [comparison for comparison in comparisons if not comparison.older]
    if len(current) != 1:
        titles = "; ".join(comparison.title for comparison in current)
        raise ValueError(f"--figure: wanted records of one comparison, found {len(current)}: {titles}")
    return current[0]


def _records(folders: Sequence[Path]) -> list[Record]:
    """Every sound record of the folders, one of each run.

    Raises:
        ValueError: None holds a record.
    """
    from equipoise.lab.printable import inert
    from equipoise.lab.store.codec import run_key
    from equipoise.lab.store.store import Store

    records: dict[str, Record] = {}
    for folder in folders:
        store = Store(folder)
        for record in store.load_all():
            records.setdefault(run_key(record.spec), record)
        for path, reason in store.corrupt.items():
            typer.echo(inert(f"equipoise: left out a corrupt record: {path}: {reason}"), err=True)
    if not records:
        raise ValueError(f"there is no record in {', '.join(repr(str(folder)) for folder in folders)}")
    return list(records.values())
