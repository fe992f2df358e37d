"""Features that are a structure of tensors."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from helpers.measured import autograd_rows, norms_of, rows_of
from helpers.reference import close
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

TASKS = ("fine", "coarse", "all")


class Levels(NamedTuple):
    fine: torch.Tensor
    coarse: torch.Tensor
    strides: torch.Tensor


@dataclasses.dataclass
class Pyramid:
    fine: torch.Tensor
    coarse: torch.Tensor
    strides: torch.Tensor
    name: str = "pyramid"


@dataclasses.dataclass(frozen=True)
class Frozen:
    fine: torch.Tensor
    coarse: torch.Tensor
    strides: torch.Tensor
    sizes: tuple = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "sizes", (tuple(self.fine.shape), tuple(self.coarse.shape)))


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    fine: torch.Tensor
    coarse: torch.Tensor
    strides: torch.Tensor


@dataclasses.dataclass
class Outer:
    levels: list
    strides: torch.Tensor


def attributes(features):
    return features.fine, features.coarse, features.strides


CONTAINERS = {
    "tuple": (lambda fine, coarse, strides: (fine, coarse, strides), tuple),
    "list": (lambda fine, coarse, strides: [fine, coarse, strides], tuple),
    "dict": (lambda fine, coarse, strides: {"c": coarse, "f": fine, "s": strides}, lambda f: (f["f"], f["c"], f["s"])),
    "named tuple": (Levels, attributes),
    "dataclass": (Pyramid, attributes),
    "frozen dataclass that computes": (Frozen, attributes),
    "frozen dataclass with slots": (Slots, attributes),
    "nested": (
        lambda fine, coarse, strides: {"out": (fine, None), "aux": [[coarse], {"strides": strides, "level": 3}]},
        lambda f: (f["out"][0], f["aux"][0][0], f["aux"][1]["strides"]),
    ),
    "dataclasses in a dataclass": (
        lambda fine, coarse, strides: Outer([Pyramid(fine, None, None), Pyramid(None, coarse, None)], strides),
        lambda f: (f.levels[0].fine, f.levels[1].coarse, f.strides),
    ),
    "dataclass in a tuple": (
        lambda fine, coarse, strides: (Pyramid(fine, coarse, strides), "x"),
        lambda f: attributes(f[0]),
    ),
}
"""Name -> (features from their parts, their parts from features)."""


class PyramidLayer(nn.Module):
    """Two levels, their strides as integers, and a constant mask."""

    def __init__(self, container):
        super().__init__()
        self.fine, self.coarse, self.container = nn.Linear(4, 4), nn.Linear(4, 3), container

    def forward(self, x):
        fine = self.fine(x).tanh()
        return self.container(fine, self.coarse(fine), torch.tensor([4, 8]))


@pytest.fixture(params=CONTAINERS, name="case")
def _case(request):
    container, parts = CONTAINERS[request.param]
    fork = eq.Fork(PyramidLayer(container), TASKS)
    return fork, parts


def losses_of(features, parts):
    """One head reads the fine level only, one the coarse level only, one all."""
    fine, _, _ = parts(features["fine"])
    _, coarse, strides = parts(features["coarse"])
    both = parts(features["all"])
    assert strides.tolist() == [4, 8]
    assert not strides.is_floating_point()
    return {
        "fine": fine.square().mean(),
        "coarse": (strides[1] * coarse).sin().sum(),
        "all": (both[0].sum(1) + both[1].exp().sum(1)).square().sum(),
    }


def test_heads_of_a_pyramid(case):
    fork, parts = case
    x, wanted = torch.randn(5, 4), list(fork.shared_layer.parameters())
    expected = autograd_rows(losses_of(fork(x), parts).values(), wanted)
    assert (expected[0] == 0).any(), "the fine level does not depend on the layer that makes the coarse one"
    close(norms_of(fork, lambda: losses_of(fork(x), parts)), expected.norm(dim=1))
    close(torch.cat([p.grad.flatten() for p in wanted]), expected.sum(0))
    close(rows_of(fork, lambda: losses_of(fork(x), parts)), expected)


def test_the_structure_is_the_layers_own(case):
    fork, parts = case
    x = torch.randn(5, 4)
    plain = fork.shared_layer(x)
    _ = eq.Equal(fork, every=1)
    for features in fork(x).values():
        assert type(features) is type(plain)
        for ours, theirs in zip(parts(features), parts(plain), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.requires_grad == theirs.requires_grad


def test_a_constant_among_the_features_stays_one():
    class Masked(nn.Linear):
        def forward(self, x):
            return super().forward(x), torch.ones(len(x), 1)

    fork = eq.Fork(Masked(4, 3), ("a", "b"))
    balancer = eq.GradNorm(fork)
    features = fork(torch.randn(5, 4))
    assert features["a"][1] is features["b"][1]
    losses = {task: (out * mask).square().sum() for task, (out, mask) in features.items()}
    balancer(losses).backward()
    balancer.step()


def test_features_are_measured_at_a_pyramid_without_a_layer():
    fork, trunk, x, seen = eq.Fork(None, ("a", "b")), nn.Linear(4, 4), torch.randn(5, 4), []

    def losses():
        fine = trunk(x)
        coarse = fine.tanh()
        seen[:] = fine, coarse
        features = fork((fine, coarse))
        return {"a": features["a"][0].square().sum(), "b": features["b"][0].sin().sum() + features["b"][1].exp().sum()}

    norms = norms_of(fork, losses)
    fine, coarse = (each.detach() for each in seen)
    close(norms, torch.stack([2 * fine.norm(), torch.stack([fine.cos(), coarse.exp()]).norm()]))
