"""The page about what is called GradNorm: its figures come from the runs below, never typed.

``python -m docs.generate.three_gradnorms`` writes them into the page; a test compares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import equipoise as eq

from .pages import ROOT, write

PAGE = ROOT / "docs" / "three_gradnorms.md"
TABLE = "rules"
TASKS = ("small", "large")
STEPS, LAST = 400, 50

RULES: dict[str, tuple[type[eq.Balancer], dict[str, Any]]] = {
    "weights of 1": (eq.Equal, {"every": 1}),
    "weights of 1, gradients clipped to norm 0.1": (eq.Equal, {"every": 1}),
    "`eq.GradNorm(alpha=0)`": (eq.GradNorm, {"alpha": 0.0}),
    "`eq.GradNorm(alpha=1.5)`": (eq.GradNorm, {"alpha": 1.5}),
    "`eq.GradNormClosedForm(alpha=0)`": (eq.GradNormClosedForm, {"alpha": 0.0}),
    "`eq.InverseGradientNorm()`, as published": (eq.InverseGradientNorm, {}),
    "`eq.InverseGradientNorm(every=1)`": (eq.InverseGradientNorm, {"every": 1}),
}


def outcome(label: str) -> tuple[list[float], float]:
    """The mean weights of the last steps, and the geometric mean of the ratio of the weighted norms, large over small."""
    build, settings = RULES[label]
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
    layer = nn.Linear(16, 16)
    fork = eq.Fork(layer, TASKS)
    heads = nn.ModuleDict({task: nn.Sequential(nn.Tanh(), nn.Linear(16, 1)) for task in TASKS})
    network = nn.ModuleList([trunk, fork, heads])
    balancer = build(fork, **settings)
    watch = eq.PerLoss(layer, TASKS)  # the norms of every step, also of those that are not measured
    watcher = eq.Equal(watch, every=1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    weights, ratios = [], []
    for step in range(STEPS):
        x = torch.randn(64, 6)
        features = fork(trunk(x))
        targets = {"small": x[:, :1].sin(), "large": 10 * x[:, 1:2].cos()}
        losses = {task: nn.functional.mse_loss(heads[task](features[task]), targets[task]) for task in TASKS}
        if step >= STEPS - LAST:
            watcher(losses).backward(retain_graph=True)
            watcher.step()
            norms = balancer.weights * watcher.log()["gradient_norms"]
            weights.append(balancer.weights.clone())
            ratios.append((norms[1] / norms[0]).log())
        optimizer.zero_grad()
        balancer(losses).backward()
        if "clipped" in label:
            nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
        balancer.step()
    return torch.stack(weights).mean(0).tolist(), torch.stack(ratios).mean().exp().item()


def figures() -> str:
    """The table of the page."""
    lines = [
        f"After {STEPS} steps; means over the last {LAST}.",
        "",
        "| rule | weight of small | weight of large | weighted gradient norm at W, large over small |",
        "|:--|--:|--:|--:|",
    ]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    for label in RULES:
        (small, large), ratio = outcome(label)
        lines.append(f"| {label} | {small:.2g} | {large:.2g} | {ratio:.2g} |")
    torch.set_default_dtype(before)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the figures into the page."""
    write(PAGE, {TABLE: figures})


if __name__ == "__main__":
    main()
