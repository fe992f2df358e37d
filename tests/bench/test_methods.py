"""What is timed does what it is named after."""

from functools import partial

import pytest
import torch
from helpers.reference import close

from equipoise.bench import case as cases
from equipoise.bench import methods
from equipoise.bench.case import CannotRunError, Case
from equipoise.bench.methods import METHODS
from equipoise.bench.workloads import MLP, Columns, TransformerBlock

CPU = torch.device("cpu")
PEERS = [name for name, method in METHODS.items() if method.package]


@pytest.fixture(autouse=True)
def _moving(double, monkeypatch):
    monkeypatch.setattr(cases, "LEARNING_RATE", 0.1)


def train(method, steps=60, workload=None):
    case = Case(workload or MLP(num_tasks=4, width=8, batch_size=16), CPU)
    with torch.no_grad():  # tasks of different scale, as there is nothing to balance otherwise
        for i, target in enumerate(case.targets.values()):
            target.mul_(1 + i)
    step = METHODS[method].build(case)
    weights = [step() for _ in range(steps)][-1]
    return weights, torch.cat([p.detach().flatten() for p in case.network.parameters()])


@pytest.mark.parametrize("num_tasks", [4, 9])  # one by one, and in batches
def test_columns_and_the_paper_read_literally_are_one_method(num_tasks):
    columns = Columns(num_tasks=num_tasks, width=8, batch_size=16)
    weights, network = train("gradnorm", workload=columns)
    expected_weights, expected_network = train("paper", workload=columns)
    assert (expected_weights - 1).abs().max() > 0.2
    close(weights, expected_weights, rtol=1e-4)
    close(network, expected_network, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["gradnorm", "per_loss", "paper_backward"])
def test_ours_and_the_paper_read_literally_are_one_method(method):
    weights, network = train(method)
    expected_weights, expected_network = train("paper")
    assert (expected_weights - 1).abs().max() > 0.2
    # Adam's epsilon is in the unit of the gradients in ours, and 1e-8 in the literal reading.
    close(weights, expected_weights, rtol=1e-6)
    close(network, expected_network, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "workload", "period"),
    [
        ("gradnorm_every_10", MLP(num_tasks=3, width=8, batch_size=16), 10),
        ("gradnorm_every_10", Columns(num_tasks=3, width=8, batch_size=16), 10),
        ("gradnorm_every_100", Columns(num_tasks=3, width=8, batch_size=16), 100),
    ],
)
def test_the_weights_move_once_in_a_period(method, workload, period):
    step = METHODS[method].build(Case(workload, CPU))
    weights = torch.stack([torch.ones(3), *(step().clone() for _ in range(2 * period + 1))])
    moved = (weights.diff(dim=0) != 0).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [0, period, 2 * period]
    assert METHODS[method].period == period


def test_plain_is_gradient_descent_on_the_sum():
    _, found = train("plain", steps=3)
    case = Case(MLP(num_tasks=4, width=8, batch_size=16), CPU)
    for _ in range(3):
        outputs = case.network(case.inputs)
        total = sum(((1 + i) * y - outputs[t]).square().mean() for i, (t, y) in enumerate(case.targets.items()))
        gradients = torch.autograd.grad(total, list(case.network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(case.network.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    close(found, torch.cat([p.detach().flatten() for p in case.network.parameters()]))


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("kind", [MLP, Columns])
def test_peers_step(method, kind):
    if METHODS[method].missing:
        pytest.skip(METHODS[method].missing)
    workload = kind(num_tasks=3, width=8, batch_size=4)
    torch.set_default_dtype(torch.float32)  # the weights of gradnorm-pytorch are of this type
    sizes = [p.numel() for p in Case(workload, CPU).network.parameters()]
    _, expected = train("plain", steps=2, workload=workload)
    _, found = train(method, steps=2, workload=workload)
    before = torch.cat([p.detach().flatten() for p in Case(workload, CPU).network.parameters()])
    assert found.isfinite().all()
    for old, plain, new in zip(*(each.split(sizes) for each in (before, expected, found)), strict=True):
        assert bool((new != old).any()) == bool((plain != old).any())


@pytest.mark.parametrize("method", PEERS)
def test_a_peer_that_is_not_installed_is_left_out(method, monkeypatch):
    assert METHODS[method].refusal(MLP()) == METHODS[method].missing
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    assert METHODS[method].refusal(MLP()).endswith('is not installed: pip install "equipoise[lab,bench]"')


@pytest.mark.parametrize("setup", ["compiled", "ddp"])
def test_in_other_set_ups_ours_and_the_floor_are_compared(setup):
    run = [name for name, method in METHODS.items() if method.refusal(MLP(setup=setup)) is None]
    assert run == ["plain", "gradnorm", "gradnorm_every_10"]
    assert "neither compiled nor on several processes" in METHODS["paper"].refusal(MLP(setup=setup))


def test_a_compiled_case_is_compiled(monkeypatch):
    asked = []

    def compile_(module, **how):
        asked.append(how)
        return torch.nn.Sequential(module)

    monkeypatch.setattr(torch, "compile", compile_)
    METHODS["gradnorm"].build(Case(MLP(width=8, setup="compiled"), CPU))()
    assert asked == [{"fullgraph": True}]


@pytest.mark.parametrize(
    ("method", "workload", "said"),
    [
        ("gradnorm_every_100", MLP(), "only where hundreds of tasks are columns of one matrix"),
        ("per_loss", Columns(num_tasks=3), "gradnorm measures with PerLoss there"),
        ("libmtl", MLP(), "cannot be imported unmodified"),
        ("gradnorm_pytorch", TransformerBlock(), "one parameter"),
    ],
)
def test_what_cannot_be_run_says_why(method, workload, said):
    if METHODS[method].missing:
        pytest.skip(METHODS[method].missing)
    with pytest.raises(CannotRunError, match=said):
        METHODS[method].build(Case(workload, CPU))


def test_every_method_is_described():
    assert all(method.line and isinstance(method.build, (partial, type(train))) for method in METHODS.values())
