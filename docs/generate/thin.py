"""Records that are committed: with fewer entries of the balancer's log."""

from __future__ import annotations

from dataclasses import replace

from equipoise.lab.record import Curves, Record

LOGS = 20


def thinned(record: Record) -> Record:
    """The record with about twenty entries of the balancer's log; all evaluations stay."""
    every = -(-len(record.curves.step) // LOGS)
    parts = {
        name: value[::every] if name == "step" else {task: series[::every] for task, series in value.items()}
        for name, value in vars(record.curves).items()
    }
    return replace(record, curves=Curves(**parts))
