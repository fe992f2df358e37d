"""``equipoise bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.errors import Traceback, plain_errors
from equipoise.cli.progress import console
from equipoise.cli.words import check_outputs, chosen


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
    trace: Traceback = False,
) -> None:
    """Measure the cost of balancing: time and memory of a training step, beside a plain one and other packages."""
    from equipoise.bench.methods import FLOOR, METHODS
    from equipoise.bench.record import save
    from equipoise.bench.run import measure
    from equipoise.bench.table import to_rich
    from equipoise.bench.workloads import workloads as workloads_of

    failed = False
    with plain_errors(output, again="the same command measures all workloads anew", trace=trace):
        if device not in ("cpu", "cuda"):
            raise ValueError(f"--device: wanted cpu or cuda, found {device!r}")
        check_outputs({"--output": output / "record.json"})
        known = workloads_of(device)
        names, wanted = chosen("workload", workloads, known), chosen("method", methods, METHODS)
        for missing in dict.fromkeys(filter(None, (METHODS[method].missing for method in wanted))):
            typer.echo(f"equipoise: {missing}; methods that need it are left out", err=True)
        for name in names:
            try:
                record = measure(
                    name,
                    known[name],
                    [FLOOR, *wanted],
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
            path = save(record, output)
            console().print(to_rich(record))
            typer.echo(f"record: {path}")
    if failed:
        raise typer.Exit(1)
