"""What every balancer promises, without a special case."""

import copy

from helpers import processes
import pytest
import torch
from helpers.networks import MLP, mse
from helpers.reference import close
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torchjd import aggregation, scalarization
from helpers.training import batches, train

import equipoise as eq
from equipoise.balancers import _balancer, _gradnorm

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")


def observed(balancer, observations):
    """The balancer after it has been told what its method asks for."""
    balancer.observe(observations)
    return balancer


BALANCERS = {
    "Equal": lambda tasks: eq.Equal(tasks),
    "Static": lambda tasks: eq.Static(tasks, {"a": 1.0, "b": 2.0, "c": 5.0}),
    "InverseInitialLoss": lambda tasks: eq.InverseInitialLoss(tasks),
    "Uncertainty": lambda tasks: eq.Uncertainty(tasks, "regression"),
    "Uncertainty, normalised": lambda tasks: eq.Uncertainty(tasks, "classification", normalize=True),
    "SI": lambda tasks: eq.SI(tasks),
    "DWA": lambda tasks: eq.DWA(tasks, epoch_steps=2),
    "RLW": lambda tasks: eq.RLW(tasks),
    "GLS": lambda tasks: eq.GLS(tasks),
    "InverseTargetVariance": lambda tasks: eq.InverseTargetVariance(tasks, variances={"a": 1.0, "b": 2.0, "c": 5.0}),
    "InverseLossVariance": lambda tasks: eq.InverseLossVariance(tasks),
    "CoV": lambda tasks: eq.CoV(tasks),
    "IMTLL": lambda tasks: eq.IMTLL(tasks),
    "UWSO": lambda tasks: eq.UWSO(tasks),
    "STCH": lambda tasks: eq.STCH(tasks, initial_steps=2),
    "FAMO": lambda tasks: eq.FAMO(tasks),
    "SoftAdapt": lambda tasks: eq.SoftAdapt(tasks, epoch_steps=2),
    "SoftAdapt, loss-weighted": lambda tasks: eq.SoftAdapt(tasks, loss_weighted=True),
    "ReLoBRaLo": lambda tasks: eq.ReLoBRaLo(tasks, alpha=0.9, rho=0.5),
    "DTP": lambda tasks: observed(eq.DTP(tasks), {"a": 0.1, "b": 0.5, "c": 0.8}),
    "GradNorm": lambda tasks: eq.GradNorm(tasks),
    "GradNorm, every third step": lambda tasks: eq.GradNorm(tasks, every=3, initial_steps=2),
    "GradNorm, with patience": lambda tasks: eq.GradNorm(tasks, patience=1),
    "GradNormLogSpace": lambda tasks: eq.GradNormLogSpace(tasks),
    "GradNormClosedForm": lambda tasks: eq.GradNormClosedForm(tasks),
    "InverseGradientNorm": lambda tasks: eq.InverseGradientNorm(tasks, every=1),
    "LRAnnealing": lambda tasks: eq.LRAnnealing(tasks, residual="a"),
    "Scalarized, STCH": lambda tasks: eq.Scalarized(tasks, scalarization.STCH(100.0)),
    "Scalarized, UW": lambda tasks: eq.Scalarized(tasks, scalarization.UW(3)),
    "Aggregated, weights from the Gramian": lambda fork: eq.Aggregated(fork, aggregation.GradVac()),
    "Aggregated, weights from the matrix": lambda fork: eq.Aggregated(fork, aggregation.Random()),
    "Aggregated, at the shared layer": lambda fork: eq.Aggregated(fork, aggregation.MGDA(), at="shared_layer"),
    "Aggregated, a function": lambda fork: eq.Aggregated(fork, lambda matrix: matrix.sum(0)),
    "EnCodec": lambda fork: eq.EnCodec(fork, shares={"a": 1.0, "b": 2.0, "c": 5.0}, decay=0.9),
    "GradDrop": lambda fork: eq.GradDrop(fork),
}
SUM_IS_NOT_T = ("Uncertainty", "SI", "GLS", "IMTLL", "STCH", "DTP", "InverseGradientNorm", "LRAnnealing", "Scalarized")
SUM_IS_T = [name for name in BALANCERS if name.split(", ")[0] not in SUM_IS_NOT_T or "normalised" in name]
NEEDS_NORMS = ("GradNorm", "GradNormLogSpace", "GradNormClosedForm", "InverseGradientNorm", "LRAnnealing")
NEEDS_A_FORK = (*NEEDS_NORMS, "Aggregated", "EnCodec", "GradDrop")
NEEDS_NO_GRADIENTS = [name for name in BALANCERS if name.split(", ")[0] not in NEEDS_A_FORK]


