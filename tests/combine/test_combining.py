"""What all balancers promise that combine task gradients inside the fork."""

import copy
import pickle

import pytest
import torch
from helpers.entry_points import build as build_door
from helpers.lockstep import assert_same_state
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches, train
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint
from torchjd import aggregation

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

OF_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
"""Where a graph ends, Dynamo looks at the .grad of tensors that are no leaves."""

TASKS = ("a", "b", "c")
UNITS = (1.0, 5.0, 30.0)


def summed_up(matrix):
    """An aggregator that does no more than a fork that is none."""
    return matrix.sum(0)


METHODS = {
    "Aggregated, weights from the Gramian": lambda fork: eq.Aggregated(fork, aggregation.UPGrad()),
    "Aggregated, weights from the matrix": lambda fork: eq.Aggregated(fork, aggregation.Random()),
    "Aggregated, at the shared layer": lambda fork: eq.Aggregated(fork, aggregation.UPGrad(), at="shared_layer"),
    "Aggregated, any": lambda fork: eq.Aggregated(fork, aggregation.ConFIG()),
    "EnCodec": lambda fork: eq.EnCodec(fork, lambdas={"a": 1.0, "b": 2.0, "c": 5.0}, decay=0.9),
    "GradDrop": lambda fork: eq.GradDrop(fork),
}


@pytest.fixture(params=METHODS, name="method")
def _method(request):
    return METHODS[request.param]


def build(method, seed=0):
    torch.manual_seed(seed)
    network = MLP(TASKS)
    return network, method(network.fork)


def losses_of(network, x, y):
    return {task: unit * loss for (task, loss), unit in zip(mse(network(x), y).items(), UNITS, strict=True)}


