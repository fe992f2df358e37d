"""The two forms of the measurement: gradients, which add up over passes, and squared norms, which cost less and do not."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from helpers.networks import MLP, mse
from helpers.reference import close, task_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from helpers.training import batches

import equipoise as eq
from equipoise.engine import _rules, _source

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")
many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def one_step(network, balancer, parts):
    """Backward on each part; the norms of the weighted losses as they ought to be."""
    weights = balancer.weights.clone()
    summed = sum(
        task_gradients(mse(network(x), y).values(), network.fork.shared_layer.weight).flatten(1) for x, y in parts
    )
    network.fork.zero_grad()
    balancer.zero_grad()
    for x, y in parts:
        balancer(mse(network(x), y)).backward()
    balancer.step()
    return weights * summed.norm(dim=1) / len(parts)


@many
@given(
    samples=st.integers(1, 9),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    tasks=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_gram_matrices_give_the_norm_of_the_weight_gradient(samples, inputs, outputs, tasks, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64)
    for _ in range(tasks):
        g = torch.randn(samples, outputs, generator=generator, dtype=torch.float64)
        close(_rules.in_gram(x @ x.mT, g), (g.mT @ x).square().sum())


@many
@given(
    samples=st.integers(1, 2000), inputs=st.integers(1, 2000), outputs=st.integers(1, 2000), tasks=st.integers(1, 2000)
)
def test_the_form_with_fewer_multiplications_is_chosen(samples, inputs, outputs, tasks):
    gram = samples * inputs * samples + tasks * samples * samples * outputs
    assert _rules.gram_is_less(samples, inputs, outputs, tasks) == (gram < tasks * outputs * samples * inputs)


@pytest.mark.parametrize("gram", [True, False])
def test_either_form_is_exact_from_the_first_step_on(gram, monkeypatch):
    monkeypatch.setattr(_rules, "gram_is_less", lambda *sizes: gram)
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork)
    for data in batches(4, TASKS, units=[1, 10, 100]):
        expected = one_step(network, balancer, [data])
        close(balancer.log()["gradient_norms"], expected)


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.element_size())
        return made


def test_the_gradients_of_many_tasks_are_never_kept_together(monkeypatch):
    monkeypatch.setattr(_source, "_MANY", 0)  # as for a very large layer, not even in the first step
    tasks = [f"t{i}" for i in range(20)]
    network = nn.ModuleDict({"fork": eq.Fork(nn.Linear(30, 40), tasks), **{t: nn.Linear(40, 1) for t in tasks}})
    balancer = eq.GradNorm(network["fork"])
    for samples in (2, 300):  # by Gram matrices, and by one weight gradient after the other
        x = torch.randn(samples, 30)
        with Largest() as largest:
            features = network["fork"](x)
            balancer({t: network[t](features[t]).square().mean() for t in tasks}).backward()
            balancer.step()
        assert largest.numbers <= max(30 * 40, samples * 40)
    assert balancer.skipped_steps == 0


@pytest.mark.parametrize("how", ["micro-batches", "two calls of the fork"])
def test_a_step_of_several_passes_is_noticed(how):
    """The first such step after others is skipped and counted; from then on it is measured."""
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork, alpha=0.0)
    data = list(batches(12, TASKS, units=[1, 10, 100]))
    for step in range(3):
        one_step(network, balancer, data[step : step + 1])
    before = balancer.weights.clone()
    for step in range(3, 11, 2):
        parts = data[step : step + 2]
        if how == "micro-batches":
            expected = one_step(network, balancer, parts)
        else:
            losses = [mse(network(x), y) for x, y in parts]
            total = {t: losses[0][t] + losses[1][t] for t in TASKS}
            expected = balancer.weights * task_gradients(total.values(), network.fork.shared_layer.weight).flatten(
                1
            ).norm(dim=1)
            network.fork.zero_grad()
            balancer.zero_grad()
            losses = [mse(network(x), y) for x, y in parts]
            balancer({t: losses[0][t] + losses[1][t] for t in TASKS}).backward()
            balancer.step()
        assert balancer.skipped_steps == 1
        if step == 3:
            assert torch.equal(balancer.weights, before)
        else:
            close(balancer.log()["gradient_norms"], expected)
    assert not torch.equal(balancer.weights, before)


def test_accumulation_from_the_start_is_exact_in_every_step():
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork)
    data = list(batches(8, TASKS))
    for step in range(0, 8, 2):
        expected = one_step(network, balancer, data[step : step + 2])
        close(balancer.log()["gradient_norms"], expected)
    assert balancer.skipped_steps == 0


def test_gradients_are_there_for_who_asks():
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork)
    ((x, y),) = batches(1, TASKS)
    one_step(network, balancer, [(x, y)])
    balancer(mse(network(x), y)).backward()
    with pytest.raises(
        RuntimeError, match=r"only norms were measured; source.measure\(True, gradients=True\) keeps them"
    ):
        network.fork.task_gradients()
    balancer.zero_grad()
    network.fork.measure(True, gradients=True)
    losses = mse(network(x), y)
    expected = balancer.weights[:, None, None] * task_gradients(losses.values(), network.fork.shared_layer.weight)
    network.fork.reset()
    balancer(losses).backward()
    close(network.fork.task_gradients(), expected)


def test_half_precision_does_not_go_through_gram_matrices():
    x, g = torch.randn(2, 64, dtype=torch.bfloat16), torch.randn(2, 64, dtype=torch.bfloat16)
    assert not _rules.gram_pays(x, g, 3)
    assert _rules.gram_pays(x.float(), g.float(), 3)


def test_what_is_between_two_measurements_leaves_no_trace():
    """With ``every`` there is neither a probe in the graph nor a note for the step."""
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork, every=4)
    names = []
    for x, y in batches(8, TASKS):
        features = network.fork(network.trunk(x))
        total = balancer({t: (network.heads[t](features[t]) - y[t]).square().mean() for t in TASKS})
        names.append((type(next(iter(features.values())).grad_fn).__name__, type(total.grad_fn).__name__))
        total.backward()
        balancer.step()
    assert names[4] == ("ForkNodeBackward", "_TotalBackward")
    assert names[2:4] + names[5:] == [("AddmmBackward0", "DotBackward0")] * 5  # the first hands out names besides