@pytest.fixture(params=BALANCERS, name="name")
def _name(request):
    return request.param


def build(name, tasks=TASKS, seed=0):
    torch.manual_seed(seed)
    network = MLP(tasks)
    return network, BALANCERS[name](network.fork)


def tensors(balancer):
    return {k: v for k, v in balancer.state_dict().items() if isinstance(v, torch.Tensor)}


def test_every_public_balancer_is_here():
    classes = {
        c for c in vars(eq).values() if isinstance(c, type) and issubclass(c, eq.Balancer) and c is not eq.Balancer
    }
    assert classes == {type(build(name)[1]) for name in BALANCERS}


def test_weights_are_finite_and_positive(name):
    network, balancer = build(name)
    for log in train(network, balancer, batches(10, TASKS, units=[1, 10, 100]), lr=1e-4):
        assert torch.isfinite(log["weights"]).all()
        assert (log["weights"] > 0).all()
        assert log["weights"].shape == (3,)


@pytest.mark.parametrize("name", SUM_IS_T)
def test_weights_sum_to_T(name):
    network, balancer = build(name)
    for log in train(network, balancer, batches(10, TASKS, units=[1, 10, 100]), lr=1e-4):
        close(log["weights"].sum(), torch.tensor(3.0))


def test_the_total_is_the_weighted_sum(name):
    network, balancer = build(name)
    train(network, balancer, batches(4, TASKS))
    ((x, y),) = batches(1, TASKS, seed=3)
    losses = mse(network(x), y)
    total = balancer(losses)
    total.backward()
    balancer.step()
    close(total, (balancer.log()["weights"] * torch.stack([*losses.values()])).sum())


def test_permuting_the_tasks_permutes_the_weights(name):
    order = ("c", "a", "b")
    network, balancer = build(name)
    permuted = MLP(order)
    permuted.load_state_dict(network.state_dict())
    permuted_balancer = BALANCERS[name](permuted.fork)
    data = list(batches(8, TASKS, units=[1, 10, 100]))
    train(network, balancer, data, lr=1e-4)
    train(permuted, permuted_balancer, data, lr=1e-4)
    close(permuted_balancer.weights, balancer.weights[[2, 0, 1]])


def test_a_state_dict_continues_bit_for_bit(name, tmp_path):
    network, balancer = build(name)
    data = list(batches(10, TASKS))
    train(network, balancer, data[:5])
    torch.save({"network": network.state_dict(), "balancer": balancer.state_dict()}, tmp_path / "checkpoint.pt")
    train(network, balancer, data[5:])
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other, other_balancer = build(name, seed=7)
    other.load_state_dict(saved["network"])
    other_balancer.load_state_dict(saved["balancer"])
    logs = train(other, other_balancer, data[5:])
    for key, value in tensors(balancer).items():
        assert torch.equal(value, tensors(other_balancer)[key]) or value.isnan().any(), key
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    for key, value in balancer.log().items():
        assert torch.equal(logs[-1][key], value), key


def test_a_state_of_other_tasks_is_refused(name):
    _, balancer = build(name, ("a", "c", "b"))
    _, other = build(name)
    with pytest.raises((ValueError, RuntimeError), match=r"has the tasks \('a', 'b', 'c'\); wanted \('a', 'c', 'b'\)"):
        balancer.load_state_dict(other.state_dict())


