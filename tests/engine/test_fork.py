import copy
import pickle

import pytest
import torch
from helpers.networks import LAYERS, MLP, ForkedNetwork
from helpers.reference import close, task_gradients
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(params=LAYERS, name="case")
def _case(request):
    layer, shape = LAYERS[request.param]
    network = ForkedNetwork(layer())
    network.fork.measure(True)
    return network, torch.randn(shape)


def test_task_gradients_and_the_networks_gradients_are_those_of_autograd(case):
    network, x = case
    weights = {"a": 0.5, "b": 2.0, "c": 1.25}
    expected = task_gradients(
        [weights[t] * loss for t, loss in network.losses(x).items()], network.fork.shared_layer.weight
    )

    plain = copy.deepcopy(network)
    plain.fork.measure(False)
    sum(weights[t] * loss for t, loss in plain.losses(x).items()).backward()

    network.fork.reset()
    sum(weights[t] * loss for t, loss in network.losses(x).items()).backward()
    close(network.fork.task_gradients(), expected)
    close(network.fork.gradient_norms(), expected.flatten(1).norm(dim=1))
    for (name, parameter), reference in zip(network.named_parameters(), plain.parameters(), strict=True):
        close(parameter.grad, reference.grad, msg=lambda text, name=name: f"{name}: {text}")
    close(network.fork.shared_layer.weight.grad, expected.sum(0))


@pytest.mark.parametrize(
    "name", ["linear", "linear on sequences", "conv1d all at once", "conv2d plain", "conv3d stride"]
)
def test_the_fork_passes_gradcheck_and_gradgradcheck(name):
    layer, shape = LAYERS[name]
    fork = eq.Fork(layer(), ("a", "b"))
    fork.measure(True)
    names = [n for n, _ in fork.named_parameters()]

    def function(x, *parameters):
        features = torch.func.functional_call(fork, dict(zip(names, parameters, strict=True)), (x,))
        return features["a"].sin(), features["b"].square()

    inputs = (torch.randn(shape, requires_grad=True), *(p.detach().requires_grad_() for p in fork.parameters()))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_norms_at_the_features():
    network = ForkedNetwork(None)
    network.fork.measure(True)
    x = torch.randn(6, 4)
    seen = []
    network.fork.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    losses = network.losses(x)
    expected = task_gradients(losses.values(), seen[0]).flatten(1).norm(dim=1)
    network.fork.reset()
    sum(losses.values()).backward()
    close(network.fork.gradient_norms(), expected)
    with pytest.raises(RuntimeError, match="only the norms"):
        network.fork.task_gradients()


def test_gradients_accumulate_over_backward_passes_and_calls():
    network, x = ForkedNetwork(nn.Linear(5, 4)), torch.randn(6, 5)
    network.fork.measure(True)
    whole = {t: (network.losses(x[:2])[t] + network.losses(x[2:])[t]) for t in network.fork.tasks}
    expected = task_gradients(whole.values(), network.fork.shared_layer.weight)
    network.fork.reset()
    for part in (x[:2], x[2:]):
        sum(network.losses(part).values()).backward()
    close(network.fork.task_gradients(), expected)
    network.fork.reset()
    sum(whole.values()).backward()  # one backward pass through two calls of the fork
    close(network.fork.task_gradients(), expected)


def test_a_task_that_is_left_out_has_a_zero_row():
    network, x = ForkedNetwork(nn.Conv1d(4, 4, 3)), torch.randn(2, 4, 5)
    network.fork.measure(True)
    losses = network.losses(x)
    (losses["a"] + losses["c"]).backward()
    norms = network.fork.gradient_norms()
    assert norms[1] == 0
    assert norms[0] > 0
    assert norms[2] > 0


def test_a_frozen_layer_and_a_frozen_trunk_are_still_measured():
    network, x = ForkedNetwork(nn.Linear(5, 4)), torch.randn(6, 5)
    network.fork.measure(True)
    expected = task_gradients(network.losses(x).values(), network.fork.shared_layer.weight)
    network.fork.reset()
    for parameter in (network.scale, *network.fork.parameters()):
        parameter.requires_grad_(False)
    sum(network.losses(x).values()).backward()
    close(network.fork.task_gradients(), expected)


def test_there_is_exactly_one_backward_pass_and_nothing_is_retained():
    network, x = MLP(), torch.randn(4, 6)
    network.fork.measure(True)
    passes = []
    network.trunk[0].weight.register_hook(lambda gradient: passes.append(1))
    total = sum(output.square().mean() for output in network(x).values())
    total.backward()
    assert len(passes) == 1
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


def test_a_fork_that_is_not_measuring_is_nothing():
    fork = eq.Fork(nn.Linear(3, 2), ("a", "b"))
    fork(torch.ones(1, 3))  # the first time, heads that work in place are caught
    features = fork(torch.ones(1, 3))
    assert features["a"] is features["b"]
    assert type(features["a"].grad_fn).__name__ == "AddmmBackward0"
    fork.measure(True)
    with torch.no_grad():
        assert fork(torch.ones(1, 3))["a"].grad_fn is None


def test_the_fork_adds_no_parameter_and_no_state():
    layer = nn.Linear(3, 2)
    fork = eq.Fork(layer, ("a", "b"))
    assert [id(p) for p in fork.parameters()] == [id(p) for p in layer.parameters()]
    assert list(fork.state_dict()) == ["shared_layer.weight", "shared_layer.bias"]
    assert not list(fork.buffers())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_measures_by_itself(duplicate):
    network, x = MLP(), torch.randn(4, 6)
    balancer = eq.GradNorm(network.fork)
    sum(network(x)[t].square().mean() for t in network.fork.tasks).backward()
    twin, twin_balancer = duplicate((network, balancer))
    assert twin_balancer._source is twin.fork
    assert not twin.fork.measured
    twin_balancer({t: o.square().mean() for t, o in twin(x).items()}).backward()
    assert twin.fork.measured
    twin_balancer.step()


def test_the_fork_follows_its_layer_to_another_precision():
    network = MLP().to(torch.float32)
    network.fork.measure(True)
    sum(o.square().mean() for o in network(torch.randn(4, 6, dtype=torch.float32)).values()).backward()
    assert network.fork.gradient_norms().dtype == torch.float32
    network = MLP().to(torch.bfloat16)
    network.fork.measure(True)
    sum(o.square().mean() for o in network(torch.randn(4, 6, dtype=torch.bfloat16)).values()).backward()
    assert network.fork.gradient_norms().dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "tasks", "error", "message"),
    [
        (nn.Linear(2, 2), (), ValueError, "at least one task"),
        (nn.Linear(2, 2), ("a", "b", "a"), ValueError, "'a' more than once"),
        (nn.Linear(2, 2), ("a", 1), TypeError, "must be a string; found 1"),
        (nn.Linear(2, 2), "ab", TypeError, "found the string 'ab'"),
        (nn.ReLU(), ("a",), ValueError, "ReLU must have a parameter that is trained"),
        ("trunk.3", ("a",), TypeError, "found str"),
    ],
)
def test_a_fork_refuses(layer, tasks, error, message):
    with pytest.raises(error, match=message):
        eq.Fork(layer, tasks)


def test_reading_before_a_backward_pass_is_refused():
    with pytest.raises(RuntimeError, match="nothing was measured"):
        eq.Fork(nn.Linear(2, 2), ("a",)).gradient_norms()
