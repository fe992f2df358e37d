"""A run in some set-up beside the plain run that it must equal: eager, one process, one large batch."""

from __future__ import annotations

import torch

import equipoise as eq
from helpers.entry_points import build, losses_of, reference_norms
from helpers.matrix import deviation


def ordinary(network, balancer, x, y):
    """The step that every user writes."""
    balancer(losses_of(network, x, y)).backward()


def sgd(network):
    """The one optimiser of the plain run."""
    return [torch.optim.SGD(network.parameters(), 1e-3)]


def largest_deviation(
    entry_point,
    batches,
    backward=ordinary,
    prepare=None,
    dtype=torch.float64,
    every=1,
    accumulate=False,
    optimizers=sgd,
    between=None,
    audited=True,
):
    """Train both; return the largest deviation of gradient norms, balancer weights and the network's gradients.

    The norms are those of one `autograd.grad` per task. ``prepare(network)`` returns the network of the set-up, and
    ``backward(network, balancer, x, y)`` leaves its gradients on one batch as the set-up gets them, in several passes where it
    accumulates; ``optimizers(network)`` are those of the set-up. ``between(network)`` happens to both networks before they take
    their steps. ``audited`` says whether the first step can be compared with a reference in this set-up.
    """
    plain, plain_source = build(entry_point, dtype=dtype)
    network, source = build(entry_point, dtype=dtype)
    model = network if prepare is None else prepare(network)
    reference = eq.GradNorm(plain_source, every=every).to(dtype)
    balancer = eq.GradNorm(source, every=every, accumulate=accumulate).to(dtype)
    stepping = [*sgd(plain), *optimizers(network)]
    worst = 0.0
    for i, (x, y) in enumerate(batches):
        norms = reference.weights * reference_norms(entry_point, plain, x, y)
        for optimizer in stepping:
            optimizer.zero_grad()
        ordinary(plain, reference, x, y)
        backward(model, balancer, x, y)
        found, expected = [gradient_of(network)], [gradient_of(plain)]
        for each in (plain, network) if between is not None else ():
            between(each)
        reference.step()
        balancer.step()
        found.append(balancer.weights)
        expected.append(reference.weights)
        if i % every == 0:
            found.append(balancer.log()["gradient_norms"])
            expected.append(norms)
        worst = max([worst, *map(deviation, found, expected)])
        for optimizer in stepping:
            optimizer.step()
    assert (reference.weights - 1).abs().max() > 0.05, "the run is too short to tell weights apart"
    assert bool(balancer.log()["audit"].isfinite()) == audited, repr(balancer)
    return worst


def gradient_of(network):
    """All gradients of a network as one vector, zeros where there is none."""
    return torch.cat(
        [torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in network.parameters()]
    )


def assert_same_state(before, after, but=()):
    """Two ``state_dict`` are equal bit for bit, but for the entries named."""
    assert before.keys() == after.keys()
    for name in before.keys() - set(but):
        if torch.is_tensor(before[name]):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, equal_nan=True, msg=name)
        else:
            assert after[name] == before[name], name
