"""Mixed precision: autocast, loss scales, and a step that overflows."""

import copy

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, build, data, losses_of, reference_norms
from helpers.lockstep import assert_same_state, gradient_of, largest_deviation, ordinary

import equipoise as eq

SCALE = 65536.0
COUNTS = ("skipped_steps", "_extra_state")
"""A skipped step does change these: how many there were, of each kind."""

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def single(steps):
    """Batches in float32."""
    return data(steps, dtype=torch.float32)


def autocast(network, balancer, x, y, dtype=torch.float16, unit=1.0):
    """The total loss of a forward pass under autocast."""
    with torch.autocast("cpu", dtype):
        return balancer({task: unit * loss for task, loss in losses_of(network, x, y).items()})


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("name", HALVES)
def test_autocast(entry_point, name):
    def backward(network, balancer, x, y):
        autocast(network, balancer, x, y, HALVES[name]).backward()

    found = largest_deviation(entry_point, single(8), backward, dtype=torch.float32)
    assert found > 1e-5, "nothing was computed in half precision"
    matrix.exact(entry_point, f"autocast, {name}", found, "half")


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_loss_scale(entry_point):
    """A factor of the total loss scales all that is measured, and is undone."""

    def backward(network, balancer, x, y):
        (SCALE * balancer(losses_of(network, x, y))).backward()
        for parameter in network.parameters():
            parameter.grad /= SCALE

    matrix.exact(entry_point, "loss scale 65536", largest_deviation(entry_point, data(8), backward))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_grad_scaler(entry_point):
    """The first scale is too large for these losses in float16: GradScaler skips, halves, and goes on."""
    plain, plain_source = build(entry_point, dtype=torch.float32)
    network, source = build(entry_point, dtype=torch.float32)
    reference, balancer = eq.GradNorm(plain_source), eq.GradNorm(source)
    plain_optimizer, optimizer = (torch.optim.SGD(each.parameters(), 1e-3) for each in (plain, network))
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    worst, overflows, steps = 0.0, 0, 0
    for x, y in single(14):
        before = copy.deepcopy([balancer.state_dict(), network.state_dict()])
        optimizer.zero_grad()
        scaler.scale(autocast(network, balancer, x, y)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        overflow = scaler.get_scale() < scale
        balancer.step(skip=overflow)
        if overflow:
            overflows += 1
            assert_same_state(before[0], balancer.state_dict(), but=COUNTS)
            assert_same_state(before[1], network.state_dict())
            assert balancer.skipped_steps == overflows
            continue
        steps += 1
        norms = reference.weights * reference_norms(entry_point, plain, x, y)
        plain_optimizer.zero_grad()
        ordinary(plain, reference, x, y)
        reference.step()
        for found, expected in (
            (balancer.log()["gradient_norms"], norms),
            (balancer.weights, reference.weights),
            (gradient_of(network), gradient_of(plain)),
        ):
            worst = max(worst, matrix.deviation(found, expected))
        plain_optimizer.step()
    assert overflows > 0
    assert steps > 5
    matrix.exact(entry_point, "autocast float16, GradScaler from 65536, with overflow", worst, "half")


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_gradients_that_only_the_loss_scale_keeps_from_vanishing(entry_point):
    """Every gradient here is less than the smallest number of float16 until it is scaled."""
    unit = 1e-8
    network, source = build(entry_point, dtype=torch.float32)
    balancer = eq.GradNorm(source)
    ((x, y),) = single(1)
    expected = unit * reference_norms(entry_point, network, x, y)
    assert expected.max() < torch.finfo(torch.float16).smallest_normal
    (1e9 * autocast(network, balancer, x, y, unit=unit)).backward()
    balancer.step()
    assert matrix.deviation(balancer.log()["gradient_norms"], expected) < matrix.TOLERANCE["half"]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_one_task_that_overflows_stops_the_step_for_all(entry_point, bad):
    network, source = build(entry_point)
    balancer = eq.GradNorm(source).double()
    (first, second) = data(2)
    ordinary(network, balancer, *first)
    balancer.step()
    before = copy.deepcopy(balancer.state_dict())
    losses = losses_of(network, *second)
    balancer(losses | {"b": bad * losses["b"]}).backward()
    balancer.step()
    assert_same_state(before, balancer.state_dict(), but=COUNTS)
    assert balancer.skipped_steps == 1
    ordinary(network, balancer, *second)
    balancer.step()
    assert not torch.equal(balancer.weights, before["weights"])


def test_losses_in_half_precision_are_noted_in_single_precision():
    """16,384 times these losses is beyond float16; their total, and what the step gets to know of them, is not in it."""
    balancer = eq.Static(("a", "b"), {"a": 1.0, "b": 1.0})
    losses = torch.tensor([1.0, 6.0], dtype=torch.float16, requires_grad=True)
    total = balancer({"a": losses[0], "b": losses[1]})
    (16384 * total).backward()
    balancer.step()
    assert total.dtype == torch.float32
    assert balancer.log()["losses"].tolist() == [1.0, 6.0]
    assert balancer.skipped_steps == 0
