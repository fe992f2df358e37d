"""Situations in which a wrong number, or none, once went unnoticed."""

import warnings

import pytest
import torch
from helpers import processes
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.situation import SCALES, TASKS, Situation, batch, gradient, norms, one_step, step_exactly
from helpers.training import batches
from helpers.trees import FUEL, built, data, losses_of
from torch import distributed, nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
ABC = ("a", "b", "c")
LACKS = {"each another": [("c",), ("b",)], "one of them": [(), ("c",)], "one has none": [ABC, ()]}


def balanced_first(rank, world, lacks, at_features):
    """The weights that are balanced from the first batch, and those of the averaged gradients."""
    processes.connect()
    torch.manual_seed(0)
    network = MLP(ABC)
    if at_features:
        network.fork = eq.Fork(None, ABC)
    balancer = eq.GradNorm(network.fork, initial_weights="balanced")
    ((x, y),) = batches(1, ABC, units=[1.0, 10.0, 100.0])
    rows = slice(rank, None, world)
    below = network.trunk(x[rows])
    outputs = {task: network.heads[task](own) for task, own in network.fork(below).items()}
    losses = mse(outputs, {task: target[rows] for task, target in y.items()})
    where = below if at_features else network.fork.shared_layer.weight
    own = {task: gradient(loss, [where]).tolist() for task, loss in losses.items() if task not in lacks[rank]}
    found = [None] * world
    distributed.all_gather_object(found, own)
    balancer({task: None if task in lacks[rank] else loss for task, loss in losses.items()})
    inverse = {}
    for task in ABC:
        parts = [torch.tensor(each[task]) for each in found if task in each]
        inverse[task] = world / (torch.cat(parts) if at_features else sum(parts)).norm()
    mean = sum(inverse.values()) / len(inverse)
    return balancer.weights, torch.stack([inverse[task] / mean for task in ABC])


@pytest.mark.slow
@pytest.mark.parametrize("at_features", [False, True])
@pytest.mark.parametrize("lacks", LACKS.values(), ids=LACKS)
def test_weights_are_balanced_from_the_gradients_of_all_processes(lacks, at_features):
    """Each sample has features of its own, so that the squares at them add up."""
    for weights, expected in processes.run(balanced_first, 2, lacks, at_features):
        close(weights, expected)


def guarded(net, x):
    """Losses whose gradients are kept within bounds that they never meet."""
    outputs = {}
    for task, own in net.features(x).items():
        hidden = own.tanh()
        hidden.register_hook(lambda g: g.clamp(-1, 1))
        outputs[task] = net.heads[task](hidden)
    return {task: outputs[task].square().mean() for task in TASKS}


@pytest.mark.parametrize("entry_point", ["fork", "per loss"])
def test_a_bound_on_the_gradients_that_is_never_met_is_not_met_by_the_audit(entry_point):
    net = Situation(entry_point)
    report = eq.check(net, eq.GradNorm(net.source), lambda x: guarded(net, x), batch())
    assert report.ok
    balancer, x = eq.GradNorm(net.source), batch()
    losses = guarded(net, x)
    expected = norms(losses, net.shared.weight)
    one_step(balancer, losses)
    close(balancer.log()["gradient_norms"], expected)
    close(eq.check(net, balancer, lambda x: guarded(net, x), x).gradient_norms, balancer.weights * expected)


def test_an_optimizer_that_steps_while_the_model_is_in_eval_is_warned_of():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    balancer.step_after(optimizer)
    net.eval()
    balancer(net.losses(batch())).backward()
    with pytest.warns(
        UserWarning, match=r"while the model was in eval\(\), where GradNorm moves no weight: call model.train"
    ):
        optimizer.step()
    net.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer(net.losses(batch())).backward()
        net.eval()
        net.losses(batch())  # validation between two steps
        optimizer.step()
    assert not torch.equal(balancer.weights, torch.ones(2))


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_parameter_that_is_listed_twice_counts_once(accumulate):
    net = Situation("per loss")
    source = eq.PerLoss([net.shared.weight, net.shared.bias, net.shared.weight], TASKS)
    balancer = eq.GradNorm(source, accumulate=accumulate)
    losses = net.losses(batch())
    expected = norms(losses, net.shared.parameters())
    one_step(balancer, losses)
    close(balancer.log()["gradient_norms"], expected)
    assert [*source.shared_parameters] == ["parameters[0]", "parameters[1]"]


