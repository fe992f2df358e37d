"""Ways to step the network: several optimisers, closures, averages of the weights, clipping and decay."""

import copy
import itertools

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, build, data, losses_of, reference_norms
from helpers.lockstep import largest_deviation, ordinary
from torch import nn
from torch.optim.swa_utils import AveragedModel

import equipoise as eq


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_several_optimizers(entry_point):
    def optimizers(network):
        heads = set(network.heads.parameters())
        trunk = [p for p in network.parameters() if p not in heads]
        return [torch.optim.SGD(trunk, 1e-3), *(torch.optim.SGD(h.parameters(), 1e-3) for h in network.heads.values())]

    matrix.exact(entry_point, "several optimisers", largest_deviation(entry_point, data(8), optimizers=optimizers))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_lbfgs(entry_point):
    """The closure calls backward many times; its last call counts, at the parameters of that call."""
    network, source = build(entry_point)
    plain, plain_source = build(entry_point)
    balancer, reference = eq.GradNorm(source).double(), eq.GradNorm(plain_source).double()
    optimizer, plain_optimizer = (
        torch.optim.LBFGS(each.parameters(), lr=0.1, max_iter=4, line_search_fn="strong_wolfe")
        for each in (network, plain)
    )
    worst, calls = 0.0, []
    for x, y in data(6):
        last = {}

        def closure(x=x, y=y, last=last):
            optimizer.zero_grad()
            balancer.zero_grad()
            last.update(copy.deepcopy(network.state_dict()))
            calls.append(1)
            total = balancer(losses_of(network, x, y))
            total.backward()
            return total

        def plain_closure(x=x, y=y):
            plain_optimizer.zero_grad()
            plain.eval()
            total = sum(w * loss for w, loss in zip(reference.weights, losses_of(plain, x, y).values(), strict=True))
            total.backward()
            return total

        optimizer.step(closure)
        plain_optimizer.step(plain_closure)
        balancer.step()
        after = copy.deepcopy(plain.state_dict())
        plain.load_state_dict(last)
        norms = reference.weights * reference_norms(entry_point, plain, x, y)
        ordinary(plain.train(), reference, x, y)
        reference.step()
        plain.load_state_dict(after)
        for found, expected in (
            (balancer.log()["gradient_norms"], norms),
            (balancer.weights, reference.weights),
            (vector(network), vector(plain)),
        ):
            worst = max(worst, matrix.deviation(found, expected))
    assert len(calls) > 12
    assert (balancer.weights - 1).abs().max() > 0.05
    matrix.exact(entry_point, "LBFGS, a closure that calls backward many times", worst)


def vector(network):
    """The parameters as one vector."""
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_an_average_of_the_model(entry_point):
    """It is a copy with a fork of its own: used in between, in any mode, it leaves the run alone."""
    averages = []

    def backward(network, balancer, x, y):
        if not averages:
            averages.append(AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)))
        (average,) = averages
        average.update_parameters(network)
        sum(losses_of(average, x, y).values()).backward()
        average.eval()
        with torch.no_grad():
            average(x)
        average.train()
        ordinary(network, balancer, x, y)

    found = largest_deviation(entry_point, data(8), backward)
    assert set(averages[0].module.state_dict()) == set(build(entry_point)[0].state_dict())
    matrix.exact(entry_point, "EMA of the model", found)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_gradient_clipping(entry_point):
    """Norms are those of before, although the network's gradients are clipped to a thousandth."""

    def between(network):
        assert nn.utils.clip_grad_norm_(network.parameters(), 1e-3) > 1
        nn.utils.clip_grad_value_(network.parameters(), 1e-4)

    matrix.exact(entry_point, "gradient clipping", largest_deviation(entry_point, data(8), between=between))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_no_optimizer_ever_holds_anything_of_the_balancer(entry_point):
    """Weight decay, clipping and schedules have nothing of it to touch, even where it is a part of the network."""
    network, source = build(entry_point)
    size = len(list(network.parameters()))
    network.balancer = eq.GradNorm(source).double()
    parameters = list(itertools.chain(network.parameters(), network.balancer.parameters()))
    assert len(parameters) == size
    optimizer = torch.optim.AdamW(parameters, lr=0.5, weight_decay=1.0)
    for x, y in data(3):
        network.zero_grad()
        ordinary(network, network.balancer, x, y)
        before = network.balancer.state_dict()["weights"].clone()
        nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
        optimizer.step()
        assert torch.equal(network.balancer.weights, before)
        network.balancer.step()
    assert network.balancer.skipped_steps == 0


def test_the_optimizer_may_step_before_or_after_the_balancer():
    weights = []
    for first in ("optimizer", "balancer"):
        network, source = build("Fork, by rule")
        balancer = eq.GradNorm(source).double()
        optimizer = torch.optim.SGD(network.parameters(), 1e-3)
        for x, y in data(6):
            optimizer.zero_grad()
            ordinary(network, balancer, x, y)
            for step in (optimizer.step, balancer.step) if first == "optimizer" else (balancer.step, optimizer.step):
                step()
        weights.append(balancer.weights)
    assert torch.equal(*weights)
