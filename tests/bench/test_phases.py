"""Where the time goes: phases, multiplications, and the model made from them."""

import json

import pytest
import torch
from helpers.reference import close

from equipoise.bench.model import Model, fitted
from equipoise.bench.phases import PHASES, Phases, _counted, _steps, load, phases, save
from equipoise.bench.workloads import MLP, Columns


def counted(workload):
    """The multiplications and bytes that a balanced step does beside a plain one, behind the first steps, which are audited."""
    steps, _ = _steps(0, workload)
    plain, balanced = (min(_counted(steps[kind]) for _ in range(6)) for kind in ("plain", "balanced"))
    return balanced[0] - plain[0], balanced[1] - plain[1]


@pytest.mark.parametrize(
    ("workload", "multiplications"),
    [
        # the Gram matrix of four samples of eight numbers, and its product with the gradient of each of three tasks
        (MLP(num_tasks=3, width=8, batch_size=4), 4 * 4 * 8 * (1 + 3)),
        # for each of three tasks the gradient behind the output matrix, and that of the weight
        (Columns(num_tasks=3, width=8, batch_size=4), 3 * (4 * 3 * 8 + 4 * 8 * 8)),
        # the same, taken together
        (Columns(num_tasks=9, width=8, batch_size=4), 9 * (4 * 9 * 8 + 4 * 8 * 8)),
    ],
    ids=["a fork", "one by one", "in batches"],
)
def test_multiplications_are_counted(workload, multiplications):
    assert counted(workload)[0] == multiplications


def test_the_bytes_are_those_of_what_is_multiplied():
    """Four bytes each: the Gram matrix and what it is made of, and for each task gradient, Gram matrix and their product."""
    gram = (2 * 4 * 8 + 4 * 4) + 3 * (4 * 4 + 2 * 4 * 8)
    assert counted(MLP(num_tasks=3, width=8, batch_size=4))[1] == 4 * gram


def test_a_first_step_is_audited():
    """One ``autograd.grad`` for each of forty tasks, whose multiplications a later step does not have."""
    steps, balancer = _steps(0, MLP(num_tasks=40, width=8, batch_size=4))
    later = min(_counted(steps["balanced"]) for _ in range(6))
    balancer.reset_parameters()
    assert _counted(steps["balanced"]) > later


def test_both_steps_are_timed_phase_by_phase(tmp_path):
    found = phases("small", MLP(num_tasks=3, width=8, batch_size=4), rounds=3, threads=1)
    assert tuple(found.plain) == tuple(found.balanced) == PHASES
    assert all(value >= 0 for value in [*found.plain.values(), *found.balanced.values(), found.first])
    assert found.num_tasks == 3
    assert found.extra_multiplications == 4 * 4 * 8 * (1 + 3)
    assert found.peak > 0
    assert found.bandwidth > 0
    save([found], tmp_path / "phases.json")
    assert load(tmp_path / "phases.json") == [found]


def test_several_processes_take_the_gradients_at_w():
    """They are added up over the processes, as Gram matrices cannot be."""
    found = phases("small", MLP(num_tasks=3, width=8, batch_size=4, setup="ddp"), rounds=1, threads=1)
    assert found.extra_multiplications == 3 * 4 * 8 * 8


def made(num_tasks, multiplications, extra):
    plain = dict.fromkeys(PHASES, 1.0)
    balanced = plain | {"balancer": 1.0 + extra}
    return Phases("made", num_tasks, plain, balanced, 1000, 1000 + multiplications, 80, 100, 50.0, 4.0, {})


def test_a_model_is_found_again_from_what_it_foresees():
    rate = 1000 / 5
    found = [made(t, m, m / rate + 0.5 + 0.02 * t) for t, m in ((2, 100), (3, 700), (40, 0), (128, 3000))]
    model = fitted(found, found[0])
    close(torch.tensor([model.rate, model.per_step, model.per_task]), torch.tensor([rate, 0.5, 0.02]), rtol=1e-5)
    for one in found:
        close(torch.tensor(model.extra(one)), torch.tensor(one.extra), rtol=1e-5)
    assert Model(10.0, 1.0, 0.1).extra(made(4, 20, 0.0)) == 2.0 + 1.0 + 0.4


@pytest.mark.parametrize(("multiplications", "floor"), [(1000, 1 + 1000 / 50 / 5), (10, 1 + 20 / 4 / 5)])
def test_the_floor_is_what_takes_longer_multiplying_or_moving(multiplications, floor):
    assert made(3, multiplications, 0.0).floor == floor


def test_a_record_from_before_first_steps_were_timed_is_read(tmp_path):
    path = tmp_path / "phases.json"
    save([made(3, 10, 0.0)], path)
    (old,) = json.loads(path.read_text())
    assert old.pop("first") is None
    path.write_text(json.dumps([old]))
    assert load(path) == [made(3, 10, 0.0)]
