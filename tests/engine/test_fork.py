import copy
import pickle

import pytest
import torch
from helpers.measured import autograd_rows, norms_of, rows_of
from helpers.networks import LAYERS, MLP, ForkedNetwork
from helpers.reference import close
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

WEIGHTS = {"a": 0.5, "b": 2.0, "c": 0.5}


@pytest.fixture(params=LAYERS, name="case")
def _case(request):
    layer, shape = LAYERS[request.param]
    return ForkedNetwork(layer()), torch.randn(shape)


@pytest.mark.parametrize("accumulate", [False, True])
def test_norms_and_the_networks_gradients_are_those_of_autograd(case, accumulate):
    network, x = case
    plain = copy.deepcopy(network)
    weighted = [WEIGHTS[task] * loss for task, loss in plain.losses(x).items()]
    expected = autograd_rows(weighted, [plain.fork.shared_layer.weight])
    sum(weighted).backward()

    balancer = eq.Static(network.fork, WEIGHTS, every=1, accumulate=accumulate)
    balancer(network.losses(x)).backward()
    balancer.step()
    close(balancer.log()["gradient_norms"], expected.norm(dim=1))
    for (name, parameter), reference in zip(network.named_parameters(), plain.parameters(), strict=True):
        close(parameter.grad, reference.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["linear", "linear on sequences", "conv1d all at once", "conv2d plain", "conv3d stride"]
)
def test_the_fork_passes_gradcheck_and_gradgradcheck(name):
    layer, shape = LAYERS[name]
    fork = eq.Fork(layer(), ("a", "b"))
    _ = eq.Equal(fork, every=1)
    names = [n for n, _ in fork.named_parameters()]

    def function(x, *parameters):
        features = torch.func.functional_call(fork, dict(zip(names, parameters, strict=True)), (x,))
        assert features["a"] is not features["b"]
        return features["a"].sin(), features["b"].square()

    inputs = (torch.randn(shape, requires_grad=True), *(p.detach().requires_grad_() for p in fork.parameters()))
    many = "conv" in name  # entries of the Jacobian: along random directions then
    assert torch.autograd.gradcheck(function, inputs, fast_mode=many)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=many)


def test_norms_at_the_features():
    network, seen = ForkedNetwork(None), []
    network.fork.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(6, 4)
    expected = autograd_rows(network.losses(x).values(), seen).norm(dim=1)
    close(norms_of(network.fork, lambda: network.losses(x)), expected)


def test_a_task_without_labels_has_no_norm():
    network, x = ForkedNetwork(nn.Conv1d(4, 4, 3)), torch.randn(2, 4, 5)
    norms = norms_of(network.fork, lambda: network.losses(x) | {"b": None})
    assert norms[1].isnan()
    assert (norms[[0, 2]] > 0).all()


def test_a_frozen_trunk_is_measured():
    network, x = ForkedNetwork(nn.Linear(5, 4)), torch.randn(6, 5)
    network.scale.requires_grad_(False)
    expected = autograd_rows(network.losses(x).values(), [network.fork.shared_layer.weight])
    close(rows_of(network.fork, lambda: network.losses(x)), expected)


def test_a_frozen_weight_leaves_the_bias_and_a_frozen_layer_is_refused():
    network, x = ForkedNetwork(nn.Linear(5, 4)), torch.randn(6, 5)
    network.fork.shared_layer.weight.requires_grad_(False)
    expected = autograd_rows(network.losses(x).values(), [network.fork.shared_layer.bias])
    close(rows_of(network.fork, lambda: network.losses(x)), expected)
    network.fork.shared_layer.bias.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"Linear, must have a parameter that is trained; found that all of them are frozen"
    ):
        norms_of(network.fork, lambda: network.losses(x))


def test_there_is_exactly_one_backward_pass_and_nothing_is_retained():
    network, x = MLP(), torch.randn(4, 6)
    balancer = eq.Equal(network.fork, every=1)
    passes = []
    for step in range(6):
        if step == 5:  # those before are audited
            network.trunk[0].weight.register_hook(lambda gradient: passes.append(1))
        total = balancer({task: output.square().mean() for task, output in network(x).items()})
        total.backward()
        balancer.step()
    assert len(passes) == 1
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


def test_a_fork_that_is_not_measured_returns_the_output_unchanged():
    fork = eq.Fork(nn.Linear(3, 2), ("a", "b"))

    def unchanged():
        features = fork(torch.ones(1, 3))
        return features["a"] is features["b"] and type(features["a"].grad_fn).__name__ == "AddmmBackward0"

    assert unchanged()
    _ = eq.Equal(fork)
    assert unchanged()
    _ = eq.Equal(fork, every=1)
    assert not unchanged()
    fork.eval()
    assert unchanged()
    fork.train()
    with torch.no_grad():
        assert fork(torch.ones(1, 3))["a"].grad_fn is None


