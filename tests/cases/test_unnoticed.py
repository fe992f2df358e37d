"""Situations in which a wrong number, or none, once went unnoticed."""

import warnings

import pytest
import torch
from helpers import processes
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.situation import TASKS, Situation, batch, gradient, norms, one_step
from helpers.training import batches
from torch import distributed, nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
ABC = ("a", "b", "c")
LACKS = {"each another": [("c",), ("b",)], "one of them": [(), ("c",)], "one has none": [ABC, ()]}


def balanced_first(rank, world, lacks, at_features):
    """The weights that are balanced from the first batch, and those of the averaged gradients."""
    processes.connect()
    torch.manual_seed(0)
    network = MLP(ABC)
    if at_features:
        network.fork = eq.Fork(None, ABC)
    balancer = eq.GradNorm(network.fork, initial_weights="balanced")
    ((x, y),) = batches(1, ABC, units=[1.0, 10.0, 100.0])
    rows = slice(rank, None, world)
    below = network.trunk(x[rows])
    outputs = {task: network.heads[task](own) for task, own in network.fork(below).items()}
    losses = mse(outputs, {task: target[rows] for task, target in y.items()})
    where = below if at_features else network.fork.shared_layer.weight
    own = {task: gradient(loss, [where]).tolist() for task, loss in losses.items() if task not in lacks[rank]}
    found = [None] * world
    distributed.all_gather_object(found, own)
    balancer({task: None if task in lacks[rank] else loss for task, loss in losses.items()})
    inverse = {}
    for task in ABC:
        parts = [torch.tensor(each[task]) for each in found if task in each]
        inverse[task] = world / (torch.cat(parts) if at_features else sum(parts)).norm()
    mean = sum(inverse.values()) / len(inverse)
    return balancer.weights, torch.stack([inverse[task] / mean for task in ABC])


@pytest.mark.slow
@pytest.mark.parametrize("at_features", [False, True])
@pytest.mark.parametrize("lacks", LACKS.values(), ids=LACKS)
def test_weights_are_balanced_from_the_gradients_of_all_processes(lacks, at_features):
    """Each sample has features of its own, so that the squares at them add up."""
    for weights, expected in processes.run(balanced_first, 2, lacks, at_features):
        close(weights, expected)


def guarded(net, x):
    """Losses whose gradients are kept within bounds that they never meet."""
    outputs = {}
    for task, own in net.features(x).items():
        hidden = own.tanh()
        hidden.register_hook(lambda g: g.clamp(-1, 1))
        outputs[task] = net.heads[task](hidden)
    return {task: outputs[task].square().mean() for task in TASKS}


@pytest.mark.parametrize("entry_point", ["fork", "per loss"])
def test_a_bound_on_the_gradients_that_is_never_met_is_not_met_by_the_audit(entry_point):
    net = Situation(entry_point)
    report = eq.check(net, eq.GradNorm(net.source), lambda x: guarded(net, x), batch())
    assert report.ok
    balancer, x = eq.GradNorm(net.source), batch()
    losses = guarded(net, x)
    expected = norms(losses, net.shared.weight)
    one_step(balancer, losses)
    close(balancer.log()["gradient_norms"], expected)
    close(eq.check(net, balancer, lambda x: guarded(net, x), x).gradient_norms, balancer.weights * expected)


def test_an_optimizer_that_steps_while_the_model_is_in_eval_is_warned_of():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    balancer.step_after(optimizer)
    net.eval()
    balancer(net.losses(batch())).backward()
    with pytest.warns(
        UserWarning, match=r"while the model was in eval\(\), where GradNorm moves no weight: call model.train"
    ):
        optimizer.step()
    net.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer(net.losses(batch())).backward()
        net.eval()
        net.losses(batch())  # validation between two steps
        optimizer.step()
    assert not torch.equal(balancer.weights, torch.ones(2))


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_parameter_that_is_listed_twice_counts_once(accumulate):
    net = Situation("per loss")
    source = eq.PerLoss([net.shared.weight, net.shared.bias, net.shared.weight], TASKS)
    balancer = eq.GradNorm(source, accumulate=accumulate)
    losses = net.losses(batch())
    expected = norms(losses, net.shared.parameters())
    one_step(balancer, losses)
    close(balancer.log()["gradient_norms"], expected)
    assert [*source.shared_parameters] == ["parameters[0]", "parameters[1]"]


@pytest.mark.parametrize("below", [torch.float32, torch.bfloat16])
def test_half_precision_below_the_shared_layer_does_not_widen_the_tolerance(below):
    net, trunk = Situation().float(), nn.Linear(3, 5).to(below)
    balancer = eq.GradNorm(net.source)
    losses = net.losses(trunk(torch.randn(8, 3, dtype=below)).float())
    (balancer(losses) + 0.1 * losses["a"]).backward()
    with pytest.raises(ValueError, match="task 'a': besides its loss, something else"):
        balancer.step()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by Dynamo
def test_a_forward_pass_beside_the_compiled_network_is_no_way_past_the_fork():
    torch.compiler.reset()
    net = Situation()
    balancer, compiled = eq.GradNorm(net.source), torch.compile(net, backend="aot_eager")
    for _ in range(5):
        net(batch())  # its result is not used
        one_step(balancer, {task: output.square().mean() for task, output in compiled(batch()).items()})
    torch.compiler.reset()


def test_a_second_step_is_refused_where_the_balancer_is_a_weighted_sum_too():
    net = Situation()
    balancer = eq.GradNorm(net.source, every=3)
    for _ in range(4):
        one_step(balancer, net.losses(batch()))
        with pytest.raises(RuntimeError, match="no backward pass|no losses have been weighed"):
            balancer.step()


@pytest.mark.parametrize("entry_point", ["fork", "per loss"])
def test_norms_are_positive_where_the_total_loss_is_multiplied_with_a_negative_number(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    for _ in range(4):
        losses, weights = net.losses(batch()), balancer.weights.clone()
        expected = weights * norms(losses, net.shared.weight)
        (-balancer(losses)).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], expected)


@pytest.mark.parametrize("at_features", [False, True])
def test_retained_gradients_at_the_fork_are_those_of_the_backward_pass_alone(at_features):
    """``retain_grad`` adds up, and the audit of the first step differentiates as well."""
    torch.manual_seed(0)
    network = MLP(ABC)
    if at_features:
        network.fork = eq.Fork(None, ABC)
    balancer = eq.GradNorm(network.fork)
    ((x, y),) = batches(1, ABC)
    kept = {}

    def keep(name, tensor):
        tensor.retain_grad()
        kept[name] = tensor

    features = network.trunk(x)
    keep("trunk", features)
    if not at_features:
        network.fork.shared_layer.register_forward_hook(lambda layer, given, found: keep("layer", found))
    own = network.fork(features)
    keep("alias", own["b"])
    losses = mse({task: network.heads[task](own[task]) for task in ABC}, y)
    balancer(losses)
    assert [name for name, tensor in kept.items() if tensor.grad is not None] == []
