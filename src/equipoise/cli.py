"""The command line: ``equipoise compare``, ``equipoise report``, ``equipoise list`` and ``equipoise bench``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from inspect import Parameter, getdoc
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text

    from equipoise.bench._methods import FLOOR
    from equipoise.bench._methods import METHODS as BENCH_METHODS
    from equipoise.bench._record import save as save_costs
    from equipoise.bench._run import measure
    from equipoise.bench._table import to_rich as costs_to_rich
    from equipoise.bench.workloads import workloads as bench_workloads
    from equipoise.lab.problems import PROBLEMS
    from equipoise.lab.record import RunSpec
    from equipoise.lab.results.report import write_report
    from equipoise.lab.results.statistics import group, method_label
    from equipoise.lab.results.table import to_markdown, to_rich
    from equipoise.lab.runs.methods import METHODS, parameters_of, parse_methods
    from equipoise.lab.runs.source import load_problem
    from equipoise.lab.store.compare import ComparisonError, Event
    from equipoise.lab.store.compare import compare as run_comparison
    from equipoise.lab.store.store import Store
except ModuleNotFoundError as error:
    if (error.name or "").startswith("equipoise"):
        raise
    message = f'the command line needs the package {error.name!r}, which is missing: pip install "equipoise[lab]"'
    raise ImportError(message) from None

app = typer.Typer(
    help="Compare methods that balance the losses of a network with several tasks.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_PIPE_WIDTH = 200
"""Columns of a table that does not go to a terminal."""


def main() -> None:
    """Run the command line; the entry point of ``equipoise``."""
    app(prog_name="equipoise")


@app.command()
def compare(
    problems: Annotated[list[str], typer.Argument(metavar="PROBLEM...", help="Problems by name, or Python files.")],
    methods: Annotated[
        str, typer.Option(help="Methods, for instance 'equal,gradnorm(alpha=0.5)'. The others are compared with equal.")
    ] = "equal,gradnorm",
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
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; as many as there are cores if omitted.")
    ] = None,
    device: Annotated[str, typer.Option(help="Accelerator, for instance cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Precision, for instance 32-true or bf16-mixed.")] = "32-true",
) -> None:
    """Run every method on every problem with every seed, print a table per problem and write the report."""
    store = Store(runs)
    with _plain_errors(runs):
        chosen = [load_problem(problem, _read_settings(settings or [])) for problem in problems]
        parsed = parse_methods(methods)
        with _Progress(len(chosen) * len(parsed) * seeds) as progress:
            records = run_comparison(
                chosen,
                parsed,
                range(seeds),
                steps,
                store=store,
                jobs=jobs,
                on_event=progress.show,
                device=device,
                precision=precision,
            )
        console = _console()
        for comparison in group(records):
            console.print(to_rich(comparison))
        path = report or runs / "report.html"
        write_report(records, path)
        typer.echo(f"report: {path}")


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="Folder of the records.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write the tables as Markdown instead, without -o to standard output.")
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Leave the single tasks out of the Markdown.")] = False,
) -> None:
    """Write the report on all records of a folder (RUNS/report.html if -o is omitted)."""
    store = Store(runs)
    with _plain_errors(runs):
        if not runs.is_dir():
            raise ValueError(f"there is no folder {str(runs)!r}")
        records = store.load_all()
        for path, reason in store.corrupt.items():
            typer.echo(f"equipoise: left out a corrupt record: {path}: {reason}", err=True)
        if not records:
            raise ValueError(f"there is no record in {str(runs)!r}")
        if not markdown:
            path = output or runs / "report.html"
            write_report(records, path)
            typer.echo(f"report: {path}")
            return
        tables = "\n".join(f"### {c.spec.problem}\n\n{to_markdown(c, tasks=not summary)}" for c in group(records))
        if output is None:
            typer.echo(tables, nl=False)
        else:
            output.write_text(tables, encoding="utf-8")
            typer.echo(f"tables: {output}")


@app.command("list")
def list_known() -> None:
    """Show the problems and the methods that come with the library, and their settings with the defaults."""
    console = _console()
    console.print("Problems", style="bold")
    console.print(_listing(_described_problems()))
    console.print("\nMethods", style="bold")
    console.print(_listing(_described_methods()))


@app.command()
def bench(
    workloads: Annotated[str | None, typer.Option(help="Workloads, such as 'mlp_3,segnet'; all if omitted.")] = None,
    methods: Annotated[str | None, typer.Option(help="Methods, such as 'plain,gradnorm'; all if omitted.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often every method is timed.")] = 15,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the records.")] = Path("runs/cost"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="PyTorch's threads; its own choice if omitted, 1 under DDP.")
    ] = None,
    limit: Annotated[
        float, typer.Option(min=0.001, help="Seconds per step from which on a method is not measured.")
    ] = 5.0,
) -> None:
    """Measure the cost of balancing: time and memory of a training step, beside a plain one and other packages."""
    failed = False
    with _plain_errors(output, again="the same command measures all workloads anew"):
        if device not in ("cpu", "cuda"):
            raise ValueError(f"--device: wanted cpu or cuda, found {device!r}")
        known = bench_workloads(device)
        names, chosen = _chosen("workload", workloads, known), _chosen("method", methods, BENCH_METHODS)
        for missing in dict.fromkeys(filter(None, (BENCH_METHODS[method].missing for method in chosen))):
            typer.echo(f"equipoise: {missing}; what needs it is left out", err=True)
        for name in names:
            try:
                record = measure(
                    name,
                    known[name],
                    [FLOOR, *chosen],
                    device=device,
                    rounds=rounds,
                    threads=threads,
                    limit=limit,
                    say=lambda line: typer.echo(line, err=True),
                )
            except RuntimeError as error:  # the other workloads are measured all the same
                typer.echo(f"equipoise: {error}", err=True)
                failed = True
                continue
            path = save_costs(record, output)
            _console().print(costs_to_rich(record))
            typer.echo(f"record: {path}")
    if failed:
        raise typer.Exit(1)


class _Progress:
    """The progress of a comparison, on standard error: bars on a terminal, elsewhere a line for each run that ends.

    Args:
        total: Number of runs.
    """

    def __init__(self, total: int) -> None:
        self._console = _console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._all = self._bars.add_task("runs", total=total)
        self._running: dict[str, TaskID] = {}
        self._ended = 0

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        run = _named(event.spec)
        if event.kind == "started" and run not in self._running:
            self._running[run] = self._bars.add_task(run, total=event.spec.steps)
        elif event.kind == "progressed":
            self._bars.update(self._running[run], completed=event.step)
        elif event.kind == "corrupt":
            self._say(f"corrupt record, left as it is and run again: {event.message}")
        elif event.kind in ("reused", "finished", "failed"):
            self._end(run, event)

    def _end(self, run: str, event: Event) -> None:
        self._ended += 1
        if run in self._running:
            self._bars.remove_task(self._running.pop(run))
        self._bars.advance(self._all)
        if event.kind == "failed" or not self._console.is_terminal:
            what = {"reused": "was there already", "failed": f"failed: {event.message}"}.get(event.kind, "finished")
            total = int(self._bars.tasks[0].total or 0)
            self._say(f"[{self._ended}/{total}] {run}: {what}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _named(spec: RunSpec) -> str:
    return f"{spec.problem}, {method_label(spec)}, seed {spec.seed}"


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def _listing(entries: Iterator[tuple[str, str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, line, settings in entries:
        table.add_row(Text(f"  {name}"), Text(line))
        table.add_row("", Text(settings, style="dim"))
    return table


def _described_problems() -> Iterator[tuple[str, str, str]]:
    for name, cls in PROBLEMS.items():
        line = (getdoc(cls) or "").splitlines()[0]
        settings = ", ".join(f"{field.name}={field.default!r}" for field in fields(cls))
        yield name, f"{len(cls().tasks)} tasks. {line}", settings


def _described_methods() -> Iterator[tuple[str, str, str]]:
    for name, (_, line) in METHODS.items():
        settings = ", ".join(map(_described_parameter, parameters_of(name).values()))
        yield name, line, settings or "no settings"


def _described_parameter(parameter: Parameter) -> str:
    return parameter.name if parameter.default is Parameter.empty else f"{parameter.name}={parameter.default!r}"


def _chosen(what: str, words: str | None, known: Collection[str]) -> list[str]:
    """Names out of ``known``, separated by commas; all if there are no words.

    Raises:
        ValueError: One is not known.
    """
    names = list(known) if words is None else [word.strip() for word in words.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; wanted some of {', '.join(known)}")
    return names


def _read_settings(words: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` words by key.

    Raises:
        ValueError: A word has no ``=`` or no key.
    """
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ValueError(f"--set: wanted KEY=VALUE, found {word!r}")
        settings[key] = value
    return settings


@contextmanager
def _plain_errors(runs: Path, again: str = "the same command goes on from there") -> Iterator[None]:
    """Say in one line an error that the user can mend, and which records an interrupt leaves."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"equipoise: stopped. Finished runs are kept in {runs}; {again}.", err=True)
        raise typer.Exit(130) from None
    except ComparisonError as error:
        typer.echo(f"equipoise: {error}", err=True)
        typer.echo(f"Finished runs are kept in {runs}; the same command runs only what is missing.", err=True)
        raise typer.Exit(1) from None
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        typer.echo(f"equipoise: {error}", err=True)
        raise typer.Exit(2) from None