def gradient_of(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def steps(network, balancer, data, model=None):
    """Train; return all gradients and logs of all steps."""
    found = []
    for x, y in data:
        network.zero_grad()
        balancer(losses_of(network if model is None else model, x, y)).backward()
        balancer.step()
        found.append((gradient_of(network), balancer.log()))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.001 * parameter.grad.sign()
    return found


def assert_same(found, expected):
    for (gradient, log), (wanted, log_wanted) in zip(found, expected, strict=True):
        close(gradient, wanted)
        for key in log_wanted:
            close(log[key], log_wanted[key], equal_nan=True)


def test_the_heads_get_the_gradients_of_their_own_plain_losses_and_the_trunk_does_not(method):
    network, balancer = build(method)
    plain, equal = build(eq.Equal)
    ((x, y),) = batches(1, TASKS)
    balancer(losses_of(network, x, y)).backward()
    equal(losses_of(plain, x, y)).backward()
    for ours, theirs in zip(network.heads.parameters(), plain.heads.parameters(), strict=True):
        close(ours.grad, theirs.grad)
    assert not torch.allclose(network.trunk[0].weight.grad, plain.trunk[0].weight.grad)


def test_there_is_one_backward_pass(method):
    network, balancer = build(method)
    passes = []
    for part in (network.trunk[0], *(head[1] for head in network.heads.values())):
        part.weight.register_hook(lambda gradient: passes.append(gradient.shape))
    ((x, y),) = batches(1, TASKS)
    balancer(losses_of(network, x, y)).backward()
    assert len(passes) == 1 + len(TASKS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_loss_scale(method, dtype):
    found = {}
    for scale in (1.0, 2.0**12):
        network, _ = build(method)
        network.float()
        balancer = method(network.fork).float()
        ((x, y),) = batches(1, TASKS)
        with torch.autocast("cpu", dtype):
            total = balancer(losses_of(network, x.float(), {t: v.float() for t, v in y.items()}))
        (scale * total).backward()
        balancer.step()
        found[scale] = network.trunk[0].weight.grad / scale, balancer.log()["gradient_norms"]
        assert network.trunk[0].weight.grad.dtype == torch.float32
    for one, other in zip(*found.values(), strict=True):
        close(one, other, rtol=0.02, atol=2e-3)  # small gradients in half precision are better with a scale


def test_a_pass_of_ones_own_through_the_fork_is_plain(method):
    """Gradients of single losses for a log, before the step's own pass and after it."""
    network, balancer = build(method)
    plain, _ = build(eq.Equal)
    ((x, y),) = batches(1, TASKS)
    losses, wanted = losses_of(network, x, y), losses_of(plain, x, y)
    total = balancer(losses)

    def look():
        for of in (lambda each: each["b"], lambda each: sum(each.values())):
            (ours,) = torch.autograd.grad(of(losses), network.trunk[0].weight, retain_graph=True)
            (theirs,) = torch.autograd.grad(of(wanted), plain.trunk[0].weight, retain_graph=True)
            close(ours, theirs)

    look()
    total.backward(retain_graph=True)
    look()
    balancer.step()
    other, other_balancer = build(method)
    other_balancer(losses_of(other, x, y)).backward()
    close(gradient_of(network), gradient_of(other))


def test_a_pass_that_is_thrown_away_leaves_nothing(method):
    first, second = batches(2, TASKS)
    network, balancer = build(method)
    balancer(losses_of(network, *first)).backward()
    balancer.zero_grad()
    steps(network, balancer, [second])
    other, expected = build(method)
    steps(other, expected, [second])
    close(balancer.log()["gradient_norms"], expected.log()["gradient_norms"])


def test_in_eval_it_is_the_plain_sum_and_notices_nothing(method):
    network, balancer = build(method)
    plain, equal = build(eq.Equal)
    ((x, y),) = batches(1, TASKS)
    balancer.eval()
    total = balancer(losses_of(network, x, y))
    total.backward()
    equal(losses_of(plain, x, y)).backward()
    close(gradient_of(network), gradient_of(plain))
    network.eval()
    features = network.fork(torch.ones(2, 8))
    assert features["a"] is features["b"]


def test_a_balancer_that_only_weighs_has_plain_gradients(method):
    network, _ = build(method)
    plain, _ = build(eq.Equal)
    data = list(batches(2, TASKS))
    found = steps(network, eq.Equal(network.fork), data)
    assert_same(found, steps(plain, eq.Equal(plain.fork), data))


@pytest.mark.parametrize("later", [eq.GradNorm, lambda fork: eq.EnCodec(fork)], ids=["GradNorm", "EnCodec"])
def test_one_fork_serves_one_balancer_the_one_that_was_made_last(method, later):
    network, balancer = build(method)
    data = list(batches(2, TASKS))
    steps(network, balancer, data[:1])
    other = later(network.fork)
    with pytest.raises(RuntimeError, match="another balancer was made from this fork later"):
        balancer(losses_of(network, *data[1]))
    balancer.reset_parameters()  # does not take the fork back
    plain, _ = build(later)
    plain.load_state_dict(network.state_dict())
    assert_same(steps(network, other, data[1:]), steps(plain, later(plain.fork), data[1:]))


def test_a_gradnorm_gives_way_by_name(method):
    network, _ = build(method)
    first = eq.GradNorm(network.fork)
    balancer = method(network.fork)
    with pytest.raises(RuntimeError, match="GradNorm: another balancer, made from this fork later"):
        first(losses_of(network, *next(batches(1, TASKS))))
    expected = steps(*build(method), batches(1, TASKS))
    assert_same(steps(network, balancer, batches(1, TASKS)), expected)


def test_a_fork_that_another_balancer_has_taken_over_combines_no_more(method):
    network, _ = build(method)
    balancer = eq.GradNorm(network.fork, alpha=0.0, every=2)
    steps(network, balancer, batches(1, TASKS))
    features = network.fork(torch.ones(2, 8))
    assert features["a"] is features["b"]  # in a step that is not measured


def test_a_gradient_that_is_not_finite_counts_where_the_loss_is_finite(method):
    network, balancer = build(method)
    (first, (x, y)) = batches(2, TASKS)
    steps(network, balancer, [first])
    before = copy.deepcopy(balancer.state_dict())
    outputs = network(x)
    losses = mse(outputs, y)
    losses["b"] = losses["b"] + (outputs["b"] - outputs["b"].detach()).abs().sum().sqrt()
    balancer(losses).backward()
    balancer.step()
    assert not network.trunk[0].weight.grad.isfinite().all()
    assert balancer.log()["skipped_steps"] == 1
    assert_same_state(before, balancer.state_dict(), but=["_extra_state", "skipped_steps"])


@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_a_term_that_is_no_task_adds_its_own_gradient_unchanged(method, scale):
    network, balancer = build(method)
    ((x, y),) = batches(1, TASKS)
    balancer(losses_of(network, x, y)).backward()
    combined = [p.grad.clone() for p in network.trunk.parameters()]
    plain, _ = build(eq.Equal)
    penalty = 3.0 * plain.fork.shared_layer(plain.trunk(x)).square().mean()
    expected = torch.autograd.grad(penalty, list(plain.trunk.parameters()))
    other, _ = build(eq.Equal)
    other.fork = eq.Fork(other.fork.shared_layer, TASKS, others=("penalty",))
    its_balancer = method(other.fork)
    features = other.fork(other.trunk(x))
    outputs = {task: other.heads[task](features[task]) for task in TASKS}
    losses = {task: unit * loss for (task, loss), unit in zip(mse(outputs, y).items(), UNITS, strict=True)}
    (scale * (its_balancer(losses) + 3.0 * features["penalty"].square().mean())).backward()
    its_balancer.step()
    for p, ours, theirs in zip(other.trunk.parameters(), combined, expected, strict=True):
        close(p.grad / scale, ours + theirs)


def test_a_term_that_is_no_task_alone(method):
    """Where no task has labels, what is left of the total loss has its plain gradient."""
    network, _ = build(eq.Equal)
    network.fork = eq.Fork(network.fork.shared_layer, TASKS, others=("penalty",))
    balancer = method(network.fork)
    ((x, _),) = batches(1, TASKS)
    penalty = network.fork(network.trunk(x))["penalty"].square().mean()
    (balancer(dict.fromkeys(TASKS)) + penalty).backward()
    balancer.step()
    plain, _ = build(eq.Equal)
    plain.fork.shared_layer(plain.trunk(x)).square().mean().backward()
    for ours, theirs in zip(network.trunk.parameters(), plain.trunk.parameters(), strict=True):
        close(ours.grad, theirs.grad)


def test_a_total_loss_times_nothing_has_no_gradient(method):
    """As in a warm-up that begins at 0."""
    network, balancer = build(method)
    (0.0 * balancer(losses_of(network, *next(batches(1, TASKS))))).backward()
    balancer.step()
    assert (gradient_of(network) == 0).all()


def test_features_that_come_in_two_calls_are_refused(method):
    network, balancer = build(method)
    ((x, y),) = batches(1, TASKS)
    first, second = mse(network(x[:8]), {t: v[:8] for t, v in y.items()}), mse(network(x), y)
    total = balancer({"a": first["a"], "b": first["b"], "c": second["c"]})
    with pytest.raises(RuntimeError, match="the fork was called more than once for one total loss"):
        total.backward()


def test_a_second_derivative_is_refused(method):
    network, balancer = build(method)
    total = balancer(losses_of(network, *next(batches(1, TASKS))))
    with pytest.raises(RuntimeError, match="cannot be differentiated again; found create_graph=True"):
        torch.autograd.grad(total, network.trunk[0].weight, create_graph=True)


@pytest.mark.parametrize("entry_point", ["attach", "PerLoss"])
def test_a_source_with_several_places_is_refused_by_name(method, entry_point):
    _, source = build_door(entry_point)
    with pytest.raises(TypeError, match=f"needs a Fork, where .* found {type(source).__name__}"):
        method(source)
    with pytest.raises(TypeError, match="needs a Fork.* found tuple"):
        method(TASKS)


def test_a_loss_that_passes_the_fork_is_refused_by_name(method):
    network, balancer = build(method)
    ((x, y),) = batches(1, TASKS)
    outputs = network(x)
    with pytest.raises(
        ValueError, match=r"task 'a': its loss must depend on features\['a'\] alone; found that it reads"
    ):
        balancer(mse(outputs | {"a": outputs["b"]}, y))
    past = network.fork.shared_layer(network.trunk(x)).square().mean()
    losses = losses_of(network, x, y)
    with pytest.raises(ValueError, match="task 'b': .* past the fork"):
        balancer(losses | {"b": losses["b"] + past})


def test_a_loss_that_reads_the_trunk_beside_a_fork_without_a_layer_is_refused_by_name():
    hidden = torch.randn(4, 8, requires_grad=True) + 0
    fork = eq.Fork(None, TASKS)
    balancer, features = eq.EnCodec(fork), fork(hidden)
    losses = {task: features[task].square().mean() for task in TASKS}
    with pytest.raises(ValueError, match="task 'b': .* past the fork"):
        balancer(losses | {"b": losses["b"] + hidden.square().mean()})


def test_an_audit_finds_no_deviation_and_leaves_no_trace(method):
    network, balancer = build(method)
    ((x, y),) = batches(1, TASKS)
    balancer(losses_of(network, x, y))
    assert all(p.grad is None for p in network.parameters())
    assert balancer.log()["audit"] < 1e-12


def test_an_audit_leaves_the_gradient_of_an_output_that_keeps_it():
    output = torch.randn(4, 8, requires_grad=True) + 0
    output.retain_grad()
    fork = eq.Fork(None, TASKS)
    balancer, features = eq.EnCodec(fork), fork(output)
    balancer({task: features[task].square().mean() for task in TASKS})
    assert output.grad is None


def test_a_step_without_a_combination_is_refused(method):
    _, balancer = build(method)
    head = torch.nn.Linear(2, 1)
    balancer({task: head(torch.ones(2)).sum() for task in TASKS}).backward()
    with pytest.raises(RuntimeError, match="no task gradients were combined since the last step"):
        balancer.step()


def test_a_task_whose_features_are_detached_is_refused_by_name(method):
    network, balancer = build(method)
    ((x, y),) = batches(1, TASKS)
    features = network.fork(network.trunk(x))
    features["b"] = features["b"].detach()
    total = balancer(mse({task: network.heads[task](features[task]) for task in TASKS}, y))
    with pytest.raises(
        RuntimeError, match="task 'b': no gradient of its loss has arrived at the fork together .*detached"
    ):
        total.backward()


def test_a_step_without_labels_changes_nothing(method):
    network, balancer = build(method)
    train(network, balancer, batches(2, TASKS))
    before = copy.deepcopy(balancer.state_dict())
    network.zero_grad()
    balancer(dict.fromkeys(TASKS)).backward()
    balancer.step()
    assert_same_state(before, balancer.state_dict(), but=["_extra_state"])  # which counts the steps


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_copy_goes_on_as_the_original_and_apart_from_it(method, duplicate, order):
    network, balancer = build(method)
    data = list(batches(4, TASKS))
    steps(network, balancer, data[:2])
    other, other_balancer = duplicate((network, balancer)[order])[order]
    found = steps(other, other_balancer, data[2:])
    assert_same(found, steps(network, balancer, data[2:]))


def test_a_copy_of_the_network_alone_is_plain(method):
    network, _balancer = build(method)
    ((x, y),) = batches(1, TASKS)
    alone, plain = copy.deepcopy(network), build(eq.Equal)[0]
    for each in (alone, plain):
        sum(losses_of(each, x, y).values()).backward()
    close(gradient_of(alone), gradient_of(plain))


def test_a_non_reentrant_checkpoint_around_everything(method):
    data = list(batches(3, TASKS))
    network, balancer = build(method)
    found = steps(network, balancer, data, lambda x: checkpoint(network, x, use_reentrant=False))
    assert_same(found, steps(*build(method), data))


def test_a_check_looks_on_and_leaves_the_combination(method):
    network, balancer = build(method)
    expected = steps(*build(method), batches(1, TASKS))
    ((x, y),) = batches(1, TASKS)
    report = eq.check(network, balancer, lambda batch: mse(network(batch[0]), batch[1]), (x, y))
    assert report.ok, str(report)
    assert_same(steps(network, balancer, [(x, y)]), expected)


def test_a_network_on_another_precision(method):
    network, balancer = build(method)
    expected = steps(network, balancer, batches(2, TASKS))
    network, balancer = build(method)
    network.float()
    balancer.float()
    data = [(x.float(), {t: v.float() for t, v in y.items()}) for x, y in batches(2, TASKS)]
    for (gradient, _), (wanted, _) in zip(steps(network, balancer, data), expected, strict=True):
        close(gradient.double(), wanted, rtol=1e-2, atol=1e-2)


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@OF_DYNAMO
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_network_gives_what_the_network_gives(method):
    data = list(batches(4, TASKS))
    network, balancer = build(method)
    found = steps(network, balancer, data, torch.compile(network, backend="aot_eager"))
    assert_same(found, steps(*build(method), data))
    assert counters["stats"]["unique_graphs"] >= 2  # what is below the fork, and what is above


@OF_DYNAMO
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_balancer_in_a_compiled_function_is_refused(method):
    network, balancer = build(method)
    compiled = torch.compile(lambda x, y: balancer(mse(network(x), y)), backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(*next(batches(1, TASKS)))


def test_nothing_of_it_is_left_where_the_sum_is_asked_for():
    """The machinery alone changes nothing."""
    network, balancer = build(lambda fork: eq.Aggregated(fork, summed_up))
    plain, equal = build(lambda fork: eq.Equal(fork))
    data = list(batches(3, TASKS))
    for (ours, _), (theirs, _) in zip(steps(network, balancer, data), steps(plain, equal, data), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("absent", [("b",), ("a", "c")])
def test_an_absent_task_whose_features_get_zeros_is_left_out(method, absent):
    """As where the outputs of all heads are joined, and the loss of one is taken or not."""

    def trained(joined):
        network, balancer = build(method)
        for step, (x, y) in enumerate(batches(4, TASKS)):
            outputs = network(x)
            if joined:
                outputs = dict(zip(TASKS, torch.cat([*outputs.values()], 1).split(2, 1), strict=True))
            losses = {task: unit * loss for (task, loss), unit in zip(mse(outputs, y).items(), UNITS, strict=True)}
            network.zero_grad()
            balancer(losses | (dict.fromkeys(absent) if step else {})).backward()
            balancer.step()
        return gradient_of_all(network), balancer.log()

    def gradient_of_all(network):
        return torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in network.parameters()]
        )

    (expected, log), (found, joined) = trained(False), trained(True)
    close(found, expected)
    for name in log:
        close(joined[name], log[name], equal_nan=True)


def test_encodec_on_a_batch_without_a_sample():
    network, balancer = build(METHODS["EnCodec"])
    for samples in (4, 0, 4):
        outputs = network(torch.randn(samples, 6))
        balancer({task: output.square().sum() for task, output in outputs.items()}).backward()
        balancer.step()
    assert balancer.skipped_steps == 1
    assert balancer.norm_counts.isfinite().all()
