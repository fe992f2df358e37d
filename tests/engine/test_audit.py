"""The audit of a task's first step: every mistake is found by value and named, and where there is none nothing deviates."""

import pytest
import torch
from helpers.entry_points import ENTRY_POINTS, TASKS, Forked, build, data, losses_of
from helpers.reference import close
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import equipoise as eq

TINY = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.05}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("dtype", TINY)
@pytest.mark.parametrize("accumulate", [False, True])
def test_without_a_mistake_the_deviation_is_rounding(entry_point, dtype, accumulate):
    network, source = build(entry_point, dtype=dtype)
    balancer = eq.GradNorm(source, accumulate=accumulate)
    for x, y in data(3, dtype=dtype):
        assert dtype != torch.float64 or balancer.weights.dtype in (torch.float32, torch.float64)
        balancer(losses_of(network, x, y)).backward()
        balancer.step()
        assert balancer.log()["audit"] <= TINY[dtype]
    assert balancer.scalars()["audit"] == balancer.log()["audit"]
    assert "audit left out" not in repr(balancer)


def refusal(balancer, total, where=ValueError):
    """The message with which this step is refused."""
    total.backward()
    before = {name: value.clone() for name, value in balancer.named_buffers()}
    with pytest.raises(where) as error:
        balancer.step()
    for name, value in balancer.named_buffers():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name
    return str(error.value)


@pytest.fixture(name="parts")
def _parts():
    """A network, its balancer, and the features, the losses of whose heads are right."""
    network, source = build("Fork, by rule")
    balancer = eq.GradNorm(source)
    ((x, y),) = data(1)
    below = network.trunk(x)
    features = source(below)

    def loss(task, given):
        return (network.heads[task](given) - y[task]).square().mean()

    return network, balancer, below, features, loss


def right(features, loss):
    return {task: loss(task, features[task]) for task in TASKS}


def test_a_loss_that_reads_another_tasks_features(parts):
    _, balancer, _, features, loss = parts
    losses = right(features, loss) | {"a": loss("a", features["c"]) + 1e-3 * features["a"].sum()}
    message = refusal(balancer, balancer(losses))
    assert message.startswith(
        "task 'a': its loss must depend on features['a'] alone; found that it reads features['c']:"
    )
    assert "every head must read its own" in message


def test_features_that_another_loss_reads(parts):
    _, balancer, _, features, loss = parts
    losses = right(features, loss) | {"c": loss("c", features["a"]) + 1e-3 * features["c"].sum()}
    message = refusal(balancer, balancer(losses))
    assert message.startswith("task 'a': features['a'] is for its loss alone; found that 'c' reads it:")


def test_a_loss_that_does_not_reach_the_fork(parts):
    """Its alias is read by a penalty, so that a gradient arrives there all the same."""
    _, balancer, below, features, loss = parts
    losses = right(features, loss) | {"b": loss("b", below)}
    message = refusal(balancer, balancer(losses) + features["b"].square().sum())
    assert message.startswith("task 'b': its loss must depend on features['b']; found that it does not reach the fork")


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_a_term_beside_the_total_loss(parts, size):
    _, balancer, _, features, loss = parts
    message = refusal(balancer, balancer(right(features, loss)) + size * features["b"].square().sum())
    assert message.startswith("task 'b': besides its loss, something else")
    assert "Fork(..., others=('penalty',))" in message


def test_a_loss_that_reaches_w_past_the_fork(parts):
    network, balancer, below, features, loss = parts
    losses = right(features, loss) | {"b": loss("b", features["b"] + network.fork.shared_layer(below))}
    message = refusal(balancer, balancer(losses))
    assert "task 'b': its loss must reach the last shared layer through features['b'] alone" in message
    assert "past the fork" in message
    assert "PerLoss measures such a loss" in message


