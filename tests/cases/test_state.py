"""What a balancer keeps: half precision, meta initialisation, safetensors, copies, spikes and numbers that are not finite."""

import copy
import math

import pytest
import torch
from helpers.reference import close
from helpers.situation import TASKS, Situation, batch, one_step, step_exactly
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

import equipoise as eq

BUILD = {
    "CoV": lambda source: eq.CoV(source),
    "DTP": lambda source: eq.DTP(source),
    "DWA": lambda source: eq.DWA(source, epoch_steps=1),
    "EnCodec": lambda source: eq.EnCodec(source),
    "Equal": lambda source: eq.Equal(source),
    "FAMO": lambda source: eq.FAMO(source),
    "GLS": lambda source: eq.GLS(source),
    "GradDrop": lambda source: eq.GradDrop(source),
    "GradNorm": lambda source: eq.GradNorm(source),
    "GradNormClosedForm": lambda source: eq.GradNormClosedForm(source),
    "GradNormLogSpace": lambda source: eq.GradNormLogSpace(source),
    "IMTLL": lambda source: eq.IMTLL(source),
    "InverseGradientNorm": lambda source: eq.InverseGradientNorm(source, every=1),
    "InverseInitialLoss": lambda source: eq.InverseInitialLoss(source),
    "InverseLossVariance": lambda source: eq.InverseLossVariance(source),
    "RLW": lambda source: eq.RLW(source),
    "ReLoBRaLo": lambda source: eq.ReLoBRaLo(source),
    "SI": lambda source: eq.SI(source),
    "STCH": lambda source: eq.STCH(source),
    "SoftAdapt": lambda source: eq.SoftAdapt(source),
    "Static": lambda source: eq.Static(source, {"a": 1.0, "b": 2.0}),
    "UWSO": lambda source: eq.UWSO(source),
    "Uncertainty": lambda source: eq.Uncertainty(source, "regression"),
}
OF_ANOTHER_LIBRARY = {"Aggregated", "Scalarized"}  # their state is that of what they are given


def test_every_method_is_here():
    public = {name: getattr(eq, name) for name in eq.__all__ if isinstance(getattr(eq, name), type)}
    methods = {name for name, value in public.items() if issubclass(value, eq.Balancer) and value is not eq.Balancer}
    assert methods - OF_ANOTHER_LIBRARY == BUILD.keys()


class Held(Situation):
    """A network that holds its balancer, as a LightningModule does."""

    def __init__(self, build=eq.GradNorm, **settings):
        super().__init__(**settings)
        self.balancer = build(self.source)

    def step(self, x, scale=None):
        losses = {task: loss.float() + 1e-3 for task, loss in self.losses(x).items()}
        self.balancer(losses | {} if scale is None else losses | {"a": losses["a"] * scale}).backward()
        self.balancer.step()


# ---- half precision ----


def rule_in_float64(norms, lr, floor=1e-3):
    """GradNorm at alpha = 0 on norms of unweighted gradients ``(steps, T)``, written down once more."""
    w, m, v, unit = torch.ones(norms.shape[1], dtype=torch.float64), 0.0, 0.0, norms[0].double().mean()
    for t, n in enumerate(norms.double(), start=1):
        gradient = n * torch.sign(w * n - (w * n).mean())
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8 * unit)
        w = w.clamp(min=floor)
        w = w * len(w) / w.sum()
    return w


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_thousand_small_steps_in_half_precision_follow_the_rule(dtype):
    net = nn.Module()
    net.fork = eq.Fork(nn.Linear(3, 2), TASKS)
    net.balancer = eq.GradNorm(net.fork, alpha=0.0, lr=1e-3)
    net.to(dtype)
    x, seen = torch.randn(4, 3, dtype=dtype), []
    for _ in range(1000):
        features = net.fork(x)
        one_step(
            net.balancer, {"a": features["a"].float().square().mean(), "b": 10 * features["b"].float().square().mean()}
        )
        log = net.balancer.log()
        seen.append(log["gradient_norms"] / log["weights"])
    expected = rule_in_float64(torch.stack(seen), 1e-3)
    assert (expected - 1).abs().min() > 0.3  # they have moved, by steps that half precision does not resolve
    close(net.balancer.weights.double(), expected, rtol=5e-3, atol=0)
    assert all(buffer.dtype != dtype for buffer in net.balancer.buffers())
    assert net.balancer.skipped_steps == 0


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.float, nn.Module.double])
@pytest.mark.parametrize("name", BUILD)
def test_no_state_falls_below_single_precision(name, convert):
    net = convert(Held(BUILD[name]))
    buffers = dict(net.balancer.named_buffers())
    assert all(torch.finfo(b.dtype).bits >= 32 for b in buffers.values() if b.is_floating_point())
    net.step(batch(4).to(net.heads["a"].weight.dtype))


# ---- meta initialisation ----


@pytest.mark.parametrize("name", BUILD)
def test_meta_initialisation_starts_as_if_built_in_place(name):
    with torch.device("meta"):
        net = Held(BUILD[name])
    repr(net.balancer)
    net.to_empty(device="cpu")
    for buffer in net.balancer.buffers():
        buffer.fill_(7)  # whatever was in that memory
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.manual_seed(0)
    plain = Held(BUILD[name])
    net.load_state_dict({n: v for n, v in plain.state_dict().items() if not n.startswith("balancer")}, strict=False)
    for built, there in zip(plain.balancer.buffers(), net.balancer.buffers(), strict=True):
        close(there, built, equal_nan=True)
    for x in [batch() for _ in range(4)]:
        plain.step(x)
        net.step(x)
    close(net.balancer.weights, plain.balancer.weights)


