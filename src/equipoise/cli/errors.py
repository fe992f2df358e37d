"""Errors that a user can mend, in a line or two."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Traceback = Annotated[bool, typer.Option("--traceback", help="Show the whole traceback of an error.")]


@contextmanager
def plain_errors(
    runs: Path, *, again: str = "the same command goes on from there", trace: bool = False
) -> Iterator[None]:
    """Say in one line an error that the user can mend, and which records an interrupt leaves.

    Args:
        runs: Folder of the records.
        again: The remedy after an interrupt.
        trace: Whether to show the traceback before the line.
    """
    try:
        yield
    except (typer.Exit, BrokenPipeError):  # no errors: the second is a reader, such as head, that has seen enough
        raise
    except KeyboardInterrupt:
        typer.echo(f"equipoise: stopped. Finished runs are kept in {runs}; {again}.", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        from equipoise.lab.errors import user_line
        from equipoise.lab.store.compare import ComparisonError

        kind, place = "", user_line(error)
        if not isinstance(error, (ValueError, OSError, ImportError, RuntimeError)):  # its message alone may say little
            kind, place = f"{type(error).__name__}: ", place or "; --traceback shows where"
        if trace:
            _say("".join(traceback.format_exception(error)))
        if not isinstance(error, ComparisonError):
            _say(f"equipoise: {kind}{error}{place}")
            raise typer.Exit(2) from None
        _say(f"equipoise: {error}")
        typer.echo(f"Finished runs are kept in {runs}; the same command runs only those that are missing.", err=True)
        raise typer.Exit(1) from None


def _say(text: str) -> None:
    """Print lines on standard error; names in them come from files."""
    from equipoise.lab.printable import inert

    typer.echo("\n".join(map(inert, text.split("\n"))), err=True)
