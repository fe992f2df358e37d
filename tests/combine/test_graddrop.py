"""Gradient sign dropout, against its algorithm written plainly, feature by feature."""

import pytest
import torch
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import equipoise as eq
from equipoise.balancer.rng import generator
from equipoise.combine.graddrop import positive_sign_purity, sign_masks

pytestmark = pytest.mark.usefixtures("double")

TASKS = ("a", "b", "c")


def dropped(gradients, features, leaks, uniform):
    """Algorithm 1 of one layer: ``gradients[i][n][f]`` with features of one dimension, number by number."""
    T, B, F = gradients.shape
    result = torch.zeros(B, F)
    for f in range(F):
        G = [
            sum(
                float(gradients[i, n, f]) * ((features[n, f] > 0).item() - (features[n, f] < 0).item())
                for n in range(B)
            )
            for i in range(T)
        ]
        purity = 0.5 * (1 + sum(G) / sum(abs(g) for g in G))
        for i in range(T):
            keep = (purity > uniform[f] and G[i] > 0) or (purity < uniform[f] and G[i] < 0)
            for n in range(B):
                result[n, f] += (leaks[i] + (1 - leaks[i]) * keep) * gradients[i, n, f]
    return result


@pytest.mark.parametrize("leaks", [None, {"a": 0.0, "b": 0.3, "c": 1.0}])
@pytest.mark.parametrize("scale", [1.0, 2.0**10])
def test_the_gradient_is_that_of_the_algorithm(leaks, scale):
    torch.manual_seed(0)
    network, plain = MLP(TASKS), MLP(TASKS)
    plain.load_state_dict(network.state_dict())
    balancer = eq.GradDrop(network.fork, leaks=leaks, seed=3)
    for step, (x, y) in enumerate(batches(3, TASKS)):
        features = plain.fork.shared_layer(plain.trunk(x))
        losses = mse({task: plain.heads[task](features) for task in TASKS}, y)
        rows = torch.stack([torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in losses.values()])
        uniform = torch.rand(8, generator=generator(3, step, 0))
        plain.zero_grad()
        features.backward(dropped(rows, features, list(leaks.values()) if leaks else [0.0] * 3, uniform))
        network.zero_grad()
        (scale * balancer(mse(network(x), y))).backward()
        balancer.step()
        for ours, theirs in zip(network.trunk.parameters(), plain.trunk.parameters(), strict=True):
            close(ours.grad / scale, theirs.grad)
        close(balancer.log()["gradient_norms"], rows.flatten(1).norm(dim=1))


def agreement(build):
    """For one sample: the share of features where the gradient that goes on is the sum of all of one sign."""
    torch.manual_seed(0)
    features = torch.randn(1, 50).requires_grad_()
    gradients = torch.randn(3, 50)
    fork = eq.Fork(None, TASKS)
    balancer = build(fork)
    given = fork(features)
    balancer({task: (gradients[i] * given[task]).sum() for i, task in enumerate(TASKS)}).backward()
    positive, negative = gradients.clamp(min=0).sum(0), gradients.clamp(max=0).sum(0)
    one_sign = torch.isclose(features.grad[0], positive) | torch.isclose(features.grad[0], negative)
    return one_sign.double().mean(), torch.isclose(features.grad[0], positive).double().mean()


def test_all_that_goes_on_has_one_sign():
    share, positive = agreement(eq.GradDrop)
    assert share == 1
    assert 0.2 < positive < 0.8  # and it is drawn which
    assert agreement(eq.Equal)[0] < 0.5


def test_every_sample_has_the_same_mask_and_the_activations_sign():
    """Two samples whose activations have opposite signs: what agrees after the sign conflicts before it."""
    features = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    fork = eq.Fork(None, ("a", "b"))
    balancer = eq.GradDrop(fork)
    for _ in range(20):
        features.grad = None
        given = fork(features)
        balancer({"a": (given["a"] * torch.tensor([[1.0], [-1.0]])).sum(), "b": 2 * given["b"][0].sum()}).backward()
        balancer.step()
        close(features.grad, torch.tensor([[3.0], [-1.0]]))  # G = (2, 2): nothing is dropped


@given(values=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4), min_size=1, max_size=5))
@settings(deadline=None, max_examples=100)
def test_a_mask_keeps_one_sign_and_a_pure_feature_as_a_whole(values):
    signed = torch.tensor(values)
    purity = positive_sign_purity(signed)
    assert ((purity >= 0) & (purity <= 1)).all()
    for uniform in (0.01, 0.5, 0.99):
        masks = sign_masks(signed, purity, torch.full((4,), uniform))
        kept = torch.where(masks, signed, 0.0)
        assert not ((kept > 0).any(0) & (kept < 0).any(0)).any()
        pure = (signed > 0).all(0) | (signed < 0).all(0)
        assert masks[:, pure].all()


def test_a_convolution_draws_for_every_channel_and_place():
    """With gradients of opposite sign and equal size at every number of one sample, each keeps one or the other."""
    fork = eq.Fork(nn.Conv2d(2, 3, 3), ("a", "b"))
    balancer = eq.GradDrop(fork, seed=4)
    features = fork(torch.randn(1, 2, 5, 5))
    signs = features["a"].detach()[0].sign()
    balancer({"a": features["a"].sum(), "b": -features["b"].sum()}).backward()
    uniform = torch.rand(3, 3, 3, generator=generator(4, 0, 0))
    drawn = torch.where(uniform < 0.5, 1.0, -1.0) * signs
    close(fork.shared_layer.bias.grad, drawn.sum((1, 2)))


def test_micro_batches_of_a_step_draw_anew_and_a_pass_that_is_thrown_away_does_not_count():
    features = torch.randn(1, 50).requires_grad_()
    fork = eq.Fork(None, ("a", "b"))
    balancer = eq.GradDrop(fork)

    def drawn():
        features.grad = None
        given = fork(features)
        balancer({"a": given["a"].sum(), "b": -given["b"].sum()}).backward()
        return features.grad.clone()

    first, second = drawn(), drawn()
    assert not torch.equal(first, second)
    balancer.zero_grad()
    assert torch.equal(drawn(), first)
    balancer.step()
    assert not torch.equal(drawn(), first)


def test_a_feature_that_is_zero_in_the_whole_batch_lets_nothing_but_the_leaks_through():
    features = torch.tensor([[0.0, 0.0], [0.0, 2.0]], requires_grad=True)
    fork = eq.Fork(None, ("a", "b"))
    balancer = eq.GradDrop(fork, leaks={"a": 0.25, "b": 0.0})
    given = fork(features)
    balancer({"a": given["a"].sum(), "b": given["b"].sum()}).backward()
    close(features.grad, torch.tensor([[0.25, 2.0], [0.25, 2.0]]))  # the second: by the sign in the other sample


def test_what_cannot_be_is_refused_by_name():
    fork = MLP(TASKS).fork
    with pytest.raises(ValueError, match=r"leaks: task 'b': its value must lie in \[0, 1\]; found 2"):
        eq.GradDrop(fork, leaks={"a": 0, "b": 2, "c": 0})
    with pytest.raises(ValueError, match="leaks: task 'c' is missing"):
        eq.GradDrop(fork, leaks={"a": 0, "b": 1})
    with pytest.raises(ValueError, match="leaks: unknown task 'd'"):
        eq.GradDrop(fork, leaks={"d": 0})
    with pytest.raises(TypeError, match="seed must be an integer"):
        eq.GradDrop(fork, seed="x")
