"""The page on the cost of balancing: its tables and its figure, generated from the committed records, never typed.

``python -m docs.generate.cost`` writes them; a test compares. ``python -m docs.generate.cost measure`` first measures where the
time goes, how long the first step takes, and how near to balance weights come that move now and then: for some minutes, on a
machine with nothing else to do.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.nn import functional

import equipoise as eq
from equipoise.bench.methods import FLOOR
from equipoise.bench.model import fitted
from equipoise.bench.phases import PHASES, Phases, load, phases, save
from equipoise.bench.ratio import paired_ratio
from equipoise.bench.record import Record, load_all
from equipoise.bench.table import to_markdown
from equipoise.bench.workloads import workloads

from .answers.contrasts import listed
from .pages import ROOT, write
from .pictures import Axis, Panel, Series, plot

PAGE, FIGURE, RECORDS = ROOT / "docs" / "cost.md", ROOT / "docs" / "cost.svg", ROOT / "results" / "cost"
MEASURED, TURNS = ROOT / "results" / "cost_phases.json", ROOT / "results" / "cost_turns.json"
TIMED = (
    *(f"mlp_{number}" for number in (2, 3, 12, 40, 128, 512, 1024)),
    *("columns_617", "transformer", "transformer_block", "segnet", "resnet_fcn"),
    *("mlp_3_compiled", "transformer_compiled", "mlp_3_ddp_2", "segnet_ddp_2"),
)
"""The workloads that are timed phase by phase."""


@dataclass(frozen=True)
class Aim:
    """The ratios to the plain step that are aimed at: measured at every step, and at every tenth."""

    every_step: float
    every_tenth: float | None = None


AIMS = {
    **dict.fromkeys(("segnet", "resnet_fcn", "transformer"), Aim(1.03, 1.005)),
    "mlp_3": Aim(1.05, 1.01),
    "mlp_12": Aim(1.10, 1.02),
    "mlp_40": Aim(1.15, 1.02),
    "mlp_128": Aim(1.40, 1.05),
    **dict.fromkeys(("mlp_512", "mlp_1024", "columns_617"), Aim(1.5, 1.1)),
    **dict.fromkeys(("mlp_3_compiled", "transformer_compiled", "mlp_3_ddp_2", "segnet_ddp_2"), Aim(1.05)),
}
"""By workload, set before anything was measured."""


def records() -> list[Record]:
    """Those committed, in the order of the workloads; those of a GPU at the end."""
    order = list(workloads("cpu"))
    return sorted(load_all(RECORDS), key=lambda record: (record.device, order.index(record.workload)))


def table() -> str:
    """The tables of the records."""
    return to_markdown(records())


SUMMARY = {
    "gradnorm": "GradNorm, every step",
    "gradnorm_every_10": "every 10th step",
    "paper": "the paper read literally",
    "gradnorm_pytorch": "gradnorm-pytorch",
    "torchjd_imtl_g": "TorchJD, IMTL-G",
}
"""The columns of the summary, by method."""


def summary() -> str:
    """The time of a step over that of the plain step, for the workloads on one process that are not compiled."""
    lines = [f"| workload | T | {' | '.join(SUMMARY.values())} |", f"| :-- | --: |{' --: |' * len(SUMMARY)}"]
    for record in records():
        if record.device == "cpu" and not record.workload.endswith(("_compiled", "_ddp_2")):
            cells = [_ratio(record, method) for method in SUMMARY]
            lines.append(f"| `{record.workload}` | {record.num_tasks} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratio(record: Record, method: str) -> str:
    """The median ratio; a dash for a method that was not run."""
    if method not in record.costs:
        return "–"
    ratio = paired_ratio(record.costs[method].seconds, record.costs[FLOOR].seconds).median
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def on_gpu() -> str:
    """The same for the workloads that were measured on a GPU, with the time of the plain step."""
    columns = {**dict(list(SUMMARY.items())[:2]), "per_loss": "PerLoss", "paper": SUMMARY["paper"]}
    head = ["workload", "T", "GPU", "plain, ms", *columns.values()]
    lines = [f"| {' | '.join(head)} |", f"| :-- | --: | :-- |{' --: |' * (len(head) - 3)}"]
    for record in records():
        if record.device == "cuda":
            plain = f"{1e3 * median(record.costs[FLOOR].seconds):.3g}"
            cells = [str(record.num_tasks), record.environment["processor"], plain]
            cells += [_ratio(record, method) for method in columns]
            lines.append(f"| `{record.workload}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


DRAWN = {
    "gradnorm": "GradNorm, every step",
    "gradnorm_every_10": "GradNorm, every 10th step",
    "per_loss": "GradNorm at PerLoss",
    "paper": "the paper read literally",
    "paper_backward": "the same, by backward()",
    "gradnorm_pytorch": "gradnorm-pytorch",
    "torchjd_imtl_g": "TorchJD, IMTL-G",
    "torchjd_upgrad": "TorchJD, UPGrad",
    "torchjd_autogram": "TorchJD, UPGrad, autogram",
    "torchjd_autogram_w": "the same, last shared layer",
}
"""The methods of the figure, by name: those that some network with T heads was timed with."""


def figure() -> str:
    """The cost against the number of tasks, with the intervals."""
    found = [each for each in records() if each.device == "cpu" and each.workload.removeprefix("mlp_").isdigit()]
    series = []
    for place, (method, name) in enumerate(DRAWN.items()):
        ours = [each for each in found if method in each.costs]
        ratios = [paired_ratio(each.costs[method].seconds, each.costs[FLOOR].seconds) for each in ours]
        apart = 1.03 ** (place - len(DRAWN) / 2)
        numbers, ends = [apart * each.num_tasks for each in ours], [(ratio.low, ratio.high) for ratio in ratios]
        series.append(Series(name, numbers, [ratio.median for ratio in ratios], ends=ends))
    panel = Panel(
        "Six linear layers and T heads on a CPU",
        series,
        Axis("number of tasks T", log=True),
        Axis("time per step over that of the plain step", log=True),
        tall=300,
    )
    note = f"{listed([str(each.num_tasks) for each in found])} tasks; methods are moved apart a little"
    return plot([panel], "Time per step over that of the plain step, against the number of tasks", note)


def aims() -> str:
    """The aims, the ratios measured, and how near to 1 they could have come."""
    floors = {one.workload: one.floor for one in load(MEASURED)}
    head = ["workload", "aim", "every step", "floor", "aim at every 10th", "every 10th"]
    lines = [f"| {' | '.join(head)} |", f"| :-- |{' --: |' * (len(head) - 1)}"]
    reached: dict[str, list[str]] = {"every step": [], "every 10th step": []}
    number = 0
    for record in records():
        aim = AIMS.get(record.workload)
        if aim is None or record.device != "cpu":
            continue
        cells = [f"`{record.workload}`"]
        pairs = (("gradnorm", aim.every_step), ("gradnorm_every_10", aim.every_tenth))
        for words, (method, goal) in zip(reached, pairs, strict=True):
            if goal is None or method not in record.costs:
                cells += [""] * 2
                continue
            ratio = paired_ratio(record.costs[method].seconds, record.costs[FLOOR].seconds)
            cells += [f"{goal:g}", f"{ratio.median:.3f} ({ratio.low:.2f} to {ratio.high:.2f})"]
            number += 1
            if ratio.high <= goal:
                reached[words].append(cells[0])
        floor = floors.get(record.workload)
        cells.insert(3, "" if floor is None else f"{floor:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    found = [f"{listed(names)} at {words}" for words, names in reached.items() if names]
    said = (
        f"Reached with the whole interval: {', '.join(found)}."
        if found
        else "No aim is reached with the whole interval."
    )
    return "\n".join([*lines, "", f"Medians with 95 % intervals, {number} in all. {said}", ""])


def where() -> str:
    """Where the time goes, the floor that the counted multiplications allow, and the times that the model foresees."""
    found = load(MEASURED)
    by_name = {one.workload: one for one in found}
    model = fitted([one for one in found if one.workload.removeprefix("mlp_").isdigit()], by_name["mlp_2"])
    shown = [phase for phase in PHASES if phase != "optimiser"]
    head = ["workload", "plain, ms", *(f"{phase}, ms more" for phase in shown)]
    head += ["all, ms more", "foreseen, ms more", "ratio", "multiplications, millions more", "floor"]
    lines = [f"| {' | '.join(head)} |", f"| :-- |{' --: |' * (len(head) - 1)}"]
    for one in found:
        plain = sum(one.plain.values())
        more = [one.balanced[phase] - one.plain[phase] for phase in shown]
        cells = [f"{plain:.3g}", *(f"{value:.2f}" for value in more)]
        alone = workloads("cpu")[one.workload].processes == 1
        cells += [f"{one.extra:.2f}", f"{model.extra(one):.2f}" if alone else "", f"{1 + one.extra / plain:.2f}"]
        cells += [f"{one.extra_multiplications / 1e6:.0f}", f"{one.floor:.3f}"]
        lines.append(f"| `{one.workload}` | {' | '.join(cells)} |")
    environment = found[0].environment
    peak, bandwidth = median(one.peak for one in found), median(one.bandwidth for one in found)
    return "\n".join(
        [
            *lines,
            "",
            f"The model: {model.rate / 1e6:.0f} million multiplications per millisecond, {model.per_step:.2f} ms for a step, "
            f"{1e3 * model.per_task:.0f} µs for a task. The floor: {peak / 1e6:.0f} million multiplications and "
            f"{bandwidth / 1e6:.0f} MB per millisecond, the best that this machine does (torch {environment['torch']}, "
            f"2 threads in all, {environment['processor']}, commit {environment['commit'][:12]}).",
            "",
        ]
    )


def columns() -> str:
    """The cost of a measured step on the columns of one matrix."""
    one = next(one for one in load(MEASURED) if one.workload == "columns_617")
    more = one.extra / sum(one.plain.values())
    return f"At {one.num_tasks} columns it takes {more:.0f} more plain steps; `every=100` adds {more / 100:.2f} to each step.\n"


def few_tasks() -> str:
    """The parts of the additional time at three tasks."""
    one = next(one for one in load(MEASURED) if one.workload == "mlp_3")
    plain, more = sum(one.plain.values()), {phase: one.balanced[phase] - one.plain[phase] for phase in PHASES}
    names = {"forward": "the forward pass of the fork", "total": "the total loss", "backward": "the backward pass"}
    rest = ", ".join(f"{more[phase]:.2f} ms in {name}" for phase, name in names.items())
    return (
        f"At three tasks (`mlp_3`) a balanced step took {one.extra:.2f} ms more than a plain one of {plain:.1f} ms, a ratio of "
        f"{1 + one.extra / plain:.2f}: {more['balancer']:.2f} ms in `balancer.step()`, {rest}. The counted work needs "
        f"{(one.floor - 1) * plain:.2f} ms of it. With a `balancer.step()` that took no time, the ratio would be "
        f"{1 + (one.extra - more['balancer']) / plain:.2f}.\n"
    )


def first_steps() -> str:
    """The first step of a balancer, which audits every task once, beside a later one."""
    head = ["workload", "T", "a later step, ms", "the first step, ms", "the audit, in plain steps"]
    lines = [f"| {' | '.join(head)} |", f"| :-- |{' --: |' * (len(head) - 1)}"]
    for one in load(MEASURED):
        if one.first is None:
            continue
        plain, later = sum(one.plain.values()), sum(one.balanced.values())
        cells = [str(one.num_tasks), f"{later:.3g}", f"{one.first:.3g}", f"{(one.first - later) / plain:.2f}"]
        lines.append(f"| `{one.workload}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


WAYS = {"every step": 1, "every 10th step": 10}
"""Every how many steps forty tasks are measured, by the name in the table."""
LOOKED_AT = (50, 100, 200, 400, 800)


def imbalance(every: int = 1, seed: int = 0) -> dict[int, float]:
    """By step, how far the norms are from being equal: the largest over the smallest, in the median of the steps around it.

    Forty regressions whose targets differ up to eightfold in size, and so their gradients at the start.
    """
    torch.manual_seed(seed)
    tasks = [f"task_{i}" for i in range(40)]
    trunk = nn.Sequential(nn.Linear(16, 64), nn.ReLU())
    layer = nn.Linear(64, 64)
    fork = eq.Fork(layer, tasks)
    heads = nn.ModuleDict({task: nn.Sequential(nn.ReLU(), nn.Linear(64, 1)) for task in tasks})
    teacher = nn.Sequential(nn.Linear(16, 128), nn.Tanh(), nn.Linear(128, 40))
    sizes = torch.logspace(0, 0.9, 40)
    balancer = eq.GradNorm(fork, alpha=0.0, every=every)
    optimizer = torch.optim.SGD([*trunk.parameters(), *fork.parameters(), *heads.parameters()], lr=1e-3)
    ratios = []
    for _ in range(max(LOOKED_AT) + 10):
        x = torch.randn(128, 16)
        with torch.no_grad():
            y = sizes * teacher(x)
        features = fork(trunk(x))
        losses = {task: functional.mse_loss(heads[task](features[task])[:, 0], y[:, i]) for i, task in enumerate(tasks)}
        gradients = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in losses.values()]
        norms = balancer.weights * torch.stack([gradient.norm() for gradient in gradients])
        ratios.append((norms.max() / norms.min()).item())
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        balancer.step()
    return {step: median(ratios[step - 10 : step + 10]) for step in LOOKED_AT} | {0: ratios[0]}


def turns() -> str:
    """How near to balance the weights come that are measured now and then."""
    found: dict[str, list[dict[str, float]]] = json.loads(TURNS.read_text(encoding="utf-8"))
    steps = [0, *LOOKED_AT]
    lines = [f"| measured | {' | '.join(f'step {step}' for step in steps)} |", f"| :-- |{' --: |' * len(steps)}"]
    for way in WAYS:
        cells = [f"{median(run[str(step)] for run in found[way]):.3g}" for step in steps]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


TABLES = {
    "results/cost, summary": summary,
    "results/cost, gpu": on_gpu,
    "results/cost": table,
    "results/cost, aims": aims,
    "results/cost_phases.json": where,
    "results/cost_phases.json, columns": columns,
    "results/cost_phases.json, few tasks": few_tasks,
    "results/cost_phases.json, first steps": first_steps,
    "results/cost_turns.json": turns,
}


def measure() -> None:
    """Look at every workload phase by phase, and at the balance of forty tasks."""
    known = workloads("cpu")
    found: list[Phases] = []
    for name in TIMED:
        rounds = 10 if len(known[name].tasks) > 300 else 40
        found.append(phases(name, known[name], rounds=rounds, threads=2 // known[name].processes))
    save(found, MEASURED)
    balance = {way: [imbalance(every, seed) for seed in range(3)] for way, every in WAYS.items()}
    TURNS.write_text(json.dumps(balance, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Write tables and figure anew."""
    if sys.argv[1:] == ["measure"]:
        measure()
    write(PAGE, TABLES)
    FIGURE.write_text(figure(), encoding="utf-8")


if __name__ == "__main__":
    main()
