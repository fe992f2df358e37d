"""How a table is read, and where its numbers come from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields

from equipoise.lab.problems import PROBLEMS
from equipoise.lab.record import RunSpec
from equipoise.lab.results.cells import HIDES, TURNED, Row
from equipoise.lab.results.comparison import Comparison, common_settings, method_label
from equipoise.lab.results.format import WITHHELD
from equipoise.lab.results.selection import measure


def format_spec(spec: RunSpec) -> str:
    """The settings that the runs of a comparison have in common, in one line."""
    settings = "".join(f", {key} {value}" for key, value in spec.problem_settings.items() if key != "steps")
    return f"{spec.steps} steps{settings}, evaluated every {spec.evaluate_every} steps, {spec.device}, {spec.precision}"


def legend(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """How the table is read, in sentences."""
    other = comparison.reference
    lines = [
        "Test split: mean over seeds ± half of its 95 % t-interval, where the "
        f"{measure(comparison.records[0], 'validation')} is smallest.",
        f"Then the paired difference from {other}, with its interval. ✓ better and ✗ worse than {other}: p < 0.05 by the "
        "paired t-test after Holm's correction for all methods: for the tasks together, for each summary by itself"
        f"{', and so for the error by which runs are judged' if comparison.records[0].judged_by else ''}.",
        f"Changes against {other} in %: positive is worse; each metric weighs the same.",
    ]
    found = {cell.withheld for row in rows for cell in row.cells}
    reasons = {
        TURNED: "no mark, as at the last step the difference has the other sign.",
        HIDES: "no mark, as the mean hides a task that goes the other way, or depends on a single task.",
    }
    return lines + [f"{WITHHELD[reason]} {text}" for reason, text in reasons.items() if reason in found]


def command(comparison: Comparison) -> str:
    """The command that makes these runs; empty where no single one does.

    A problem that the library does not know is a file in the working folder. No ``equipoise compare`` makes runs that differ in
    more than method and seed, as after a search of each method's learning rate; nor those of a method whose settings depend on
    the seed; nor runs that were trained together; nor seeds that are not counted from 0 or not the same for all methods.
    """
    if comparison.command:
        return comparison.command
    of_methods = [list(runs.values()) for runs in [*comparison.runs.values(), *comparison.single_task.values()]]
    written = [{method_label(record.spec) for record in records} for records in of_methods]
    spec = of_methods[0][0].spec
    differ = {common_settings(record.spec) for records in of_methods for record in records} != {common_settings(spec)}
    seeds = comparison.seeds
    unpaired = any({record.spec.seed for record in records} != set(range(len(seeds))) for records in of_methods)
    if differ or unpaired or spec.vectorized or any(len(each) > 1 for each in written):
        return ""
    known = PROBLEMS.get(spec.problem)
    defaults = {field.name: field.default for field in fields(known)} if known else {}
    methods = list(dict.fromkeys(label for each in written for label in each))
    words = ["equipoise", "compare", spec.problem if known else f"{spec.problem}.py", "--methods", ",".join(methods)]
    words += ["--seeds", str(len(seeds)), "--steps", str(spec.steps)]
    if any(records[0].spec.method == "equal" for records in of_methods[1:]):
        words += ["--reference", methods[0]]
    for key, value in spec.problem_settings.items():
        if key != "steps" and not (key in defaults and defaults[key] == value):
            words += ["--set", f"{key}={value}"]
    return shlex.join([*words, "--device", spec.device, "--precision", spec.precision])


def provenance(comparison: Comparison) -> dict[str, str]:
    """Where the numbers come from: seeds, settings, environment (every value that occurs), code digest, command if any."""
    counts = sorted({len(runs) for runs in comparison.runs.values()})
    found: dict[str, dict[str, None]] = {}
    for record in comparison.records:
        for key, value in record.environment.items():
            found.setdefault(key, {})[str(value)] = None
    made = command(comparison)
    return {
        "runs": f"n = {' or '.join(map(str, counts))} per method, seeds {', '.join(map(str, comparison.seeds))}",
        "settings": format_spec(comparison.spec),
        **{key: _joined(key, list(values)) for key, values in found.items()},
        "code": comparison.spec.code,
        **({"command": made} if made else {}),
    }


def _joined(key: str, values: list[str]) -> str:
    """Every value; of the runs' dates only the first and the last."""
    return " to ".join(sorted({min(values), max(values)})) if key == "date" else "; ".join(values)