@pytest.mark.parametrize("below", [torch.float32, torch.bfloat16])
def test_half_precision_below_the_shared_layer_does_not_widen_the_tolerance(below):
    net, trunk = Situation().float(), nn.Linear(3, 5).to(below)
    balancer = eq.GradNorm(net.source)
    losses = net.losses(trunk(torch.randn(8, 3, dtype=below)).float())
    (balancer(losses) + 0.1 * losses["a"]).backward()
    with pytest.raises(ValueError, match="task 'a': besides its loss, something else"):
        balancer.step()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by Dynamo
def test_a_forward_pass_beside_the_compiled_network_is_no_way_past_the_fork():
    torch.compiler.reset()
    net = Situation()
    balancer, compiled = eq.GradNorm(net.source), torch.compile(net, backend="aot_eager")
    for _ in range(5):
        net(batch())  # its result is not used
        one_step(balancer, {task: output.square().mean() for task, output in compiled(batch()).items()})
    torch.compiler.reset()


def test_a_second_step_is_refused_where_the_balancer_is_a_weighted_sum_too():
    net = Situation()
    balancer = eq.GradNorm(net.source, every=3)
    for _ in range(4):
        one_step(balancer, net.losses(batch()))
        with pytest.raises(RuntimeError, match="no backward pass|no losses have been weighed"):
            balancer.step()


@pytest.mark.parametrize("entry_point", ["fork", "per loss"])
def test_norms_are_positive_where_the_total_loss_is_multiplied_with_a_negative_number(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    for _ in range(4):
        losses, weights = net.losses(batch()), balancer.weights.clone()
        expected = weights * norms(losses, net.shared.weight)
        (-balancer(losses)).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], expected)


@pytest.mark.parametrize("at_features", [False, True])
def test_retained_gradients_at_the_fork_are_those_of_the_backward_pass_alone(at_features):
    """``retain_grad`` adds up, and the audit of the first step differentiates as well."""
    torch.manual_seed(0)
    network = MLP(ABC)
    if at_features:
        network.fork = eq.Fork(None, ABC)
    balancer = eq.GradNorm(network.fork)
    ((x, y),) = batches(1, ABC)
    kept = {}

    def keep(name, tensor):
        tensor.retain_grad()
        kept[name] = tensor

    features = network.trunk(x)
    keep("trunk", features)
    if not at_features:
        network.fork.shared_layer.register_forward_hook(lambda layer, given, found: keep("layer", found))
    own = network.fork(features)
    keep("alias", own["b"])
    losses = mse({task: network.heads[task](own[task]) for task in ABC}, y)
    balancer(losses)
    assert [name for name, tensor in kept.items() if tensor.grad is not None] == []


EMPTY = {
    "linear": (lambda: nn.Linear(5, 6), (5,)),
    "linear on sequences": (lambda: nn.Linear(5, 6), (3, 5)),
    "convolution": (lambda: nn.Conv1d(5, 6, 3), (5, 4)),
    "embedding bag": (lambda: nn.EmbeddingBag(7, 6), (5,)),
    "layer norm": (lambda: nn.LayerNorm(5), (5,)),
}


@pytest.mark.parametrize("layer", EMPTY)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("empty", [0, 2], ids=["at first", "later"])
def test_a_batch_without_a_sample_has_gradients_of_zero(layer, accumulate, empty):
    """As where a detector has found no object, and its losses are sums."""
    make, shape = EMPTY[layer]
    net = Situation(layer=make())
    balancer = eq.GradNorm(net.source, alpha=0.0, accumulate=accumulate)
    for step in range(4):
        x = torch.randn(0 if step == empty else 8, *shape)
        features = net.features(x.long().abs() if layer == "embedding bag" else x)
        losses = {task: SCALES[task] * (1 + features[task]).square().sum() for task in TASKS}
        step_exactly(balancer, losses, net.shared.weight)
    assert balancer.weights[0] > 1.05


@pytest.mark.parametrize("entry_point", ["fork", "features", "attach", "per loss"])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_a_step_without_any_label_leaves_all_as_it_is(entry_point, accumulate, every):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source, accumulate=accumulate, every=every)
    for labelled in (False, False, True, True, False, False, True):
        before = balancer.weights.clone()
        losses = net.losses(batch())
        one_step(balancer, losses if labelled else dict.fromkeys(losses))
        if not labelled:
            close(balancer.weights, before)
    assert balancer.skipped_steps == 0
    assert not torch.equal(balancer.weights, torch.ones(2))