def test_an_absent_task_keeps_its_weight_and_its_state(name):
    network, balancer = build(name)
    data = list(batches(4, TASKS))
    train(network, balancer, data[:3])
    before = copy.deepcopy(tensors(balancer))
    x, y = data[3]
    network.zero_grad()
    total = balancer(mse(network(x), y) | {"b": None})
    total.backward()
    assert network.heads["b"][1].weight.grad is None
    balancer.step()
    close(total, sum(balancer.log()["weights"][i] * mse(network(x), y)[TASKS[i]] for i in (0, 2)))
    assert balancer.log()["losses"][1].isnan()
    if name != "Uncertainty, normalised":  # there the common factor moves with the others
        assert balancer.weights[1] == before["weights"][1]
    for key, value in tensors(balancer).items():
        if value.shape == (3,) and key != "weights":
            assert torch.equal(value[1], before[key][1]) or value[1].isnan(), key


def test_what_is_frozen_does_not_move(name):
    network, balancer = build(name)
    data = list(batches(8, TASKS))
    train(network, balancer, data[:4])
    before = copy.deepcopy(tensors(balancer))
    balancer.freeze()
    logs = train(network, balancer, data[4:])
    for log in logs:
        close(log["weights"], before["weights"])
    for key, value in tensors(balancer).items():
        assert torch.equal(value, before[key]), key
    assert set(balancer.averaged()) == set(TASKS)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(name):
    network, balancer = build(name)
    data = list(batches(4, TASKS))
    train(network, balancer, data[:3])
    before = copy.deepcopy(tensors(balancer))
    losses = mse(network(data[3][0]), data[3][1])
    balancer(losses | {"c": losses["c"] * float("nan")}).backward()
    balancer.step()
    for key, value in tensors(balancer).items():
        assert torch.equal(value, before[key] + (key == "skipped_steps")), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_is_that_of_the_network(name, dtype):
    network, balancer = build(name)
    network.to(dtype)
    balancer.to(dtype)
    data = [(x.to(dtype), {t: v.to(dtype) for t, v in y.items()}) for x, y in batches(3, TASKS)]
    logs = train(network, balancer, data)
    assert balancer.weights.dtype == dtype
    assert logs[-1]["losses"].dtype == dtype


def test_it_has_no_parameter_and_holds_none_of_the_network(name):
    _, balancer = build(name)
    assert not list(balancer.parameters())
    assert not list(balancer.children())


def test_no_graph_is_kept(name):
    network, balancer = build(name)
    train(network, balancer, batches(2, TASKS))
    for module in (network.fork, balancer):
        for value in vars(module).values():
            assert not (isinstance(value, torch.Tensor) and value.grad_fn is not None)
    assert balancer._probe.grad is None
    assert not network.fork.measured
    assert all(value.grad_fn is None and not value.requires_grad for value in balancer.log().values())


def test_a_task_too_few_too_many_or_no_scalar_is_refused_by_name(name):
    network, balancer = build(name)
    ((x, y),) = batches(1, TASKS)
    losses = mse(network(x), y)
    with pytest.raises(ValueError, match="task 'b': its loss is missing; hand in None"):
        balancer({"a": losses["a"], "c": losses["c"]})
    with pytest.raises(ValueError, match="unknown task 'd': the tasks are 'a', 'b', 'c'"):
        balancer(losses | {"d": losses["a"]})
    with pytest.raises(ValueError, match=r"task 'c': a loss must be a scalar, of shape \(\); found \(16, 2\)"):
        balancer(losses | {"c": network(x)["c"]})
    with pytest.raises(TypeError, match="task 'a': a loss must be a tensor or None; found float"):
        balancer(losses | {"a": 1.0})
    with pytest.raises(TypeError, match="losses must be a dict by task name; found list"):
        balancer(list(losses.values()))
    with pytest.raises(ValueError, match="task 'a': its loss is on meta, the weights are on cpu"):
        balancer(losses | {"a": losses["a"].to("meta")})


def test_a_first_loss_that_is_not_finite_is_refused_by_name(name):
    network, balancer = build(name)
    ((x, y),) = batches(1, TASKS)
    losses = mse(network(x), y)
    with pytest.raises(ValueError, match="task 'b': its first loss must be finite; found nan"):
        balancer(losses | {"b": losses["b"] * float("nan")})


