"""The progress of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from equipoise.lab.printable import inert
from equipoise.lab.store.codec import run_key

if TYPE_CHECKING:
    from equipoise.lab.record import RunSpec
    from equipoise.lab.store.compare import Event

_PIPE_WIDTH = 200
"""Columns of a table that does not go to a terminal."""


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for a table where there is none."""
    found = Console(stderr=stderr, highlight=False)
    if not found.is_terminal:
        found.width = _PIPE_WIDTH
    return found


class Progress:
    """The progress of a comparison, on standard error: bars on a terminal, elsewhere a line for each run that ends.

    The time left follows from the steps that are still to be done.

    Args:
        runs: Number of runs.
        steps: Number of steps of all runs together.
    """

    def __init__(self, runs: int, steps: int) -> None:
        self._console = console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[done]}", markup=False),
            TimeRemainingColumn(),
        )
        terminal = self._console.is_terminal
        self._bars = Bars(
            *columns, console=self._console, transient=True, disable=not terminal, speed_estimate_period=300
        )
        self._runs, self._ended, self._left = runs, 0, steps
        self._all = self._bars.add_task("all runs", total=steps, done=f"0/{runs}")
        self._running: dict[str, TaskID] = {}
        self._steps: dict[str, int] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        run = run_key(event.spec)
        if event.kind == "started" and run not in self._running:
            self._running[run] = self._bars.add_task(_named(event.spec), total=event.spec.steps, done="")
            self._steps[run] = 0
        elif event.kind == "progressed":
            self._advance(run, event.step)
        elif event.kind == "corrupt":
            self._say(f"corrupt record, left as it is and run again: {event.message}")
        elif event.kind in ("reused", "finished", "failed"):
            self._end(run, event)

    def _advance(self, run: str, step: int) -> None:
        self._bars.update(self._running[run], completed=step, done=f"step {step}")
        self._bars.advance(self._all, step - self._steps[run])
        self._steps[run] = step

    def _end(self, run: str, event: Event) -> None:
        self._ended += 1
        # Steps that are never done, of a run that was there or that failed, are no part of what is left.
        self._left -= event.spec.steps - self._steps.pop(run, 0)
        if run in self._running:
            self._bars.remove_task(self._running.pop(run))
        self._bars.update(self._all, total=self._left, done=f"{self._ended}/{self._runs}")
        if event.kind == "failed" or not self._console.is_terminal:
            what = {"reused": "was there already", "failed": f"failed: {event.message}"}.get(event.kind, "finished")
            self._say(f"[{self._ended}/{self._runs}] {_named(event.spec)}: {what}")

    def _say(self, line: str) -> None:
        self._console.print("\n".join(map(inert, line.split("\n"))), markup=False, soft_wrap=True)


def _named(spec: RunSpec) -> str:
    from equipoise.lab.results.comparison import method_label

    return inert(f"{spec.problem}, {method_label(spec)}, seed {spec.seed}")
