"""Any aggregator inside the fork, against TorchJD's own way through the same network."""

import copy
import inspect
import pickle
from itertools import count

import pytest
import torch
from helpers.entry_points import Block
from helpers.networks import MLP, mse
from helpers.reference import close, task_gradients
from helpers.training import batches, train
from torch import nn
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

import equipoise as eq
from equipoise.balancer.rng import generator

pytestmark = [
    pytest.mark.usefixtures("double"),
    # cvxpy on the problem and on the solver that NashMTL hands to it
    pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*ECOS:FutureWarning"),
]

TASKS = ("a", "b", "c")
UNITS = (1.0, 5.0, 30.0)

AGGREGATORS = {
    "AlignedMTL": lambda: aggregation.AlignedMTL(),
    "CAGrad": lambda: aggregation.CAGrad(c=0.5),
    "ConFIG": lambda: aggregation.ConFIG(),
    "Constant": lambda: aggregation.Constant(torch.tensor([1.0, 2.0, 3.0])),
    "DualProj": lambda: aggregation.DualProj(),
    "ExcessMTL": lambda: aggregation.ExcessMTL(),
    "FairGrad": lambda: aggregation.FairGrad(alpha=1.0),
    "GradDrop": lambda: aggregation.GradDrop(),
    "GradVac": lambda: aggregation.GradVac(),
    "IMTLG": lambda: aggregation.IMTLG(),
    "Krum": lambda: aggregation.Krum(n_byzantine=0),
    "MGDA": lambda: aggregation.MGDA(),
    "Mean": lambda: aggregation.Mean(),
    "NashMTL": lambda: aggregation.NashMTL(n_tasks=3),
    "PCD": lambda: aggregation.PCD(),
    "PCGrad": lambda: aggregation.PCGrad(),
    "Random": lambda: aggregation.Random(),
    "Sum": lambda: aggregation.Sum(),
    "TrimmedMean": lambda: aggregation.TrimmedMean(1),
    "UPGrad": lambda: aggregation.UPGrad(),
}
WEIGHTED = sorted(set(AGGREGATORS) - {"ConFIG", "GradDrop", "TrimmedMean"})
REMEMBERING = ("ExcessMTL", "GradVac", "PCD")


def network_of(seed=0, shared_layer=None):
    torch.manual_seed(seed)
    network = MLP(TASKS)
    if shared_layer is not None:
        network.fork = eq.Fork(shared_layer, TASKS)
    return network


def losses_of(network, x, y):
    return {task: unit * loss for (task, loss), unit in zip(mse(network(x), y).items(), UNITS, strict=True)}


def seeds(seed=0):
    """The seeds of the first backward pass of one step after the other."""
    for step in count():
        yield generator(seed, step, 0).initial_seed()


def by_torchjd(network, aggregator, x, y, seed):
    """All gradients as TorchJD gives them, with the features for the shared parameters; and the weights, if there are any."""
    network.zero_grad()
    features = network.fork.shared_layer(network.trunk(x))
    leaf = features.detach().requires_grad_()
    shared = leaf.clone()
    outputs = {task: network.heads[task](shared) for task in TASKS}
    losses = [unit * loss for loss, unit in zip(mse(outputs, y).values(), UNITS, strict=True)]
    mtl_backward(losses, features=shared)
    torch.manual_seed(seed)
    weights = jac_to_grad([leaf], aggregator)
    features.backward(leaf.grad)
    return {name: p.grad.clone() for name, p in network.named_parameters()}, weights


