"""torch.func, functional_call and other derivatives, with a balancer at the fork and without one."""

import pytest
import torch
from helpers.reference import close
from helpers.situation import TASKS, Situation, batch, step_exactly
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

import equipoise as eq

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # of forward mode itself
]
BALANCED = pytest.mark.parametrize("balanced", [False, True])
ENTRY_POINT = pytest.mark.parametrize("entry_point", ["fork", "features", "attach"])


class Plain(nn.Module):
    """The same network without us, with the same parameters."""

    def __init__(self, net):
        super().__init__()
        self.shared, self.heads = net.shared, net.heads

    def forward(self, x):
        features = self.shared(x)
        return {task: self.heads[task](features) for task in TASKS}


def built(entry_point, balanced):
    """The network, its plain twin, and the balancer."""
    net = Situation(entry_point)
    return net, Plain(net), eq.GradNorm(net.source) if balanced else None


def then_steps_exactly(net, balancer):
    """No transform has left anything behind."""
    if balancer is not None:
        for _ in range(2):
            if net.entry_point == "features":
                balancer(net.losses(batch())).backward()
                balancer.step()
            else:
                step_exactly(balancer, net.losses(batch()), net.shared.weight)
        assert balancer.log()["audit"] < 1e-12


@BALANCED
@ENTRY_POINT
@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobians_of_the_network(entry_point, balanced, jacobian):
    net, plain, balancer = built(entry_point, balanced)
    x = torch.randn(5)
    for _ in range(2):
        close(jacobian(lambda x: net(x)["a"])(x), jacobian(lambda x: plain(x)["a"])(x))
    then_steps_exactly(net, balancer)


@BALANCED
@ENTRY_POINT
def test_gradients_of_each_sample(entry_point, balanced):
    net, plain, balancer = built(entry_point, balanced)
    x = batch()

    def of_each_sample(model):
        def loss(parameters, x):
            return sum(output.square().mean() for output in functional_call(model, parameters, (x,)).values())

        return vmap(grad(loss), (None, 0))(dict(model.named_parameters()), x)

    for found, expected in zip(of_each_sample(net).values(), of_each_sample(plain).values(), strict=False):
        assert found.shape[0] == len(x)
        assert found.isfinite().all()
        assert expected.isfinite().all()
    close(of_each_sample(net)["heads.a.weight"], of_each_sample(plain)["heads.a.weight"])
    then_steps_exactly(net, balancer)


@BALANCED
@ENTRY_POINT
def test_vmap_and_forward_mode(entry_point, balanced):
    net, plain, balancer = built(entry_point, balanced)
    x = batch()
    close(vmap(lambda x: net(x)["b"])(x), plain(x)["b"])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        close(forward_ad.unpack_dual(net(dual)["b"]).tangent, forward_ad.unpack_dual(plain(dual)["b"]).tangent)
    then_steps_exactly(net, balancer)


@BALANCED
@ENTRY_POINT
def test_second_derivatives_and_the_older_interface(entry_point, balanced):
    net, plain, balancer = built(entry_point, balanced)
    x = torch.randn(5)

    def energy(model):
        return lambda x: model(x)["a"].square().sum()

    close(torch.autograd.functional.hessian(energy(net), x), torch.autograd.functional.hessian(energy(plain), x))
    close(torch.autograd.functional.jacobian(energy(net), x), torch.autograd.functional.jacobian(energy(plain), x))
    then_steps_exactly(net, balancer)


@pytest.mark.parametrize("transform", [grad, jacrev])
def test_a_transform_through_the_total_loss_differentiates_the_weighted_sum_and_updates_nothing(transform):
    net, plain, balancer = built("fork", True)
    step_exactly(balancer, net.losses(batch()), net.shared.weight)
    x, weights = batch(), balancer.weights.clone()

    def total(parameters):
        outputs = functional_call(net, parameters, (x,))
        return balancer({task: outputs[task].square().mean() for task in TASKS})

    def expected(parameters):
        outputs = functional_call(plain, parameters, (x,))
        return sum(weight * outputs[task].square().mean() for task, weight in zip(TASKS, weights, strict=True))

    found = transform(total)(dict(net.named_parameters()))
    wanted = transform(expected)(dict(plain.named_parameters()))
    close(found["heads.b.weight"], wanted["heads.b.weight"])
    close(found["source.shared_layer.weight"], wanted["shared.weight"])
    close(balancer.weights, weights)
    with pytest.raises(RuntimeError, match="found no backward pass"):
        balancer.step()
    then_steps_exactly(net, balancer)


def test_vmap_over_the_total_loss():
    net, plain, balancer = built("fork", True)
    x = batch()

    def total(x):
        outputs = net(x)
        return balancer({task: outputs[task].square().mean() for task in TASKS})

    outputs = plain(x)
    close(vmap(total)(x), sum(outputs[task].square().mean(1) for task in TASKS))
    then_steps_exactly(net, balancer)


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("entry_point", ["fork", "attach"])
def test_functional_call_is_measured_at_the_parameters_it_was_given(entry_point, accumulate, leaves):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source, accumulate=accumulate)
    name = "source.shared_layer.weight" if entry_point == "fork" else "layer.weight"
    for _ in range(3):
        own = {name: 2 * parameter for name, parameter in net.named_parameters()}
        given = {name: value.detach().requires_grad_() for name, value in own.items()} if leaves else own
        outputs = functional_call(net, given, (batch(),))
        step_exactly(balancer, {task: outputs[task].square().mean() for task in TASKS}, given[name])


def test_a_loss_that_goes_through_a_transform_is_refused_with_the_remedy():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    x = torch.randn(5)
    losses = {task: jacrev(lambda x, task=task: net(x)[task])(x).square().mean() for task in TASKS}
    balancer(losses).backward()
    with pytest.raises(RuntimeError, match=r"task 'a': no gradient .* torch\.func, where PerLoss measures"):
        balancer.step()
    net = Situation("per loss")
    balancer = eq.GradNorm(net.source)
    losses = {task: jacrev(lambda x, task=task: net(x)[task])(x).square().mean() for task in TASKS}
    step_exactly(balancer, losses, net.shared.weight)
