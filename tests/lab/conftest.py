"""Synthetic records: what a run leaves behind, without training anything."""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import pytest
from helpers.processes import CONTEXT, PRELOADED

from equipoise.lab.record import Curves, Evaluation, MetricInfo, Record, RunSpec, TaskInfo

CONTEXT.set_forkserver_preload([*PRELOADED, "equipoise.lab.store.workers", "equipoise.lab.studies.run"])


def pytest_collection_modifyitems(items):
    """Yeast lies inside a package that needs Python 3.11; without it, its tests are skipped."""
    if find_spec("river") is None:
        for item in items:
            if "yeast" in item.nodeid.lower():
                item.add_marker(pytest.mark.skip(reason="yeast needs the package river 0.26, which needs Python 3.11"))


def synthetic_record(
    method: str = "equal",
    seed: int = 0,
    tasks: Sequence[str] = ("alpha", "beta"),
    *,
    problem: str = "toy",
    method_settings: dict | None = None,
    problem_settings: dict | None = None,
    steps: int = 40,
    evaluate_every: int = 10,
    train: dict | None = None,
    validation: dict | None = None,
    test: dict | None = None,
    metrics: dict | None = None,
    metric: str = "MeanSquaredError",
    higher_is_better: bool = False,
    train_seconds: float = 0.08,
    skipped_steps: int = 0,
    floor_hits: dict | None = None,
    cap_hits: dict | None = None,
) -> Record:
    """A record whose curves are smooth and differ between methods, seeds and tasks; any evaluation can be given."""
    rng = np.random.default_rng([seed, *method.encode()])
    step = np.arange(1, steps + 1)
    at = list(range(0, steps + 1, evaluate_every))
    count = len(tasks)

    def series(rows):
        return {task: [float(value) for value in row] for task, row in zip(tasks, rows, strict=True)}

    scale = np.linspace(0.2, 5, count)[:, None]
    speed = rng.uniform(2, 6, (count, 1)) / steps
    noise = rng.normal(1, 0.04, (count, steps))
    losses = scale * (0.1 + np.exp(-speed * step)) * noise
    weights = scale ** -(0 * step if method == "equal" else 1 - np.exp(-3 * step / steps))
    weights = weights * count / weights.sum(axis=0)
    rates = losses / scale / (losses / scale).mean(axis=0)
    norms = weights * losses * noise
    targets = norms.mean(axis=0) * rates**0.5
    grid = np.asarray(at)
    fitted = series(scale * (0.1 + np.exp(-speed * grid)))
    held_out = series(scale * (0.15 + np.exp(-speed * grid) + 0.02 * grid / steps) * rng.normal(1, 0.02, (count, 1)))
    return Record(
        spec=RunSpec(
            problem=problem,
            problem_settings=problem_settings or {"batch_size": 128},
            method=method,
            method_settings=method_settings or {},
            seed=seed,
            steps=steps,
            evaluate_every=evaluate_every,
            device="cpu",
            precision="32-true",
            code="0123abcd",
        ),
        tasks=tuple(TaskInfo(task, "regression", MetricInfo(metric, higher_is_better)) for task in tasks),
        curves=Curves(
            step=[int(value) for value in step],
            losses=series(losses),
            weights=series(weights),
            gradient_norms=series(norms),
            targets={} if method == "equal" else series(targets),
            training_rates=series(rates),
        ),
        evaluated_at=at,
        train=Evaluation(train or fitted, train or fitted),
        validation=Evaluation(validation or held_out, validation or held_out),
        test=Evaluation(test or held_out, metrics or test or held_out),
        train_seconds=train_seconds,
        skipped_steps=skipped_steps,
        floor_hits=floor_hits or dict.fromkeys(tasks, 0),
        cap_hits=cap_hits or dict.fromkeys(tasks, 0),
        environment={"python": "3.11.7", "torch": "2.13.0", "machine": "x86_64, 2 cores", "commit": "0123456"},
    )


@pytest.fixture(scope="session")
def make_record():
    """Builds a synthetic record."""
    return synthetic_record
