"""The page of problems: what each is, and a first run beside the best constant prediction.

``python -m docs.generate.problems`` writes the page from the committed records. With ``run NAME ...`` it makes records anew
first, all of them without a name, for some minutes; it needs the problems' data.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.problems import PROBLEMS
from equipoise.lab.record import Record
from equipoise.lab.results.comparison import group
from equipoise.lab.results.provenance import command
from equipoise.lab.results.selection import selected
from equipoise.lab.runs.batches import taken
from equipoise.lab.runs.evaluation import labelled
from equipoise.lab.runs.methods import Method
from equipoise.lab.runs.source import load_problem
from equipoise.lab.runs.train import run, specify
from equipoise.lab.store.store import Store

from .pages import ROOT, as_cell, summary
from .thin import thinned

PAGE = ROOT / "docs" / "problems.md"
RECORDS = ROOT / "results" / "problems"
CONSTANTS = RECORDS / "constant_predictions" / "metrics.json"

RUNS: Mapping[str, Mapping[str, Any]] = {
    "toy": {"size": "fifth", "steps": 3000, "learning_rate": 3e-3},
    "groups": {"steps": 2000},
    "hierarchy": {"steps": 2000},
    "conflict": {"steps": 2000},
    "unequal": {"steps": 1000},
    "pinn": {"steps": 4000},
    "yeast": {"steps": 300},
    "multimnist": {"steps": 400},
    "tox21": {"steps": 300},
    "toxcast": {"steps": 300, "platforms": ("OT",)},
    "molecules": {"steps": 400},
    "rooms": {
        "steps": 350,
        "backbone": "resnet_fcn",
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "train_samples": 200,
        "validation_samples": 24,
        "test_samples": 40,
    },
}
"""The settings of each problem's run. NYUv2 has none: its licence does not let its data be passed on."""
_METHODS = {"pinn": Method("gradnorm_closed_form", {"alpha": 0.0})}
"""The method of a run where it is not ``gradnorm``, which does not get to losses this far apart in so few steps."""
_EXACT = 1e-3
"""An error below this means that the targets themselves are constant, such as a solution that is 0 on the boundary."""
_ROWS = 20


def make(name: str) -> tuple[Record, dict[str, float]]:
    """The run of one problem, and the metric of the best constant prediction on the test split by task."""
    settings = dict(RUNS[name])
    problem = load_problem(name, settings)
    record = run(problem, specify(problem, _METHODS.get(name, Method("gradnorm")), 0), threads=1)
    splits = problem.splits()
    outputs = _outputs(problem, splits)
    constants = {
        task.name: _metric(task, _constant(task, splits.train, outputs[task.name].shape[1:]), splits.test)
        for task in problem.tasks
    }
    return thinned(record), constants


@torch.no_grad()
def _outputs(problem: Problem, splits: Splits) -> dict[str, Tensor]:
    found: dict[str, Tensor] = problem.network()(splits.test.inputs[:2])
    return found