def test_the_fork_adds_no_parameter_and_no_state():
    layer = nn.Linear(3, 2)
    fork = eq.Fork(layer, ("a", "b"))
    _ = eq.GradNorm(fork)
    fork(torch.ones(1, 3))
    assert [id(p) for p in fork.parameters()] == [id(p) for p in layer.parameters()]
    assert list(fork.state_dict()) == ["shared_layer.weight", "shared_layer.bias"]
    assert not list(fork.buffers())


def test_an_alias_that_belongs_to_no_task_is_handed_out_and_not_measured():
    network = ForkedNetwork(nn.Linear(5, 4))
    network.fork = eq.Fork(network.fork.shared_layer, network.fork.tasks, others=("penalty",))
    balancer, x = eq.Equal(network.fork, every=1), torch.randn(6, 5)
    plain = copy.deepcopy(network).eval()

    def losses(network):
        features = network.fork(torch.tanh(network.scale * x))
        own = {task: (i + 1) * features[task].sin().square().mean() for i, task in enumerate(network.fork.tasks)}
        return own, 0.1 * features["penalty"].abs().sum()

    own, penalty = losses(plain)
    expected = autograd_rows(own.values(), [plain.fork.shared_layer.weight]).norm(dim=1)
    (sum(own.values()) + penalty).backward()
    own, penalty = losses(network)
    (balancer(own) + penalty).backward()
    balancer.step()
    close(balancer.log()["gradient_norms"], expected)
    for parameter, reference in zip(network.parameters(), plain.parameters(), strict=True):
        close(parameter.grad, reference.grad) if reference.grad is not None else None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_copy_in_the_middle_of_a_step_measures_by_itself(duplicate, accumulate):
    network, x = MLP(), torch.randn(4, 6)
    balancer = eq.Equal(network.fork, every=1, accumulate=accumulate)
    balancer({task: output.square().mean() for task, output in network(x).items()}).backward()
    twin, twin_balancer = duplicate((network, balancer))
    with pytest.raises(RuntimeError, match="found no backward pass"):
        twin_balancer.step()
    twin_losses = {task: 3 * output.square().mean() for task, output in twin(x).items()}
    twin_balancer(twin_losses).backward()
    twin_balancer.step()
    balancer.step()
    close(twin_balancer.log()["gradient_norms"], 3 * balancer.log()["gradient_norms"])


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fork_follows_its_layer_to_another_precision(dtype, accumulate):
    network = MLP()
    balancer = eq.Equal(network.fork, every=1, accumulate=accumulate)
    network.to(dtype)
    balancer.to(dtype)
    x = torch.randn(4, 6, dtype=dtype)
    losses = {task: output.square().mean() for task, output in network(x).items()}
    expected = autograd_rows(losses.values(), [network.fork.shared_layer.weight]).float().norm(dim=1)
    balancer(losses).backward()
    balancer.step()
    norms = balancer.log()["gradient_norms"]
    assert torch.finfo(norms.dtype).bits >= 32
    close(norms.float(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize(
    ("layer", "tasks", "error", "message"),
    [
        (nn.Linear(2, 2), (), ValueError, "at least one task"),
        (nn.Linear(2, 2), ("a", "b", "a"), ValueError, "'a' more than once"),
        (nn.Linear(2, 2), ("a", ""), ValueError, "tasks must not be empty strings"),
        (nn.Linear(2, 2), ("a", 1), TypeError, "tasks must be strings; found 1 of type int"),
        (nn.Linear(2, 2), "ab", TypeError, "tasks must be a sequence of names; found 'ab' of type str"),
        (nn.Linear(2, 2), {"a", "b"}, TypeError, "found a set, whose order may differ"),
        ("trunk.3", ("a",), TypeError, "shared_layer must be a module or None; found 'trunk.3' of type str"),
    ],
)
def test_a_fork_refuses(layer, tasks, error, message):
    with pytest.raises(error, match=message):
        eq.Fork(layer, tasks)


def test_a_layer_without_a_parameter_is_refused_where_it_is_to_be_measured():
    fork = eq.Fork(nn.ReLU(), ("a",))
    _ = eq.Equal(fork)
    with pytest.raises(
        ValueError, match="ReLU, must have a parameter that is trained; found that it has no parameters"
    ):
        eq.GradNorm(fork)


def test_an_alias_has_a_name_of_its_own():
    with pytest.raises(ValueError, match="'a' more than once"):
        eq.Fork(nn.Linear(2, 2), ("a", "b"), others=("a",))