@pytest.mark.parametrize("accumulate", [False, True])
def test_evaluations_of_a_closure_do_not_add_up_at_the_features(accumulate):
    net = Situation("features")
    balancer = eq.GradNorm(net.source, accumulate=accumulate)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4, lr=0.1)
    balancer.step_after(optimizer)
    x, found = batch(), []

    def closure():
        optimizer.zero_grad()
        features = net.layer(x)
        own = net.source(features)
        losses = {task: 1 + net.heads[task](own[task]).square().mean() for task in TASKS}
        found.append(norms(losses, features))
        total = balancer(losses)
        total.backward()
        return total

    for _ in range(3):
        weights = balancer.weights.clone()
        optimizer.step(closure)
        close(balancer.log()["gradient_norms"], weights * found[-1])
    assert len(found) > 6


@pytest.mark.parametrize("entry_point", ["fork", "features", "attach", "per loss"])
def test_a_task_that_comes_with_a_later_micro_batch_is_audited_there(entry_point):
    """As where every task has a data set of its own."""
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source, accumulate=True)
    for _ in range(3):
        expected, weights = [], balancer.weights.clone()
        for task in TASKS:
            losses = net.losses(batch())
            if entry_point != "features":
                expected.append(gradient(losses[task], net.shared.weight).norm() / 2)
            (balancer(dict.fromkeys(TASKS) | {task: losses[task]}) / 2).backward()
        balancer.step()
        if expected:
            close(balancer.log()["gradient_norms"], weights * torch.stack(expected))
    assert balancer.log()["audit"] < 1e-12
    assert balancer.skipped_steps == 0


def test_a_mistake_in_a_later_micro_batch_is_refused():
    net = Situation()
    balancer = eq.GradNorm(net.source, accumulate=True)
    balancer(net.losses(batch()) | {"b": None}).backward()
    features = net.features(batch())
    balancer({"a": None, "b": net.heads["b"](features["a"] + features["b"]).square().mean()}).backward()
    with pytest.raises(
        ValueError, match=r"task 'b': its loss must depend on features\['b'\] alone; found that it reads"
    ):
        balancer.step()


@pytest.mark.parametrize("passes", [1, 2])
def test_total_losses_of_several_calls_are_differentiated_after_the_last_of_them(passes):
    net = Situation()
    balancer = eq.GradNorm(net.source, accumulate=True)
    for _ in range(4):
        first, second, weights = net.losses(batch()), net.losses(batch()), balancer.weights.clone()
        expected = torch.stack([gradient(first[task] + second[task], net.shared.weight).norm() / 2 for task in TASKS])
        totals = [balancer(first) / 2, balancer(second) / 2]
        for total in totals if passes == 2 else [sum(totals)]:
            total.backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], weights * expected)
    assert balancer.log()["audit"].isnan()
    assert "audit left out: the balancer's last call was not differentiated alone" in repr(balancer)


@pytest.mark.parametrize("begins", [0, 2])
def test_the_total_loss_of_another_batch_between_a_call_and_its_backward_pass(begins):
    """As where it is written down beside the one that is trained on."""
    net = Situation()
    balancer = eq.GradNorm(net.source)
    for step in range(6):
        losses, weights = net.losses(batch()), balancer.weights.clone()
        expected = norms(losses, net.shared.weight)
        total = balancer(losses)
        if step >= begins:
            balancer(net.losses(batch())).item()
        total.backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], weights * expected)


