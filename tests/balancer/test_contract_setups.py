"""What every balancer promises of how it works: one backward pass, no waiting, micro-batches, compilers, processes."""

import inspect
import sys

import pytest
import torch
from helpers import processes
from helpers.balancers import BALANCERS, CLASSES, COMBINES, NEEDS_ALL_TASKS, TASKS, buffers, build
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches, train
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("double")

ACCUMULATE = [n for n, c in CLASSES.items() if "accumulate" in inspect.signature(c).parameters]


@pytest.fixture(params=BALANCERS, name="name")
def _name(request):
    return request.param


# One backward pass


def counted_passes(network, balancer, late):
    """For every step, how often a gradient arrived at the output of the trunk and of each head; task "c" comes late."""
    counts, found = {}, []
    names = {module: name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}

    def counted(module, inputs, output):
        output.register_hook(lambda gradient: counts.update({names[module]: counts.get(names[module], 0) + 1}))

    for layer in [network.trunk[0], *(head[1] for head in network.heads.values())]:
        layer.register_forward_hook(counted)
    for step, (x, y) in enumerate(batches(16, TASKS)):
        counts.clear()
        losses = mse(network(x), y)
        balancer(losses | {"c": losses["c"] if step >= late else None}).backward()
        balancer.step()
        found.append(dict(counts))
    return found


def test_there_is_one_backward_pass(name):
    """Beside it the audit differentiates a loss as far as W: in a task's first step, and in few more, ever further apart."""
    late = 0 if name in NEEDS_ALL_TASKS else 5
    network, balancer = build(name)
    found = counted_passes(network, balancer, late)
    audited, every = "audit" in balancer.log(), 3 if name.endswith("every third step") else 1
    first_of_c = next(step for step in range(late, len(found)) if step % every == 0)
    for step, counts in enumerate(found):
        present = [task for task in TASKS if task != "c" or step >= late]
        plain = {"trunk.0": 1} | {f"heads.{task}.1": 1 for task in present}
        assert counts.keys() == plain.keys()
        assert counts["trunk.0"] == 1
        assert max(counts.values()) <= 3
        if step == 0 and audited:
            assert counts == {name: 1 if name == "trunk.0" else 2 for name in plain}
        if step == first_of_c > 0 and audited:
            assert counts == plain | {"heads.c.1": 2}
        if not audited or step % every or step > 8 * every:
            assert counts == plain, step


# No waiting for the device


