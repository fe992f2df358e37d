"""A head whose first operation works in place is an error that names it, and never a silent corruption."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

REMEDY = "its head must not work in place on them: use inplace=False or clone\\(\\) first"


class Head(nn.Module):
    """A head that does ``first`` and is linear after that."""

    def __init__(self, first):
        super().__init__()
        self.first, self.last = first, nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.first(x)).square().mean()


class Forked(nn.Module):
    def __init__(self, layer, first):
        super().__init__()
        self.fork = eq.Fork(layer, ("a", "b"))
        self.heads = nn.ModuleDict({"a": Head(nn.Tanh()), "b": Head(first)})

    def forward(self, x):
        features = self.fork(x)
        return {task: self.heads[task](features[task]) for task in features}

    def source(self):
        return self.fork


class Plain(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.layer, self.heads = nn.Linear(4, 4), nn.ModuleDict({"a": Head(nn.Tanh()), "b": Head(first)})

    def forward(self, x):
        features = self.layer(x)
        return {task: self.heads[task](features) for task in self.heads}

    def source(self):
        return eq.attach(self, "layer", {task: f"heads.{task}" for task in self.heads})


ENTRY_POINTS = {
    "fork, by rule": lambda first: Forked(nn.Linear(4, 4), first),
    "fork, a block": lambda first: Forked(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), first),
    "fork, features": lambda first: Forked(None, first),
    "attach": Plain,
}


class Does(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return self.operation(x)


def add(x):
    x += 1
    return x


def write(x):
    x[:, 0] = 0
    return x


ON_IT = {
    "ReLU(inplace=True)": lambda: nn.ReLU(inplace=True),
    "Sequential": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)),
    "Dropout(inplace=True)": lambda: nn.Dropout(0.5, inplace=True),
    "x += 1": lambda: Does(add),
    "x.relu_()": lambda: Does(lambda x: x.relu_()),
    "functional": lambda: Does(lambda x: functional.elu(x, inplace=True)),
}
ON_A_VIEW = {
    "x[:, 0] = 0": lambda: Does(write),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)),
    "a chunk": lambda: Does(lambda x: torch.cat([part.relu_() for part in x.chunk(2, 1)], 1)),
}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("operation", ON_IT)
def test_in_the_first_step_the_error_names_the_head_and_the_remedy(entry_point, operation):
    network = ENTRY_POINTS[entry_point](ON_IT[operation]())
    balancer = eq.GradNorm(network.source())
    with pytest.raises(RuntimeError, match=f"the features of task 'b'; {REMEDY}"):
        balancer(network(torch.randn(5, 4, requires_grad=True)))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("operation", ON_A_VIEW)
def test_on_a_view_of_the_features_it_is_an_error_as_well(entry_point, operation):
    network = ENTRY_POINTS[entry_point](ON_A_VIEW[operation]())
    eq.GradNorm(network.source())
    with pytest.raises(RuntimeError, match="modified inplace"):
        network(torch.randn(5, 4, requires_grad=True))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("operation", ON_IT | ON_A_VIEW)
def test_after_the_first_step_it_is_an_error_as_well(entry_point, operation):
    network = ENTRY_POINTS[entry_point](nn.Tanh())
    balancer = eq.GradNorm(network.source())
    x = torch.randn(5, 4, requires_grad=True)
    for _ in range(2):
        balancer(network(x)).backward()
        balancer.step()
    network.heads["b"].first = (ON_IT | ON_A_VIEW)[operation]()
    with pytest.raises(RuntimeError, match="modified inplace"):
        network(x)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("balancer", [None, eq.Equal, lambda source: eq.Equal(source.tasks)])
def test_a_model_that_is_not_measured_is_the_model_as_it_was(entry_point, balancer):
    """Without a fork, too, the heads read one tensor."""
    network = ENTRY_POINTS[entry_point](nn.ReLU(inplace=True))
    source = network.source()
    _ = balancer and balancer(source)
    x = torch.randn(5, 4)
    layer = network.layer if hasattr(network, "layer") else source.shared_layer
    features = x.clone() if entry_point == "fork, features" else layer(x)
    plain = {task: network.heads[task](features) for task in network.heads}
    for task, loss in network(x).items():
        assert torch.equal(loss, plain[task])


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_the_remedy_is_one(entry_point):
    network = ENTRY_POINTS[entry_point](nn.Sequential(Does(torch.clone), nn.ReLU(inplace=True)))
    balancer = eq.GradNorm(network.source())
    balancer(network(torch.randn(5, 4, requires_grad=True))).backward()
    balancer.step()
