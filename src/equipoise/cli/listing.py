"""``equipoise list``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from inspect import Parameter, getdoc

from rich.table import Table
from rich.text import Text

from equipoise.cli.progress import console


def list_known() -> None:
    """Show the problems and the methods that come with the library, and their settings with the defaults."""
    out = console()
    out.print("Problems", style="bold")
    out.print(_listing(_described_problems()))
    out.print("\nMethods", style="bold")
    out.print(_listing(_described_methods()))


def _listing(entries: Iterator[tuple[str, str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, line, settings in entries:
        table.add_row(Text(f"  {name}"), Text(line))
        table.add_row("", Text(settings, style="dim"))
    return table


def _described_problems() -> Iterator[tuple[str, str, str]]:
    from equipoise.lab.problems import PROBLEMS

    for name, cls in PROBLEMS.items():
        line = (getdoc(cls) or "").splitlines()[0]
        settings = ", ".join(f"{field.name}={field.default!r}" for field in fields(cls))
        count = "" if cls.tasks_from_data else f"{len(cls().tasks)} tasks. "
        yield name, count + line, settings


def _described_methods() -> Iterator[tuple[str, str, str]]:
    from equipoise.lab.runs.methods import METHODS, parameters_of

    for name, (_, line) in METHODS.items():
        settings = ", ".join(map(_described_parameter, parameters_of(name).values()))
        yield name, line, settings or "no settings"


def _described_parameter(parameter: Parameter) -> str:
    return parameter.name if parameter.default is Parameter.empty else f"{parameter.name}={parameter.default!r}"