def _constant(task: Task, train: Split, shape: torch.Size) -> Tensor:
    """The output, the same for every sample and pixel, with the smallest loss on the training split."""
    train = taken(train, torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:1000])
    free = shape if len(shape) < 3 else (shape[0], 1, 1)
    value = torch.zeros(free, requires_grad=True)
    optimizer = torch.optim.LBFGS([value], lr=0.5, max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = task.loss(*labelled(train, task.name, value.expand(len(train), *shape)))
        total.backward()
        return total

    optimizer.step(loss)
    return value.detach().expand(shape)


def _metric(task: Task, constant: Tensor, split: Split) -> float:
    metric = task.metric()
    metric.update(*labelled(split, task.name, constant.expand(len(split), *constant.shape).contiguous()))
    return float(metric.compute())


def constants() -> dict[str, dict[str, float]]:
    """The constant predictions' metrics by problem and task."""
    found: dict[str, dict[str, float]] = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    return found


def better(record: Record, constant: Mapping[str, float]) -> dict[str, bool]:
    """By task, whether the run's test metric, where the run is read, is better than the constant prediction's.

    Without the tasks whose targets are constant.
    """
    at = selected(record)
    return {
        task.name: (record.test.metrics[task.name][at] > constant[task.name]) == task.metric.higher_is_better
        for task in record.tasks
        if task.metric.higher_is_better or constant[task.name] > _EXACT
    }


def page() -> str:
    """The page."""
    records = {record.spec.problem: record for record in Store(RECORDS).load_all()}
    lines = [
        "# The problems of the lab",
        "",
        "The problems on which `equipoise compare NAME` and `equipoise study` train methods. The training, validation and test",
        "splits of each do not depend on the seed of a run. `equipoise list` shows all settings, and `--set KEY=VALUE` changes",
        "one. A problem of your own is [a Python file](guides/write_a_problem.md).",
        "",
        "| name | tasks | problem |",
        "|:--|--:|:--|",
    ]
    for name, cls in PROBLEMS.items():
        count = len(records[name].tasks) if name in records else len(cls().tasks)
        lines.append(f"| [`{name}`](#{name}) | {count} | {summary(inspect.getdoc(cls))} |")
    lines += [
        "",
        "Each problem is shown with one short run of GradNorm or its closed form, seed 0, beside the best constant",
        "prediction: the output, the same for every sample, with the smallest training loss. The run shows that the problem",
        "can be learnt in this time, and says nothing about methods. Results are those on the test split at the step with the",
        "smallest task-normalised validation loss, or validation error of the task that the problem names as `judged_by`.",
    ]
    for name, cls in PROBLEMS.items():
        lines += ["", f"({name})=", f"## {name}", "", *_described(cls), ""]
        lines += _table(records[name], constants()[name]) if name in records else ["No run is published: see above."]
    return "\n".join(lines) + "\n"


def _described(cls: type[Problem]) -> list[str]:
    """The docstring up to its first section."""
    text = (inspect.getdoc(cls) or "").split("\nAttributes:")[0].strip()
    return [as_cell(paragraph) + "\n" for paragraph in text.split("\n\n")]


def _table(record: Record, constant: Mapping[str, float]) -> list[str]:
    at, won = selected(record), better(record, constant)
    (comparison,) = group([record])
    environment = record.environment
    lines = [
        f"`{command(comparison)}`",
        "",
        f"{record.spec.steps} steps in {record.train_seconds:.0f} s ({environment['processor']}, "
        f"{environment['threads']} thread, PyTorch {environment['torch']}, commit {str(environment['commit'])[:12]}), "
        f"read at step {record.evaluated_at[at]}; "
        f"{sum(won.values())} of {len(won)} tasks are better than constant.",
        "",
        "| task | metric | run | constant |",
        "|:--|:--|--:|--:|",
    ]
    shown = record.tasks[:_ROWS]
    for task in shown:
        arrow = "↑" if task.metric.higher_is_better else "↓"
        value = record.test.metrics[task.name][at]
        lines.append(f"| {as_cell(task.name)} | {task.metric.name} {arrow} | {value:.3f} | {constant[task.name]:.3f} |")
    if len(shown) < len(record.tasks):
        lines.append(f"| and {len(record.tasks) - len(shown)} more | | | |")
    return lines


def main() -> None:
    """Write the page, with the word ``run`` after making the records."""
    if sys.argv[1:2] == ["run"]:
        known = constants() if CONSTANTS.exists() else {}
        for name in sys.argv[2:] or RUNS:
            record, known[name] = make(name)
            for old in RECORDS.glob(f"{name}-*.json"):
                old.unlink()
            Store(RECORDS).save(record)
            CONSTANTS.parent.mkdir(parents=True, exist_ok=True)
            CONSTANTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            won = better(record, known[name])
            print(f"{name}: {record.train_seconds:.0f} s, {sum(won.values())} of {len(won)} tasks better than constant")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