def test_a_step_without_a_backward_pass_is_refused(name):
    network, balancer = build(name)
    with pytest.raises(RuntimeError, match="after backward"):
        balancer.step()
    ((x, y),) = batches(1, TASKS)
    balancer(mse(network(x), y)).backward()
    balancer.step()
    with pytest.raises(RuntimeError, match="after backward"):
        balancer.step()


@pytest.mark.parametrize("name", NEEDS_NO_GRADIENTS)
def test_names_alone_will_do_where_no_gradient_is_needed(name):
    network, balancer = build(name)
    named = BALANCERS[name](TASKS)
    data = list(batches(5, TASKS))
    twin = copy.deepcopy(network)
    train(network, balancer, data)
    train(twin, named, data)
    close(named.weights, balancer.weights)
    with pytest.raises(ValueError, match="measured at a fork"):
        eq.Equal(TASKS, every=1)


class NoSynchronisation(TorchDispatchMode):
    """Fails where the host would have to wait for a tensor's value, as it would on an accelerator."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITING, f"{func} synchronises"
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device(name, monkeypatch):
    for module in (_balancer, _gradnorm):  # as on an accelerator
        monkeypatch.setattr(module, "is_free_to_read", lambda tensor: False)
    network, balancer = build(name)
    train(network, balancer, batches(2, TASKS))
    for x, y in batches(2, TASKS, seed=4):
        balancer(mse(network(x), y)).backward()
        with NoSynchronisation():
            balancer.step()
            balancer.log()


def test_the_log_has_what_is_promised(name):
    network, balancer = build(name)
    assert set(balancer.log()) == {"weights", "skipped_steps"}
    train(network, balancer, batches(1, TASKS))
    log = balancer.log()
    assert {"losses", "weights", "training_rates", "skipped_steps"} <= log.keys()
    measured = name.startswith("GradNorm")
    assert ({"gradient_norms", "targets"} <= log.keys()) == measured


def test_there_is_one_backward_pass(name):
    """Whatever is measured or weighed, the gradient at the output of every layer is computed once a step."""
    network, balancer = build(name)
    counts = {}

    def counted(module, inputs, output):
        output.register_hook(lambda gradient: counts.update({module: counts.get(module, 0) + 1}))

    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(counted)
    for x, y in batches(4, TASKS):
        counts.clear()
        balancer(mse(network(x), y)).backward()
        balancer.step()
        assert counts == dict.fromkeys(layers, 1)


# Dynamo looks at the .grad of tensors that are no leaves, and makes an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_with_the_model_it_does_the_same(name):
    """The network, the losses and the balancer in one compiled function."""
    found = []
    for compiled in (True, False):
        network, balancer = build(name)

        def total(x, y, network=network, balancer=balancer):
            return balancer(mse(network(x), y))

        torch.compiler.reset()
        total = torch.compile(total, backend="aot_eager") if compiled else total
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
    BALANCERS.update(WITH_MEMORY)
    return {name: on_a_share(name, rank, world) for name in BALANCERS}


WITH_MEMORY = {
    "Scalarized, DWA": lambda tasks: eq.Scalarized(tasks, scalarization.DWA()),
    "Scalarized, FAMO": lambda tasks: eq.Scalarized(tasks, scalarization.FAMO(3)),
    "Scalarized, Random": lambda tasks: eq.Scalarized(tasks, scalarization.Random()),
}
"""What refuses absent tasks, or does not know the tasks by name."""


def test_two_processes_are_identical_and_equal_to_one_with_both_batches(monkeypatch):
    first, second = processes.run(all_on_a_share, 2)
    for name, build_one in WITH_MEMORY.items():
        monkeypatch.setitem(BALANCERS, name, build_one)
    assert first.keys() == BALANCERS.keys()
    for name in BALANCERS:
        assert torch.equal(first[name], second[name]), name
        close(first[name], on_a_share(name), msg=lambda text, name=name: f"{name}: {text}")