def test_all_of_torchjds_aggregators_are_here():
    found = {
        name
        for name, value in vars(aggregation).items()
        if inspect.isclass(value) and issubclass(value, aggregation.Aggregator) and not inspect.isabstract(value)
    }
    assert found - {"WeightedAggregator", "GramianWeightedAggregator"} == set(AGGREGATORS)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_gradients_are_those_of_torchjd(name):
    network, plain = network_of(), network_of()
    aggregator = AGGREGATORS[name]()
    balancer = eq.Aggregated(network.fork, AGGREGATORS[name]())
    for (x, y), seed in zip(batches(3, TASKS), seeds(), strict=False):
        expected, weights = by_torchjd(plain, aggregator, x, y, seed)
        network.zero_grad()
        balancer(losses_of(network, x, y)).backward()
        balancer.step()
        for parameter_name, parameter in network.named_parameters():
            close(parameter.grad, expected[parameter_name], msg=lambda text, at=parameter_name: f"{at}: {text}")
        if name in WEIGHTED:
            close(balancer.log()["aggregation_weights"], weights)
        assert ("aggregation_weights" in balancer.log()) == (name in WEIGHTED)
        with torch.no_grad():
            for each in (*network.parameters(), *plain.parameters()):
                each -= 0.01 * each.sign()


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("layer", [lambda: nn.Linear(8, 8), Block], ids=["by rule", "a block"])
def test_at_the_shared_layer_its_gradient_is_the_aggregated_one(name, layer):
    network = network_of(shared_layer=layer())
    balancer = eq.Aggregated(network.fork, AGGREGATORS[name](), at="shared_layer")
    ((x, y),) = batches(1, TASKS)
    W = list(network.fork.shared_parameters.values())
    matrix = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, W, retain_graph=True)])
            for loss in losses_of(network, x, y).values()
        ]
    )
    torch.manual_seed(next(seeds()))
    expected = AGGREGATORS[name]()(matrix)
    balancer(losses_of(network, x, y)).backward()
    balancer.step()
    close(torch.cat([p.grad.flatten() for p in W]), expected)
    close(balancer.log()["gradient_norms"], matrix.norm(dim=1))


def test_a_function_of_ones_own():
    network, plain = network_of(), network_of()
    balancer = eq.Aggregated(network.fork, lambda matrix: matrix.median(0).values)
    ((x, y),) = batches(1, TASKS)
    features = plain.fork.shared_layer(plain.trunk(x))
    losses = [u * v for u, v in zip(UNITS, mse({t: plain.heads[t](features) for t in TASKS}, y).values(), strict=True)]
    rows = task_gradients(losses, features)
    features.backward(rows.median(0).values)
    balancer(losses_of(network, x, y)).backward()
    balancer.step()
    for ours, theirs in zip(network.trunk.parameters(), plain.trunk.parameters(), strict=True):
        close(ours.grad, theirs.grad)
    close(balancer.log()["gradient_norms"], rows.flatten(1).norm(dim=1))


def test_features_of_several_tensors_are_one_row():
    first, second = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    fork = eq.Fork(None, ("a", "b"))
    balancer = eq.Aggregated(fork, aggregation.UPGrad())
    given = fork({"first": first, "second": second})
    a = (given["a"]["first"] ** 2).sum() + given["a"]["second"].sum()
    b = 2 * given["b"]["first"].sum()  # the second tensor is not read
    balancer({"a": a, "b": b}).backward()
    row_a = torch.cat([2 * first.detach().flatten(), torch.ones(8)])
    row_b = torch.cat([torch.full((12,), 2.0), torch.zeros(8)])
    close(torch.cat([first.grad.flatten(), second.grad.flatten()]), aggregation.UPGrad()(torch.stack([row_a, row_b])))


def one_step(build, rate=1e-3):
    """How two losses that pull one number in opposite directions, and one other number alike, change in one step."""
    theta = torch.tensor([0.0, 1.0], requires_grad=True)
    fork = eq.Fork(None, ("a", "b"))
    balancer = build(fork)

    def losses(theta):
        return {"a": (theta["a"] - torch.tensor([1.0, 0.0])).square().sum(), "b": 9 * (theta["b"] + 1).square()[0]}

    before = losses(fork(theta))
    balancer(before).backward()
    after = losses(dict.fromkeys(fork.tasks, theta.detach() - rate * theta.grad))
    return torch.stack([after[t] - before[t].detach() for t in fork.tasks])


@pytest.mark.parametrize("name", ["UPGrad", "MGDA", "CAGrad", "NashMTL", "FairGrad"])
def test_no_loss_rises_where_the_sum_lets_one_rise(name):
    assert (one_step(eq.Equal) > 0).any()
    aggregator = aggregation.NashMTL(n_tasks=2) if name == "NashMTL" else AGGREGATORS[name]()
    aggregator = aggregation.CAGrad(c=2.0) if name == "CAGrad" else aggregator
    assert (one_step(lambda fork: eq.Aggregated(fork, aggregator)) < 0).all()