@pytest.mark.parametrize("name", ["GradNorm", "GradNormClosedForm", "Uncertainty", "DWA"])
def test_a_checkpoint_assigned_to_a_meta_network(name):
    trained = Held(BUILD[name])
    for _ in range(3):
        trained.step(batch())
    with torch.device("meta"):
        net = Held(BUILD[name])
    net.load_state_dict(copy.deepcopy(trained.state_dict()), assign=True)
    for x in [batch() for _ in range(4)]:
        trained.step(x)
        net.step(x)
    close(net.balancer.weights, trained.balancer.weights)


# ---- safetensors and copies ----


@pytest.mark.parametrize("name", BUILD)
def test_safetensors_save_and_restore_all(name, tmp_path):
    net = Held(BUILD[name])
    for _ in range(3):
        net.step(batch())
    save_file(net.state_dict(), tmp_path / "state")
    save_model(net, str(tmp_path / "model"))
    by_state, by_model = Held(BUILD[name]), Held(BUILD[name])
    by_state.load_state_dict(load_file(tmp_path / "state"))
    load_model(by_model, tmp_path / "model")
    for x in [batch() for _ in range(4)]:
        for one in (net, by_state, by_model):
            one.step(x)
    for restored in (by_state, by_model):
        for was, is_now in zip(net.balancer.buffers(), restored.balancer.buffers(), strict=True):
            close(is_now, was, equal_nan=True)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry_point", ["fork", "features", "attach", "per loss"])
def test_a_copy_and_its_origin_each_measure_their_own(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    balancer(net.losses(batch())).backward()
    balancer.step()
    twin, copied = copy.deepcopy((net, balancer))
    for _ in range(3):
        for one, its in ((net, balancer), (twin, copied)):
            losses = one.losses(batch())
            if entry_point == "features":
                its(losses).backward()
                its.step()
            else:
                step_exactly(its, losses, one.shared.weight)
    assert not torch.equal(balancer.weights, copied.weights)


def test_a_copy_of_the_network_alone_measures_nothing_and_disturbs_nobody():
    net = Situation("attach")
    balancer = eq.GradNorm(net.source)
    twin = copy.deepcopy(net)  # a moving average of the weights, say
    for _ in range(3):
        sum(twin.losses(batch()).values()).backward()
    (hook,) = twin.heads["a"]._forward_pre_hooks.values()
    assert not hook.attached.measuring
    losses = net.losses(batch())
    step_exactly(balancer, losses, net.shared.weight, rtol=1e-5)


@pytest.mark.usefixtures("double")
def test_a_copy_of_the_balancer_alone_is_refused_at_the_old_fork():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    copied = copy.deepcopy(balancer)  # which has a copy of the fork
    step_exactly(balancer, net.losses(batch()), net.shared.weight)
    copied(net.losses(batch())).backward()
    with pytest.raises(RuntimeError, match="task 'a': no gradient of its loss has arrived"):
        copied.step()
    step_exactly(balancer, net.losses(batch()), net.shared.weight)


# ---- spikes ----


@pytest.mark.parametrize("spike", [1e25, 1e30, math.nan])
@pytest.mark.parametrize("name", BUILD)
def test_one_spike_leaves_a_finite_state_and_nearly_the_weights_without_it(name, spike):
    net = Held(BUILD[name])
    twin = copy.deepcopy(net)
    for step in range(14):
        x = batch(4)
        net.step(x, spike if step == 5 else None)
        twin.step(x)
    seen = {name: buffer for name, buffer in net.balancer.named_buffers() if buffer.is_floating_point()}
    assert all(buffer.isfinite().all() for buffer in seen.values())
    close(net.balancer.weights, twin.balancer.weights, rtol=0.05, atol=0)
    if not math.isfinite(spike):
        assert net.balancer.skipped_steps == 1


@pytest.mark.parametrize("name", ["GradNorm", "GradNormClosedForm", "GradNormLogSpace"])
def test_a_step_that_is_not_finite_leaves_all_as_it_was(name):
    net = Held(BUILD[name])
    for _ in range(3):
        net.step(batch())
    before = {name: buffer.clone() for name, buffer in net.balancer.named_buffers()}
    for step, spike in enumerate([math.nan, 1e30, math.inf], start=1):
        net.step(batch(), spike)
        for name, buffer in net.balancer.named_buffers():
            if name == "skipped_steps":
                assert buffer == step
            else:
                close(buffer, before[name], equal_nan=True)
    assert set(TASKS) == net.balancer.averaged().keys()


def test_a_device_without_double_precision_gets_single_precision():
    """As MPS refuses it; the sums of the weights are kept in double precision elsewhere."""

    def to_mps(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return tensor.clone()

    balancer = eq.Uncertainty(("a", "b"), "regression")
    assert balancer.weight_sums.dtype == torch.float64
    balancer._apply(to_mps)
    assert {b.dtype for b in balancer.buffers()} <= {torch.float32, torch.int64}
