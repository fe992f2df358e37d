"""The command line: ``equipoise compare``, ``study``, ``report``, ``list`` and ``bench``.

A command imports its requirements when it runs, so that ``--help`` waits for nothing.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

try:
    import rich.progress  # noqa: F401  # asked for here, so that it is missing before a run rather than after
    import typer

    from equipoise.cli.bench import bench
    from equipoise.cli.compare import compare
    from equipoise.cli.listing import list_known
    from equipoise.cli.report import report
    from equipoise.cli.study import study
except ModuleNotFoundError as error:
    if (error.name or "").startswith("equipoise"):
        raise
    message = f'the command line needs the package {error.name!r}, which is missing: pip install "equipoise[lab]"'
    raise ImportError(message) from None

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(compare)
app.command()(study)
app.command()(report)
app.command("list")(list_known)
app.command()(bench)


def main() -> None:
    """Run the command line; the entry point of ``equipoise``."""
    if isinstance(sys.stdout, TextIOWrapper):  # where an encoding lacks a sign, as standard error does
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="equipoise")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"equipoise {version('equipoise')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and end.")
    ] = False,
) -> None:
    """Compare methods that balance the losses of a network with several tasks."""
