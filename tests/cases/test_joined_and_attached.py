"""Models that join what their heads give, models that are attached more than once, forks shared by balancers, and refusals."""

import pytest
import torch
from helpers.reference import close
from helpers.situation import SCALES, TASKS, Situation, batch, step_exactly
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


# ---- outputs and losses that are joined and taken apart again ----


def by_cat(first, second):
    joined = torch.cat([first, second], 1)
    return {"a": joined[:, 0].square().mean(), "b": 3 * joined[:, 1].square().mean()}


def by_stack(first, second):
    joined = torch.stack([first, second])
    return {"a": joined[0].square().mean(), "b": 3 * joined[1].square().mean()}


def by_assignment(first, second):
    joined = torch.zeros(len(first), 2)
    joined[:, 0], joined[:, 1] = first[:, 0], second[:, 0]
    return {"a": joined[:, 0].square().mean(), "b": 3 * joined[:, 1].square().mean()}


def by_scatter(first, second):
    index = torch.zeros(len(first), 1, dtype=torch.long)
    joined = torch.zeros(len(first), 2).scatter(1, index, first).scatter(1, index + 1, second)
    return {"a": joined[:, 0].square().mean(), "b": 3 * joined[:, 1].square().mean()}


def by_masks(first, second):
    errors = torch.cat([first, second], 1).square()
    masks = torch.eye(2)
    return {"a": (errors * masks[0]).sum(), "b": (errors * masks[1]).sum()}


def by_stacked_losses(first, second):
    losses = torch.stack([first.square().mean(), second.square().mean()]) * torch.tensor([1.0, 3.0])
    return dict(zip(TASKS, losses.unbind(), strict=True))


def by_dispatch(first, second):
    """As one loss of each row, by the task of the row."""
    outputs = torch.where((torch.arange(len(first)) % 2 == 0).unsqueeze(1), first, second)
    return {"a": outputs[::2].square().mean(), "b": 3 * outputs[1::2].square().mean()}


JOIN = [by_cat, by_stack, by_assignment, by_scatter, by_masks, by_stacked_losses, by_dispatch]


def joined(net, join):
    outputs = net(batch())
    return join(outputs["a"], outputs["b"])


@pytest.mark.parametrize("join", JOIN, ids=lambda join: join.__name__)
@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss"])
def test_outputs_that_are_joined_are_measured_exactly(entry_point, join):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    for step in range(5):
        if step == 3:
            balancer(joined(net, join) | {"b": None}).backward()  # b's alias gets a gradient of zeros
            balancer.step()
            assert balancer.log()["gradient_norms"].isnan().tolist() == [False, True]
        else:
            step_exactly(balancer, joined(net, join), net.shared.weight)


@pytest.mark.parametrize("entry_point", ["fork", "attach"])
def test_losses_in_one_tensor(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    for _ in range(3):
        losses = net.losses(batch())
        expected = balancer.weights.clone() * torch.stack(
            [torch.autograd.grad(loss, net.shared.weight, retain_graph=True)[0].norm() for loss in losses.values()]
        )
        balancer(torch.stack([*losses.values()])).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], expected)


def exchanged(first, second):
    return {"a": second.square().mean(), "b": first.square().mean()}


def competing(first, second):
    shares = torch.cat([first, second], 1).softmax(1)
    return {"a": shares[:, 0].square().mean(), "b": 3 * shares[:, 1].square().mean()}


@pytest.mark.parametrize("join", [exchanged, competing])
@pytest.mark.parametrize("entry_point", ["fork", "attach"])
def test_outputs_that_are_mixed_are_refused_and_left_to_per_loss(entry_point, join):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    balancer(joined(net, join)).backward()
    with pytest.raises(ValueError, match="task 'a': its loss must depend on .* alone; found that it reads .*PerLoss"):
        balancer.step()
    net = Situation("per loss")
    balancer = eq.GradNorm(net.source)
    for _ in range(2):
        step_exactly(balancer, joined(net, join), net.shared.weight)


# ---- a mixture of experts with a gate for each task ----


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(5, 6) for _ in range(3))

    def forward(self, x):
        return torch.stack([expert(x) for expert in self.each], 1)


class Mixture(nn.Module):
    """The gates read the trunk, which lies below the experts."""

    def __init__(self):
        super().__init__()
        self.trunk, self.experts = nn.Linear(5, 5), Experts()
        self.gates = nn.ModuleDict({task: nn.Linear(5, 3) for task in TASKS})
        self.towers = nn.ModuleDict({task: nn.Linear(6, 1) for task in TASKS})

    def forward(self, x, fork=None):
        x = self.trunk(x).tanh()
        experts = dict.fromkeys(TASKS, self.experts(x)) if fork is None else fork(x)
        mixed = {task: (experts[task] * self.gates[task](x).softmax(1).unsqueeze(2)).sum(1) for task in TASKS}
        return {task: SCALES[task] * self.towers[task](mixed[task]).square().mean() for task in TASKS}


@pytest.mark.parametrize("shared", ["experts", "trunk"])
def test_a_mixture_of_experts_is_attached_at_its_towers(shared):
    net = Mixture()
    balancer = eq.GradNorm(eq.attach(net, shared, {task: f"towers.{task}" for task in TASKS}))
    for _ in range(3):
        losses = net(batch())
        step_exactly(balancer, losses, net.trunk.weight if shared == "trunk" else net.experts.parameters())


