"""The networks for images."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from equipoise.lab.networks.network import Network
from equipoise.lab.networks.resnet_fcn import ResNetFCN
from equipoise.lab.networks.segformer import SegFormer
from equipoise.lab.networks.segnet import SegNet, _unpooled

SMALL = {"segnet": SegNet(1 / 16), "resnet_fcn": ResNetFCN(1 / 16), "segformer": SegFormer("b0")}


def parameters(backbone):
    """Millions of parameters without heads."""
    return sum(p.numel() for part in (backbone.trunk(), backbone.shared_layer()) for p in part.parameters()) / 1e6


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backbone", SMALL.values(), ids=SMALL)
def test_every_task_trains_all_shared_layers(backbone, deterministic):
    torch.manual_seed(0)
    network = Network(backbone.trunk(), backbone.shared_layer(), {"a": backbone.head(5), "b": backbone.head(1)})
    outputs = network(torch.randn(2, 3, 64, 96))
    height, width = 64 // backbone.reduction, 96 // backbone.reduction
    assert outputs["a"].shape == (2, 5, height, width)
    assert outputs["b"].shape == (2, 1, height, width)
    for output in outputs.values():
        network.zero_grad()
        output.square().mean().backward(retain_graph=True)
        shared = [*network.trunk.parameters(), *network.fork.parameters()]
        reached = sum(bool(p.grad is not None and p.grad.any()) for p in shared)
        assert reached > 0.9 * len(shared)


def test_the_sizes_are_those_of_the_papers():
    assert 29 < parameters(SegNet()) < 30
    assert 15 < parameters(ResNetFCN()) < 16
    assert 3.5 < parameters(SegFormer("b0")) < 3.8
    assert 27 < parameters(SegFormer("b2")) < 27.6
    assert parameters(SegNet(0.25)) < parameters(SegNet()) / 15


def test_unpooling_is_that_of_pytorch():
    images = torch.randn(2, 3, 8, 12)
    pooled, indices = functional.max_pool2d(images, 2, return_indices=True)
    wanted = functional.max_unpool2d(pooled, indices, 2)
    assert_close(_unpooled(pooled, images.shape, indices), wanted, rtol=0, atol=0)