class Doubled(TorchFunctionMode):
    """As a mode that quantises: other operations, of which the layer itself shows nothing."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        return 2 * found if function is nn.functional.linear and args[1] is self.weight else found


def test_a_layer_that_does_not_compute_what_its_class_says():
    def run(network, balancer):
        ((x, y),) = data(1)
        with Doubled(network.fork.shared_layer.weight):
            return balancer(losses_of(network, x, y))

    network, source = build("Fork, by rule")
    balancer = eq.GradNorm(source)
    message = refusal(balancer, run(network, balancer))
    assert message.startswith("task 'a'")
    assert "the layer does not compute as its class does" in message
    assert "parameters=('weight',)" in message

    network.fork = eq.Fork(network.fork.shared_layer, TASKS, parameters=("weight",))
    balancer = eq.GradNorm(network.fork)
    run(network, balancer).backward()
    balancer.step()
    assert balancer.log()["audit"] < 1e-12


def test_the_message_has_both_numbers(parts):
    network, balancer, _, features, loss = parts
    losses = right(features, loss)
    expected = torch.autograd.grad(losses["a"], network.fork.shared_layer.weight, retain_graph=True)[0].norm()
    message = refusal(balancer, balancer(losses) + losses["a"])
    assert message.endswith(f"(a norm of {2 * expected:.4g} was measured, its gradient has {expected:.4g})")


@pytest.fixture(name="calls")
def _calls(monkeypatch):
    """The losses that are differentiated by themselves, as a list of how many in each step."""
    genuine, calls = torch.autograd.grad, [0]

    def counted(*arguments, **settings):
        calls[-1] += 1
        return genuine(*arguments, **settings)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return calls


def train(network, balancer, calls, steps, absent=lambda step: ()):
    """Train; how many calls of `torch.autograd.grad` each step has taken."""
    calls[:] = []
    for step, (x, y) in enumerate(data(steps)):
        calls.append(0)
        network.zero_grad()
        losses = losses_of(network, x, y)
        balancer(losses | dict.fromkeys(absent(step))).backward()
        balancer.step()
    return list(calls)


@pytest.mark.parametrize("every", [1, 3])
def test_a_task_is_differentiated_once_and_looked_at_now_and_then(calls, every):
    """The second look is at the measured steps whose number is a power of two."""
    network, source = build("Fork, by rule")
    found = train(network, eq.GradNorm(source, every=every), calls, 30 * every)
    assert found[0] == len(TASKS)
    looked = {step for step, number in enumerate(found) if number}
    assert looked == {every * number for number in (0, 1, 2, 4, 8, 16)}


def test_a_task_that_appears_later_is_audited_then(calls):
    network, source = build("Fork, by rule")
    balancer = eq.GradNorm(source)
    found = train(network, balancer, calls, 12, lambda step: () if step >= 11 else ("c",))
    assert found[0] == 2
    assert found[11] == 1
    assert balancer.log()["audit"] < 1e-6

    network, source = build("Fork, by rule")
    balancer = eq.GradNorm(source)
    train(network, balancer, calls, 5, lambda step: ("c",))
    ((x, y),) = data(1)
    features = source(network.trunk(x))
    losses = {task: (network.heads[task](features[task]) - y[task]).square().mean() for task in TASKS}
    message = refusal(balancer, balancer(losses) + features["c"].square().sum())
    assert message.startswith("task 'c': besides its loss, something else")


def test_with_every_the_first_measured_step_with_a_task_is_audited(calls):
    network, source = build("Fork, by rule")
    balancer = eq.GradNorm(source, every=3)
    found = train(network, balancer, calls, 4, lambda step: ("c",) if step == 0 else ())
    assert found == [2, 0, 0, 1]


def test_in_accumulation_the_first_backward_pass_is_audited(calls):
    network, source = build("Fork, by rule")
    balancer = eq.GradNorm(source, accumulate=True)
    ((x, y),) = data(1)
    calls[:] = [0]
    for expected in (len(TASKS), len(TASKS)):
        balancer(losses_of(network, x, y)).backward()
        assert calls[-1] == expected
    balancer.step()
    assert balancer.log()["audit"] < 1e-6

    balancer = eq.GradNorm(source, accumulate=True)
    features = source(network.trunk(x))
    losses = {task: (network.heads[task](features[task]) - y[task]).square().mean() for task in TASKS}
    (balancer(losses) + features["c"].square().sum()).backward()
    with pytest.raises(ValueError, match="task 'c': besides its loss, something else"):
        balancer(losses_of(network, x, y))  # before a second pass hides it


def test_a_method_that_measures_nothing_audits_nothing(calls):
    network, source = build("Fork, by rule")
    balancer = eq.Equal(source)
    assert not any(train(network, balancer, calls, 2))
    assert "audit" not in balancer.log()


def test_where_a_loss_cannot_be_differentiated_twice_the_audit_is_left_out():
    network, source = build("Fork, by rule")
    forward = network.heads["b"].forward
    network.heads["b"].forward = lambda x: checkpoint(forward, x, use_reentrant=True)
    balancer = eq.GradNorm(source)
    for x, y in data(3):
        balancer(losses_of(network, x, y)).backward()
        balancer.step()
        assert balancer.log()["audit"].isnan()
    assert "audit left out: When use_reentrant=True" in repr(balancer)


def test_a_step_that_overflows_is_audited_next_time():
    network, source = build("Fork, by rule", dtype=torch.float32)
    balancer = eq.GradNorm(source)
    for step, (x, y) in enumerate(data(2, dtype=torch.float32)):
        total = balancer(losses_of(network, x, y))
        (total * (1.0 if step else 1e38)).backward()
        balancer.step(skip=step == 0)
        assert ("audit" in balancer.log()) == (step == 1)
    assert balancer.log()["audit"] < TINY[torch.float32]


def test_rounding_in_half_precision_is_no_mistake_where_autocast_ends_before_the_balancer():
    """Sixty layers in bfloat16, of which neither losses nor parameters show anything."""
    layers = [part for _ in range(60) for part in (nn.Linear(16, 16), nn.LayerNorm(16), nn.Tanh())]
    shared, above, heads = nn.Linear(6, 16), nn.Sequential(*layers), nn.ModuleDict({t: nn.Linear(16, 2) for t in TASKS})
    balancer = eq.GradNorm(eq.PerLoss(shared, TASKS), accumulate=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = above(shared(torch.randn(16, 6)))
        losses = {task: 10 * heads[task](hidden).float().sin().square().mean() for task in TASKS}
    (balancer(losses) / 3).backward()
    balancer.step()
    assert 1e-3 < balancer.log()["audit"] < 0.2


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_gradients_that_vanish_in_float16_are_refused_with_the_remedy(scale):
    network = Forked(nn.Linear(8, 8))
    balancer = eq.GradNorm(network.fork)
    x = torch.randn(12, 6)
    with torch.autocast("cpu", torch.float16):
        losses = {task: 1e-7 * output.float().square().mean() for task, output in network(x).items()}
    total = scale * balancer(losses)
    if scale == 1:
        assert "the total loss needs a loss scale (GradScaler)" in refusal(balancer, total)
    else:
        total.backward()
        balancer.step()
        assert balancer.log()["audit"] < 0.1


@pytest.mark.usefixtures("double")
def test_balanced_weights_start_from_the_norms_that_the_audit_has_found():
    network, source = build("Fork, by rule")
    balancer = eq.GradNorm(source, initial_weights="balanced")
    ((x, y),) = data(1)
    losses = losses_of(network, x, y)
    norms = torch.stack(
        [torch.autograd.grad(loss, source.shared_layer.weight, retain_graph=True)[0].norm() for loss in losses.values()]
    )
    balancer(losses).backward()
    balancer.step()
    close(balancer.log()["weights"], 3 / norms / (1 / norms).sum())
    close(balancer.log()["gradient_norms"], (3 / (1 / norms).sum()).expand(3))