def test_a_fork_around_the_experts():
    net = Mixture()
    fork = eq.Fork(net.experts, TASKS)
    balancer = eq.GradNorm(fork)
    for _ in range(3):
        step_exactly(balancer, net(batch(), fork), net.experts.parameters())


# ---- attached more than once ----


def test_attaching_again_takes_the_place_of_the_first_time():
    net = Situation("attach")
    heads = {task: f"heads.{task}" for task in TASKS}
    first = eq.GradNorm(net.source)
    for _ in range(5):
        last = eq.GradNorm(eq.attach(net, "layer", heads))
    assert [len(head._forward_pre_hooks) for head in net.heads.values()] == [1, 1]
    for _ in range(2):
        step_exactly(last, net.losses(batch()), net.layer.weight)
    first(net.losses(batch())).backward()
    with pytest.raises(RuntimeError, match="task 'a': .* attached anew: make the balancer from that attach"):
        first.step()


def test_attaching_again_at_another_layer():
    net = Mixture()
    heads = {task: f"towers.{task}" for task in TASKS}
    eq.GradNorm(eq.attach(net, "experts", heads))
    balancer = eq.GradNorm(eq.attach(net, "trunk", heads))
    for _ in range(2):
        step_exactly(balancer, net(batch()), net.trunk.weight)


@pytest.mark.parametrize("heads", [{"a": "heads.a", "c": "heads.c"}, {"x": "heads.a", "y": "heads.b"}])
def test_a_head_that_is_attached_for_other_tasks_is_refused(heads):
    net = Situation("attach", others=("c",))
    with pytest.raises(ValueError, match=r"attached already, for the tasks 'a', 'b': call remove\(\)"):
        eq.attach(net, "layer", heads)
    balancer = eq.GradNorm(net.source)
    step_exactly(balancer, net.losses(batch()), net.layer.weight)
    net.source.remove()
    balancer = eq.GradNorm(eq.attach(net, "layer", heads))
    outputs = net(batch())
    losses = {task: outputs[path.removeprefix("heads.")].square().mean() for task, path in heads.items()}
    step_exactly(balancer, losses, net.layer.weight)


# ---- one fork, two balancers ----


@pytest.mark.parametrize(
    "other", [eq.Equal, lambda source: eq.Uncertainty(source, "regression")], ids=["Equal", "Uncertainty"]
)
@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss"])
def test_a_second_balancer_that_measures_nothing_disturbs_nobody(entry_point, other):
    net = Situation(entry_point)
    first, second = eq.GradNorm(net.source), other(net.source)
    for _ in range(6):
        step_exactly(first, net.losses(batch()), net.shared.weight)
        second(net.losses(batch())).backward()
        second.step()
    assert (first.weights - 1).abs().min() > 0.05


@pytest.mark.parametrize("entry_point", ["fork", "features", "attach", "per loss"])
def test_the_first_of_two_balancers_that_measure_is_refused(entry_point):
    net = Situation(entry_point)
    first, second = eq.GradNorm(net.source), eq.InverseGradientNorm(net.source, every=1)
    with pytest.raises(RuntimeError, match="GradNorm: another balancer, made from this fork later.*every=None"):
        first(net.losses(batch()))
    second(net.losses(batch())).backward()
    second.step()
    assert second.log()["audit"] < 1e-12


# ---- refusals at once ----


@pytest.mark.parametrize(("mark", "wrapper"), [("_fsdp_flattened", "FSDP1"), ("ds_id", "ZeRO-3")])
@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss", "per loss of a tensor", "per loss of a list"])
def test_parameters_that_are_split_up_are_refused_by_name(entry_point, mark, wrapper):
    layer = nn.Linear(5, 6)
    setattr(layer.weight, mark, True)
    if entry_point.startswith("per loss of"):
        source = eq.PerLoss(layer.weight if "tensor" in entry_point else [layer.weight], TASKS)
    else:
        source = Situation(entry_point, layer=layer).source
    with pytest.raises(ValueError, match=rf"'(weight|parameters\[0\])' is split up by .*{wrapper}.*use FSDP2"):
        eq.GradNorm(source)


NAMED = {
    "Fork": lambda tasks: eq.Fork(nn.Linear(5, 6), tasks),
    "others": lambda tasks: eq.Fork(nn.Linear(5, 6), ("x",), others=tasks),
    "PerLoss": lambda tasks: eq.PerLoss(nn.Linear(5, 6), tasks),
    "Equal": eq.Equal,
    "Uncertainty": lambda tasks: eq.Uncertainty(tasks, "regression"),
}


@pytest.mark.parametrize("build", NAMED)
@pytest.mark.parametrize("tasks", [{"a", "b"}, frozenset("ab")], ids=["set", "frozenset"])
def test_a_set_of_names_is_refused_since_its_order_may_differ(build, tasks):
    with pytest.raises(TypeError, match="must be a sequence of names; found a (frozen)?set, whose order may differ"):
        NAMED[build](tasks)
