"""Gradient accumulation: several backward passes, one step, the same as one large batch."""

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, TASKS, build, data, losses_of, reference_norms
from helpers.lockstep import largest_deviation

import equipoise as eq

SIZE = 12


def in_parts(sizes, factors):
    """A step in micro-batches of these sizes, the total loss of each multiplied by its factor."""

    def backward(network, balancer, x, y):
        start = 0
        for size, factor in zip(sizes, factors, strict=True):
            part = slice(start, start + size)
            losses = losses_of(network, x[part], {task: target[part] for task, target in y.items()})
            (factor * balancer(losses)).backward()
            start += size

    return backward


def rescaled(backward, factor):
    """The network's gradients brought back to the size of the mean, as the user's learning rate would have it."""

    def step(network, balancer, x, y):
        backward(network, balancer, x, y)
        for parameter in network.parameters():
            parameter.grad *= factor

    return step


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_with_the_loss_over_k(entry_point):
    found = largest_deviation(entry_point, data(8, SIZE), in_parts((4, 4, 4), (1 / 3,) * 3), accumulate=True)
    matrix.exact(entry_point, "gradient accumulation, loss / k", found)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_without_dividing(entry_point):
    """The network's gradient is k times as long; norms and weights do not see it."""
    found = largest_deviation(
        entry_point, data(8, SIZE), rescaled(in_parts((4, 4, 4), (1, 1, 1)), 1 / 3), accumulate=True
    )
    matrix.exact(entry_point, "gradient accumulation, plain sum", found)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_unequal_parts(entry_point):
    """Each mean loss counts by its share of the samples."""
    sizes = (5, 1, 4, 2)
    found = largest_deviation(
        entry_point, data(8, SIZE), in_parts(sizes, [size / SIZE for size in sizes]), accumulate=True
    )
    matrix.exact(entry_point, "gradient accumulation, unequal micro-batches", found)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_with_a_loss_scale_and_every_second_step_measured(entry_point):
    backward = rescaled(in_parts((6, 6), (1024 / 2, 1024 / 2)), 1 / 1024)
    found = largest_deviation(entry_point, data(8, SIZE), backward, every=2, accumulate=True)
    matrix.exact(entry_point, "gradient accumulation, loss scale, every=2", found)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_one_backward_pass_on_the_sum_of_the_parts(entry_point):
    """The fork is called several times in one step, and its calls meet in one backward pass."""

    def backward(network, balancer, x, y):
        halves = [
            losses_of(network, x[part], {task: target[part] for task, target in y.items()})
            for part in (slice(0, 6), slice(6, 12))
        ]
        balancer({task: (halves[0][task] + halves[1][task]) / 2 for task in TASKS}).backward()

    found = largest_deviation(entry_point, data(8, SIZE), backward, accumulate=True)
    matrix.exact(entry_point, "the fork called twice in one step", found)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_task_with_labels_in_one_part_only(entry_point):
    """Its gradient is the one that the network gets: over two parts with loss / 2, half of that of its one part."""
    network, source = build(entry_point)
    balancer = eq.GradNorm(source, accumulate=True).double()
    (x, y) = next(data(1, SIZE))
    first, second = ((x[part], {task: target[part] for task, target in y.items()}) for part in (slice(6), slice(6, 12)))
    expected = reference_norms(entry_point, network, x, y)
    expected[1] = reference_norms(entry_point, network, *first)[1] / 2
    (balancer(losses_of(network, *first)) / 2).backward()
    (balancer(losses_of(network, *second) | {"b": None}) / 2).backward()
    balancer.step()
    losses = torch.stack(list((losses_of(network, x, y) | {"b": losses_of(network, *first)["b"]}).values()))
    assert matrix.deviation(balancer.log()["gradient_norms"], expected) < matrix.TOLERANCE["float64"]
    assert matrix.deviation(balancer.log()["losses"], losses.detach()) < matrix.TOLERANCE["float64"]