@pytest.mark.parametrize("name", AGGREGATORS)
def test_what_multiplies_the_total_loss_multiplies_the_result_and_nothing_else(name):
    found = {}
    for scale in (1.0, 2.0**-20, 2.0**20):  # UPGrad, CAGrad and NashMTL hold their settings against absolute sizes
        network = network_of()
        balancer = eq.Aggregated(network.fork, AGGREGATORS[name]())
        for x, y in batches(2, TASKS):
            network.zero_grad()
            (scale * balancer(losses_of(network, x, y))).backward()
            balancer.step()
        found[scale] = torch.cat([p.grad.flatten() for p in network.parameters()]) / scale, balancer.log()
    for gradient, log in found.values():
        assert torch.equal(gradient, found[1.0][0])
        close(log["gradient_norms"], found[1.0][1]["gradient_norms"])


def test_each_micro_batch_is_aggregated_by_itself():
    network = network_of()
    balancer = eq.Aggregated(network.fork, aggregation.UPGrad())
    ((x, y),) = batches(1, TASKS)
    expected, weights = 0, 0
    for part in (slice(4), slice(4, 16)):
        share = (part.stop - (part.start or 0)) / 16
        gradients, found = by_torchjd(
            network_of(), aggregation.UPGrad(), x[part], {t: v[part] for t, v in y.items()}, 0
        )
        expected = expected + share * gradients["trunk.0.weight"]
        weights = weights + share * found
    for part in (slice(4), slice(4, 16)):
        share = (part.stop - (part.start or 0)) / 16
        (share * balancer(losses_of(network, x[part], {t: v[part] for t, v in y.items()}))).backward()
    balancer.step()
    close(network.trunk[0].weight.grad, expected)
    close(balancer.log()["aggregation_weights"], weights)


def test_an_absent_task_is_left_out_of_the_matrix():
    network = network_of()
    seen = []
    balancer = eq.Aggregated(network.fork, lambda matrix: seen.append(matrix) or matrix.sum(0))
    ((x, y),) = batches(1, TASKS)
    balancer(losses_of(network, x, y) | {"b": None}).backward()
    balancer.step()
    assert [matrix.shape for matrix in seen] == [(2, 16 * 8)]
    norms = seen[0].norm(dim=1)
    close(balancer.log()["gradient_norms"], torch.stack([norms[0], torch.tensor(torch.nan), norms[1]]), equal_nan=True)


def test_random_numbers_are_its_own():
    def gradients(seed, disturb):
        network = network_of()
        balancer = eq.Aggregated(network.fork, aggregation.Random(), seed=seed)
        found = []
        for x, y in batches(3, TASKS):
            if disturb:
                torch.rand(3)
            network.zero_grad()
            balancer(losses_of(network, x, y)).backward()
            balancer.step()
            found.append(network.trunk[0].weight.grad.clone())
        return torch.stack(found)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = gradients(0, disturb=False)
    torch.manual_seed(5)
    network_of()
    assert torch.equal(before, torch.manual_seed(5).get_state())
    assert torch.equal(first, gradients(0, disturb=True))
    assert not torch.equal(first, gradients(1, disturb=False))


def test_drawing_leaves_the_generators_of_others_alone():
    network = network_of()
    balancer = eq.Aggregated(network.fork, aggregation.Random())
    ((x, y),) = batches(1, TASKS)
    total = balancer(losses_of(network, x, y))
    before = torch.get_rng_state()
    total.backward()
    assert torch.equal(torch.get_rng_state(), before)