def test_a_validation_with_labels_missing_leaves_nothing_that_cannot_be_differentiated_with():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    net.eval()
    with torch.inference_mode():
        balancer(net.losses(batch()) | {"b": None})
    losses = net.losses(batch())
    (expected,) = torch.autograd.grad(losses["a"], net.shared.weight, retain_graph=True)
    balancer(losses | {"b": None}).backward()  # a saliency map
    close(net.shared.weight.grad, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("entry_point", ["fork", "features", "attach"])
def test_a_trace_in_training_mode_is_that_of_the_network(entry_point):
    """As that which draws the graph of a network for TensorBoard."""
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    one_step(balancer, net.losses(batch()))
    traced = torch.jit.trace(net, batch(), strict=False)
    x = batch(3)
    close(traced(x)["b"], net(x)["b"])
    one_step(balancer, net.losses(batch()))
    assert balancer.skipped_steps == 0


def test_losses_from_a_forward_pass_in_eval_are_refused_with_that_cause():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    net.eval()
    losses = net.losses(batch())
    net.train()
    balancer(losses).backward()
    with pytest.raises(
        RuntimeError, match=r"task 'a': no gradient of its loss has arrived.* the model was in eval\(\)"
    ):
        balancer.step()


@pytest.mark.parametrize("training", [True, False])
def test_a_fork_without_layer_refuses_more_than_one_argument(training):
    fork = eq.Fork(None, TASKS).train(training)
    with pytest.raises(TypeError, match="takes one argument; found several: hand in a tuple of them"):
        fork(batch(), batch())
    first, second = fork((batch(), batch(2)))["a"]
    assert (len(first), len(second)) == (8, 2)


WITHOUT_NORMS = {
    "Uncertainty": lambda source: eq.Uncertainty(source, "regression"),
    "RLW": eq.RLW,
    "EnCodec": eq.EnCodec,
    "GradNorm, every third step": lambda source: eq.GradNorm(source, every=3, initial_steps=9, accumulate=True),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("build", WITHOUT_NORMS.values(), ids=WITHOUT_NORMS)
def test_evaluations_of_a_closure_do_not_add_up_where_no_norms_are_measured(build, late):
    """Also where gradients are set to zero late, after the losses have been weighed, as Lightning does it."""
    net = Situation()
    balancer = build(net.source)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4, lr=0.1)
    balancer.step_after(optimizer)
    x, found = batch(), []

    def closure():
        if not late:
            optimizer.zero_grad()
        losses = {task: 1 + loss for task, loss in net.losses(x).items()}
        found.append(torch.stack([*losses.values()]).detach())
        total = balancer(losses)
        optimizer.zero_grad()
        total.backward()
        return total

    for _ in range(3):
        optimizer.step(closure)
        close(balancer.log()["losses"], found[-1])
    assert len(found) > 6


@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_micro_batch_without_any_label_does_not_end_the_step_of_a_hook(entry_point, every, empty):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source, accumulate=True, every=every)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    balancer.step_after(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        expected, weights = 0.0, balancer.weights.clone()
        for micro in range(3):
            losses = net.losses(batch())
            if micro == empty:
                losses = dict.fromkeys(losses)
            else:
                expected = expected + torch.stack([gradient(loss, net.shared.weight) / 3 for loss in losses.values()])
            (balancer(losses) / 3).backward()
        optimizer.step()
        if step % every == 0:
            close(balancer.log()["gradient_norms"], weights * expected.norm(dim=1))
    assert balancer.adam_count.tolist() == [4 / every] * 2
    assert balancer.skipped_steps == 0


class SharpnessAware(torch.optim.Optimizer):
    """As it is often written: its two passes are the caller's, and its own ``step()`` is never called."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr)

    def first_step(self):
        self.zero_grad()

    def second_step(self):
        self.base_optimizer.step()
        self.zero_grad()


def test_an_optimizer_whose_step_is_never_called_is_warned_of():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    optimizer = SharpnessAware(net.parameters(), 0.01)

    def train(steps, between=lambda: None):
        for _ in range(steps):
            balancer(net.losses(batch())).backward()
            optimizer.first_step()
            between()
            balancer(net.losses(batch())).backward()
            optimizer.second_step()

    handle = balancer.step_after(optimizer)
    with pytest.warns(UserWarning, match="its optimiser has taken none of 30 steps"):
        train(16)
    handle.remove()
    balancer.reset_parameters()
    balancer.step_after(optimizer.base_optimizer)
    train(16, between=balancer.zero_grad)
    assert balancer.skipped_steps == 0
    assert balancer.adam_count.tolist() == [16, 16]


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_loss_scaler_skips_a_step_in_which_a_group_has_no_label(accumulate):
    network, tree = built(accumulate=accumulate)
    optimizer, scaler = torch.optim.SGD(network.parameters(), 0.01), torch.amp.GradScaler("cpu", init_scale=4.0)
    tree.step_after(optimizer)
    for step, (x, y) in enumerate(data(4)):
        optimizer.zero_grad()
        scaler.scale(tree(losses_of(network, x, y, FUEL if step == 1 else ()))).backward()
        if step == 1:
            network.trunk[0].weight.grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
    assert {name: balancer.adam_count.tolist() for name, balancer in tree.balancers.items()} == {
        "root": [3, 3, 3],
        "fuel": [3, 3],
        "stress/root": [3, 3],
        "stress/hoop": [3, 3],
    }


def test_the_masked_mean_of_one_sample_without_a_dimension():
    assert eq.masked_mean(torch.tensor(3.0), torch.tensor(True)) == 3
    assert eq.masked_mean(torch.tensor(3.0), torch.tensor(False)) is None