class NoSynchronisation(TorchDispatchMode):
    """Fails where the host would have to wait for a tensor's value, as it would on an accelerator."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITING, f"{func} synchronises"
        return func(*args, **(kwargs or {}))


def as_on_an_accelerator(patch):
    """No value is free to read, in any module that asks."""
    asked = [
        m for name, m in list(sys.modules.items()) if name.startswith("equipoise") and hasattr(m, "reads_without_sync")
    ]
    assert len(asked) >= 2
    for module in asked:
        patch.setattr(module, "reads_without_sync", lambda tensor: False)


def no_reading(patch):
    """What reads the memory of a tensor on the CPU without an operation that a dispatch mode sees."""

    def refuse(tensor, *args, **kwargs):
        raise AssertionError("a tensor is read on the host")

    for way in ("tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
        patch.setattr(torch.Tensor, way, refuse)


def test_a_step_does_not_wait_for_the_device(name, monkeypatch):
    as_on_an_accelerator(monkeypatch)
    network, balancer = build(name)
    for step, (x, y) in enumerate(batches(12, TASKS)):
        losses = mse(network(x), y)
        if step < 9:  # an audit waits
            balancer(losses).backward()
            balancer.step()
            continue
        if step == 11 and name not in NEEDS_ALL_TASKS:
            losses["b"] = None
        with pytest.MonkeyPatch.context() as patch, NoSynchronisation():
            no_reading(patch)
            total = balancer(losses)
            if not name.startswith("Aggregated"):  # whose aggregators wait
                total.backward()
        if name.startswith("Aggregated"):
            total.backward()
        with pytest.MonkeyPatch.context() as patch, NoSynchronisation():
            no_reading(patch)
            balancer.step()
            balancer.log()


def test_without_reading_the_outcome_is_the_same(name, monkeypatch):
    """Also where a task is absent and where a step is not finite."""
    found = []
    for accelerated in (False, True):
        if accelerated:
            as_on_an_accelerator(monkeypatch)
        network, balancer = build(name)
        train(network, balancer, batches(3, TASKS, units=[1, 10, 100]), lr=1e-4)
        for number, (x, y) in enumerate(batches(4, TASKS, seed=4)):
            network.zero_grad()
            losses = mse(network(x), y)
            if number == 1 and name not in NEEDS_ALL_TASKS:
                losses["b"] = None
            if number == 3:
                losses["c"] = losses["c"] * float("nan")
            balancer(losses).backward()
            balancer.step()
        found.append(buffers(balancer))
    assert found[0]["skipped_steps"] == 1
    for key, value in found[0].items():
        close(found[1][key], value, equal_nan=True, msg=key)


# Micro-batches


BY_PARTS = [name for name in ACCUMULATE if "balanced" not in name]
"""Weights that are balanced first are so by the first micro-batch alone."""


@pytest.mark.parametrize("name", BY_PARTS)
def test_micro_batches_are_one_batch(name):
    """For a method whose weights depend on the losses at hand every micro-batch has weights of its own; its norms are a sum."""
    whole, whole_balancer = build(name, every=1)
    parts, balancer = build(name, every=1, accumulate=True)
    for x, y in batches(4, TASKS, size=12, units=[1, 10, 100]):
        whole_balancer(mse(whole(x), y)).backward()
        whole_balancer.step()
        for rows in (slice(0, 2), slice(2, 7), slice(7, 12)):
            part = mse(parts(x[rows]), {task: v[rows] for task, v in y.items()})
            (balancer(part) * ((rows.stop - rows.start) / 12)).backward()
        balancer.step()
        if not balancer.weighs:
            close(balancer.weights, whole_balancer.weights)
            close(balancer.log()["gradient_norms"], whole_balancer.log()["gradient_norms"])
        close(balancer.log()["losses"], whole_balancer.log()["losses"])
        assert torch.isfinite(balancer.weights).all()
    assert balancer.skipped_steps == 0


@pytest.mark.parametrize("name", ACCUMULATE)
def test_a_second_backward_pass_that_was_not_announced_is_refused(name):
    network, balancer = build(name, every=1)
    ((x, y),) = batches(1, TASKS)
    balancer(mse(network(x), y)).backward()
    second = balancer(mse(network(x), y))
    with pytest.raises(RuntimeError, match=rf"{type(balancer).__name__}\(\.\.\., accumulate=True\)"):
        second.backward()
    balancer.zero_grad()
    train(network, balancer, batches(2, TASKS))


# Compilers


COMPILED = [name for name in BALANCERS if "balanced" not in name]


# Dynamo looks at the .grad of tensors that are no leaves, and makes an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_with_the_model_it_does_the_same(name):
    """The network, the losses and the balancer in one compiled function; those that combine gradients are outside of it."""
    found = []
    for compiled in (True, False):
        network, balancer = build(name)
        compiler = (lambda f: torch.compile(f, backend="aot_eager")) if compiled else (lambda f: f)
        losses = lambda x, y, network=network: mse(network(x), y)  # noqa: E731
        torch.compiler.reset()
        if name in COMBINES:
            losses = compiler(losses)
            total = lambda x, y, balancer=balancer, losses=losses: balancer(losses(x, y))  # noqa: E731
        else:
            total = compiler(lambda x, y, balancer=balancer, losses=losses: balancer(losses(x, y)))
        for x, y in batches(3, TASKS, units=[1, 10, 100]):
            network.zero_grad()
            total(x, y).backward()
            for parameter in network.parameters():
                parameter.data -= 1e-4 * parameter.grad
            balancer.step()
        found.append([balancer.weights, *(p.detach() for p in network.parameters())])
        assert balancer.skipped_steps == 0
    for ours, plain in zip(*found, strict=True):
        close(ours, plain)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_weights_cannot_be_balanced_in_compiled_code():
    network, balancer = build("GradNormClosedForm, balanced first")
    ((x, y),) = batches(1, TASKS)
    total = torch.compile(lambda x, y: balancer(mse(network(x), y)), backend="aot_eager")
    total(x, y).backward()
    with pytest.raises(
        ValueError,
        match="initial_weights='balanced' needs the gradients.*in compiled code, or captured in a CUDA graph. Give the weights",
    ):
        balancer.step()
    torch.compiler.reset()


# Processes


def on_a_share(name, rank=0, world=1):
    """The weights of six steps on this process's share of every batch."""
    network, balancer = build(name)
    rows = []
    for x, y in batches(6, TASKS, units=[1.0, 5.0, 30.0]):
        share = slice(rank, None, world)
        network.zero_grad()
        balancer(mse(network(x[share]), {task: v[share] for task, v in y.items()})).backward()
        for parameter in network.parameters():
            if world > 1:
                distributed.all_reduce(parameter.grad)
            parameter.data -= 1e-3 * parameter.grad / world
        balancer.step()
        rows.append(balancer.log()["weights"])
    return torch.stack([*rows, balancer.weights])


def all_on_a_share(rank, world):
    processes.connect()
    return {name: on_a_share(name, rank, world) for name in BALANCERS}


def test_two_processes_are_identical_and_equal_to_one_with_both_batches():
    first, second = processes.run(all_on_a_share, 2)
    assert first.keys() == BALANCERS.keys()
    for name in BALANCERS:
        assert torch.equal(first[name], second[name]), name
        close(first[name], on_a_share(name), msg=lambda text, name=name: f"{name}: {text}")
