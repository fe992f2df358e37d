"""Losses, inputs, weights and features of every kind: an exact value, or a refusal by name."""

import pytest
import torch
from helpers.reference import close
from helpers.situation import TASKS, Situation, batch, norms, step_exactly
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


class Marked(torch.Tensor):
    """A subclass of the plainest kind."""


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: its weight is complex."""

    def __init__(self):
        super().__init__()
        self.modes = nn.Parameter(torch.randn(4, 4, 5, dtype=torch.cdouble))

    def forward(self, x):
        return torch.fft.irfft(torch.einsum("bim,iom->bom", torch.fft.rfft(x)[..., :5], self.modes), n=x.shape[-1])


# ---- a loss that carries no gradient ----


@pytest.mark.parametrize("constant", [0.0, 0.7])
@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss"])
@pytest.mark.parametrize("first", [True, False], ids=["from the start", "later"])
def test_a_constant_loss_is_refused_and_none_is_the_remedy(entry_point, constant, first):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    if not first:
        step_exactly(balancer, net.losses(batch()), net.shared.weight)
    losses = net.losses(batch()) | {"b": torch.tensor(constant)}
    with pytest.raises(ValueError, match="task 'b': its loss must carry a gradient; found a constant. Hand in None"):
        balancer(losses)
    before = balancer.weights.clone()
    balancer(losses | {"b": None}).backward()
    balancer.step()
    close(balancer.weights, before)  # one task alone: nothing to balance


def test_a_task_without_objects_keeps_its_weight_for_two_hundred_steps():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    balancer(net.losses(batch())).backward()
    balancer.step()
    before = balancer.weights.clone()
    for _ in range(200):
        balancer(net.losses(batch()) | {"b": None}).backward()
        balancer.step()
    close(balancer.weights, before)
    assert balancer.skipped_steps == 0


def test_a_loss_that_does_not_reach_the_fork_is_refused():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    balancer(net.losses(batch()) | {"b": nn.Parameter(torch.tensor(1.0))}).backward()
    with pytest.raises(RuntimeError, match="task 'b': no gradient of its loss has arrived"):
        balancer.step()


# ---- losses of other kinds ----

WRONG = {
    "int": (lambda loss: torch.tensor(1), TypeError, "real floating-point tensor.*int64"),
    "bool": (lambda loss: torch.tensor(True), TypeError, "real floating-point tensor.*bool"),
    "complex": (lambda loss: loss.to(torch.cdouble), TypeError, "real floating-point tensor.*complex128"),
    "float8": (lambda loss: loss.to(torch.float8_e4m3fn), TypeError, "found torch.float8_e4m3fn, of less than 16 bits"),
    "sparse": (
        lambda loss: loss.to_sparse(),
        TypeError,
        r"found one of layout torch.sparse_coo: take loss.to_dense\(\)",
    ),
    "nested": (
        lambda loss: torch.nested.as_nested_tensor([loss[None]], layout=torch.jagged),
        (TypeError, ValueError),
        "NestedTensor|nested",
    ),
    "meta": (lambda loss: loss.to("meta"), ValueError, "on meta, the weights are on cpu; a meta tensor has no value"),
    "vector": (lambda loss: loss[None], ValueError, r"scalar, of shape \(\); found \(1,\)"),
    "number": (lambda loss: loss.item(), TypeError, "a tensor or None; found float"),
    "string": (lambda loss: "1.0", TypeError, "a tensor or None; found str"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_loss_of_another_kind_is_refused_by_task(kind):
    make, error, message = WRONG[kind]
    net = Situation()
    balancer = eq.GradNorm(net.source)
    losses = net.losses(batch())
    with pytest.raises(error, match=f"task 'b': .*{message}"):
        balancer(losses | {"b": make(losses["b"])})
    step_exactly(balancer, net.losses(batch()), net.shared.weight)  # nothing was spoilt


@pytest.mark.parametrize("dtype", [torch.cdouble, torch.float8_e4m3fn, torch.int64])
def test_losses_in_one_tensor_of_another_kind_are_refused(dtype):
    net = Situation()
    losses = torch.stack([*net.losses(batch()).values()])
    with pytest.raises(TypeError, match=r"losses must be a real floating-point tensor"):
        eq.GradNorm(net.source)(losses.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_loss_of_less_precision_is_taken_as_it_is(dtype):
    net = Situation()
    balancer = eq.GradNorm(net.source)
    losses = {task: loss.to(dtype) for task, loss in net.losses(batch()).items()}
    step_exactly(balancer, losses, net.shared.weight, rtol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("entry_point", ["fork", "features", "attach", "per loss"])
def test_subclasses_of_tensor_are_measured_as_tensors(entry_point):
    class Marking(nn.Linear):
        def forward(self, x):
            return super().forward(x).as_subclass(Marked)

    for layer in (nn.Linear(5, 6), Marking(5, 6)):
        net = Situation(entry_point, layer=layer)
        balancer = eq.GradNorm(net.source)
        for _ in range(2):
            losses = {task: loss.as_subclass(Marked) for task, loss in net.losses(batch().as_subclass(Marked)).items()}
            if entry_point == "features":
                balancer(losses).backward()
                balancer.step()
            else:
                step_exactly(balancer, losses, net.shared.weight)
        assert balancer.log()["audit"] < 1e-12
        assert type(balancer.weights) is torch.Tensor


# ---- complex weights and features ----


@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_complex_spectral_weight_has_the_norm_of_its_real_and_imaginary_parts(entry_point, accumulate):
    net = Situation(entry_point, layer=Spectral())
    for task in TASKS:
        net.heads[task] = nn.Conv1d(4, 1, 1)
    if entry_point == "attach":
        object.__setattr__(net, "source", eq.attach(net, "layer", {task: f"heads.{task}" for task in TASKS}))
    balancer = eq.GradNorm(net.source, accumulate=accumulate)
    for _ in range(3):
        step_exactly(balancer, net.losses(torch.randn(3, 4, 16)), net.shared.modes)


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_complex_linear_layer_is_measured_exactly(accumulate):
    net = Situation(layer=nn.Linear(5, 6, dtype=torch.cdouble))
    balancer = eq.GradNorm(net.source, accumulate=accumulate)
    for _ in range(3):
        features = net.features(torch.randn(8, 5, dtype=torch.cdouble))
        losses = {task: net.heads[task](features[task].abs()).square().mean() for task in TASKS}
        step_exactly(balancer, losses, net.shared.weight)


def test_complex_features_without_a_layer():
    layer = nn.Linear(5, 6, dtype=torch.cdouble)
    fork = eq.Fork(None, TASKS)
    balancer = eq.GradNorm(fork)
    features = layer(torch.randn(8, 5, dtype=torch.cdouble))
    own = fork(features)
    losses = {task: (i + 1) * (own[task] - 1).abs().square().mean() for i, task in enumerate(TASKS)}
    step_exactly(balancer, losses, features)


# ---- nested and sparse ----


@pytest.mark.parametrize("entry_point", ["fork", "features", "attach"])
def test_jagged_features_are_refused_with_the_remedy(entry_point):
    net = Situation(entry_point)
    eq.GradNorm(net.source)
    x = torch.nested.nested_tensor([torch.randn(n, 5) for n in (4, 2, 7)], layout=torch.jagged)
    with pytest.raises(TypeError, match=r"dense tensors, to be measured; found a nested tensor.*features.values\(\)"):
        net(x)


def test_jagged_features_pass_a_fork_that_is_not_measured():
    net = Situation()
    x = torch.nested.nested_tensor([torch.randn(n, 5) for n in (4, 2, 7)], layout=torch.jagged)
    assert net(x)["a"].is_nested


def test_the_values_of_jagged_inputs_are_measured_exactly():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    x = torch.nested.nested_tensor([torch.randn(n, 5) for n in (4, 2, 7)], layout=torch.jagged)
    for _ in range(2):
        step_exactly(balancer, net.losses(x.values()), net.shared.weight)


def test_jagged_features_are_measured_by_per_loss():
    net = Situation("per loss")
    balancer = eq.GradNorm(net.source)
    x = torch.nested.nested_tensor([torch.randn(n, 5) for n in (4, 2, 7)], layout=torch.jagged)
    outputs = net(x)
    step_exactly(balancer, {task: outputs[task].values().square().mean() for task in TASKS}, net.shared.weight)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["coo", "csr"])
@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss"])
def test_sparse_inputs_of_the_layer(entry_point, sparse):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    for _ in range(3):
        x = sparse(batch(5) * torch.eye(5))
        step_exactly(balancer, net.losses(x), net.shared.weight)


def test_a_sparse_gradient_of_an_embedding():
    table = nn.Embedding(7, 6, sparse=True)
    for entry_point in ("fork", "attach", "per loss"):
        net = Situation(entry_point, layer=table)
        balancer = eq.GradNorm(net.source)
        losses = net.losses(torch.tensor([0, 3, 3, 5]))
        dense = [
            torch.autograd.grad(loss, table.weight, retain_graph=True)[0].to_dense().norm() for loss in losses.values()
        ]
        balancer(losses).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], torch.stack(dense))


def test_features_in_a_dict_with_what_is_no_float():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 6)

        def forward(self, x):
            return {"hidden": self.inner(x), "mask": x[:, 0] > 0, "length": len(x), "cache": None}

    fork = eq.Fork(Encoder(), TASKS)
    balancer = eq.GradNorm(fork)
    for _ in range(2):
        own = fork(batch())
        losses = {task: own[task]["hidden"][own[task]["mask"]].square().sum() for task in TASKS}
        assert own["a"]["length"] == 8
        assert own["a"]["cache"] is None
        step_exactly(balancer, losses, fork.shared_layer.parameters())


def test_norms_of_the_helper_are_those_of_the_parts():
    net = Situation(layer=nn.Linear(5, 6, dtype=torch.cdouble))
    features = net.features(torch.randn(8, 5, dtype=torch.cdouble))
    losses = {task: features[task].abs().square().mean() for task in TASKS}
    found = norms(losses, net.shared.weight)
    plain = torch.autograd.grad(losses["a"], net.shared.weight, retain_graph=True)[0]
    close(found[0], plain.abs().square().sum().sqrt())