class Momentum(nn.Module):
    """An aggregator that keeps all of its memory in buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, matrix):
        mean = matrix.mean(0)
        self.mean = mean if self.mean is None else 0.9 * self.mean + 0.1 * mean
        return self.mean

    def reset(self):
        self.mean = None


def resumed(network, balancer, data, aggregator, tmp_path):
    """Whether the parameters are the same bit for bit after the last steps of a run that is saved and taken up again."""
    train(network, balancer, data[:3])
    torch.save({"network": network.state_dict(), "balancer": balancer.state_dict()}, tmp_path / "checkpoint.pt")
    train(network, balancer, data[3:])
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other = network_of(seed=7)
    other_balancer = eq.Aggregated(other.fork, aggregator)
    other.load_state_dict(saved["network"])
    other_balancer.load_state_dict(saved["balancer"])
    train(other, other_balancer, data[3:])
    return all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_the_buffers_of_an_aggregator_are_in_the_state_dict(tmp_path):
    network = network_of()
    balancer = eq.Aggregated(network.fork, Momentum())
    assert resumed(network, balancer, list(batches(6, TASKS)), Momentum(), tmp_path)
    assert "aggregator.mean" in balancer.state_dict()
    fresh = eq.Aggregated(network_of().fork, Momentum()).state_dict()
    balancer.load_state_dict(fresh)  # saved before the first call
    assert balancer.aggregator.mean is None


@pytest.mark.parametrize("name", ["AlignedMTL", "Constant", "PCGrad", "Random", "UPGrad"])
def test_a_run_with_an_aggregator_without_memory_is_taken_up_again(name, tmp_path):
    network = network_of()
    balancer = eq.Aggregated(network.fork, AGGREGATORS[name]())
    assert resumed(network, balancer, list(batches(6, TASKS)), AGGREGATORS[name](), tmp_path)


@pytest.mark.parametrize("name", [*REMEMBERING, "NashMTL"])
def test_an_aggregator_that_cannot_be_saved_begins_anew_and_says_so(name, tmp_path):
    network = network_of()
    balancer = eq.Aggregated(network.fork, AGGREGATORS[name]())
    with pytest.warns(UserWarning, match=f"{name} begins anew: a part of its memory is no buffer"):
        assert not resumed(network, balancer, list(batches(6, TASKS)), AGGREGATORS[name](), tmp_path)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_copy_has_the_memory_of_the_aggregator(name):
    network = network_of()
    balancer = eq.Aggregated(network.fork, AGGREGATORS[name]())
    data = list(batches(6, TASKS))
    train(network, balancer, data[:3])
    for duplicate in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        other, other_balancer = duplicate((network, balancer))
        train(other, other_balancer, data[3:])
        original, its_balancer = copy.deepcopy((network, balancer))
        train(original, its_balancer, data[3:])
        assert all(torch.equal(a, b) for a, b in zip(original.parameters(), other.parameters(), strict=True))


def test_in_half_precision_and_back_the_memory_keeps_its_precision():
    network = network_of()
    balancer = eq.Aggregated(network.fork, Momentum())
    train(network, balancer, batches(1, TASKS))
    assert balancer.half().aggregator.mean.dtype == torch.float64


def test_a_gradient_that_is_not_finite_goes_on_and_the_aggregator_is_not_asked():
    asked = []
    network = network_of()
    balancer = eq.Aggregated(network.fork, lambda matrix: asked.append(matrix) or matrix.sum(0))
    (first, (x, y)) = batches(2, TASKS)
    train(network, balancer, [first])
    asked.clear()
    losses = losses_of(network, x, y)
    balancer(losses | {"b": losses["b"] * float("nan")}).backward()
    balancer.step()
    assert not asked
    assert network.trunk[0].weight.grad.isnan().any()
    assert balancer.log()["skipped_steps"] == 1


def test_what_cannot_be_is_refused_by_name():
    fork = network_of().fork
    with pytest.raises(
        TypeError, match=r"aggregator must be callable, matrix \(T, n\) -> vector \(n,\); found 'upgrad' of type str"
    ):
        eq.Aggregated(fork, "upgrad")
    with pytest.raises(ValueError, match="at must be 'features' or 'shared_layer'; found 'W'"):
        eq.Aggregated(fork, aggregation.UPGrad(), at="W")
    for aggregator, name in ((aggregation.ConFIG(), "ConFIG"), (len, "len")):
        with pytest.raises(
            ValueError, match=f"weighted sum, whose weights can be applied at the features; found {name}"
        ):
            eq.Aggregated(fork, aggregator, at="shared_layer")
    with pytest.raises(
        ValueError, match="at='shared_layer' needs a Fork with a shared_layer; found one at the features"
    ):
        eq.Aggregated(eq.Fork(None, TASKS), aggregation.UPGrad(), at="shared_layer")
    with pytest.raises(TypeError, match="seed must be an integer; found 1.5"):
        eq.Aggregated(fork, aggregation.UPGrad(), seed=1.5)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0; found -1"):
        eq.Aggregated(fork, aggregation.UPGrad(), seed=-1)


@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        (lambda matrix: matrix, r"<lambda> must return \(128,\) for a matrix \(3, 128\); found \(3, 128\)"),
        (aggregation.Constant(torch.ones(2)), "should have 2 rows"),
    ],
)
def test_a_result_of_another_shape_is_refused(aggregator, message):
    network = network_of()
    balancer = eq.Aggregated(network.fork, aggregator)
    total = balancer(losses_of(network, *next(batches(1, TASKS))))
    with pytest.raises((ValueError, RuntimeError), match=message):
        total.backward()
