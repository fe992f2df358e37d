"""W is asked for in every forward pass: layers adapted, frozen, pruned, normalised, hooked or replaced, early and late."""

import copy

import pytest
import torch
from helpers.situation import TASKS, Situation, batch, one_step, step_exactly, two_steps
from torch import nn
from torch.nn.utils import parametrizations, prune

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
ENTRY_POINTS = ["fork", "attach", "per loss"]


class LowRankAdapter(nn.Module):
    """As adapter libraries write it: the frozen layer inside, its weight shown as the adapter's own."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


def put_an_adapter(net):
    net.replace_shared(LowRankAdapter(net.shared))


def replace_forward(net):
    layer, base, up = net.shared, net.shared.forward, nn.Linear(5, 6)
    layer.forward = lambda x: base(x) + 3 * up(x)


def replace_forward_by_a_multiple(net):
    base = net.shared.forward
    net.shared.forward = lambda x: 3 * base(x)


def freeze_the_weight(net):
    net.shared.weight.requires_grad_(False)


def normalise_the_weight(net):
    parametrizations.weight_norm(net.shared)


def normalise_the_spectrum(net):
    parametrizations.spectral_norm(net.shared)


def make_orthogonal(net):
    parametrizations.orthogonal(net.shared)


def normalise_by_the_old_hook(net):
    nn.utils.spectral_norm(net.shared)


def prune_the_weight(net):
    prune.l1_unstructured(net.shared, "weight", 0.5)


def scale_the_output(net):
    net.shared.register_forward_hook(lambda module, inputs, output: 3 * output)


def scale_the_input(net):
    net.shared.register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))


def scale_the_gradient_at_the_output(net):
    net.shared.register_full_backward_pre_hook(lambda module, gradients: (3 * gradients[0],))


def scale_the_gradient_of_the_weight(net):
    net.shared.weight.register_hook(lambda gradient: 3 * gradient)


def another_linear_layer(net):
    net.replace_shared(nn.Linear(5, 6))


def another_block(net):
    net.replace_shared(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6)))


def another_weight(net):
    net.shared.weight = nn.Parameter(torch.randn(6, 5))


def assign_a_state_dict(net):
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)


IN_PLACE = [
    replace_forward,
    replace_forward_by_a_multiple,
    freeze_the_weight,
    normalise_the_weight,
    normalise_the_spectrum,
    make_orthogonal,
    normalise_by_the_old_hook,
    prune_the_weight,
    scale_the_output,
    scale_the_input,
    scale_the_gradient_at_the_output,
    scale_the_gradient_of_the_weight,
    another_weight,
    assign_a_state_dict,
]
BY_ANOTHER = [put_an_adapter, another_linear_layer, another_block]


def what_is_w(layer):
    """The parameter named weight where the layer has one of its own that is trained, else all that are trained."""
    own = dict(layer.named_parameters(recurse=False)).get("weight")
    if own is not None and own.requires_grad:
        return [own]
    return [parameter for parameter in layer.parameters() if parameter.requires_grad]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the data need no gradient
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated")
@pytest.mark.parametrize("change", IN_PLACE + BY_ANOTHER, ids=lambda change: change.__name__)
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("at", [0, 2], ids=["before", "later"])
def test_the_gradient_is_that_of_what_is_trained_now(entry_point, change, at):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    for step in range(5):
        if step == at:
            change(net)
            if entry_point == "per loss" and change in BY_ANOTHER:  # it was given the module itself
                with pytest.raises(
                    (RuntimeError, ValueError), match="replaced since|must have a parameter that is trained"
                ):
                    one_step(balancer, net.losses(batch()))
                return
        losses = net.losses(batch())
        step_exactly(balancer, losses, what_is_w(net.shared))


@pytest.mark.parametrize("change", [put_an_adapter, another_block], ids=lambda change: change.__name__)
@pytest.mark.parametrize("entry_point", ["fork", "attach"])
def test_gradients_that_are_kept_follow_w_to_another_size(entry_point, change):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source, accumulate=True)
    for step in range(4):
        if step == 2:
            change(net)
        step_exactly(balancer, net.losses(batch()), what_is_w(net.shared))


def test_per_loss_on_the_adapter():
    net = Situation("per loss", layer=LowRankAdapter(nn.Linear(5, 6)))
    balancer = eq.GradNorm(net.source)
    for _ in range(3):
        step_exactly(balancer, net.losses(batch()), [net.shared.down.weight, net.shared.up.weight])


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_an_unfrozen_weight_is_measured_again(entry_point):
    layer = nn.Linear(5, 6)
    layer.weight.requires_grad_(False)
    net = Situation(entry_point, layer=layer)
    balancer = eq.GradNorm(net.source)
    for step in range(4):
        layer.weight.requires_grad_(step > 1)
        step_exactly(balancer, net.losses(batch()), layer.weight if step > 1 else layer.bias)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("late", [False, True])
def test_a_layer_that_is_wholly_frozen_is_refused_with_the_remedy(entry_point, late):
    net = Situation(entry_point)
    if late:
        balancer = eq.GradNorm(net.source)
        step_exactly(balancer, net.losses(batch()), net.shared.weight)
    net.shared.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"Linear, must have a parameter that is trained; .* frozen.*adapter.*Static\("
    ):
        one_step(balancer if late else eq.GradNorm(net.source), net.losses(batch()))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_frozen_base_whose_adapter_lies_elsewhere_is_refused(entry_point):
    layer, down, up = nn.Linear(5, 6), nn.Linear(5, 2, bias=False), nn.Linear(2, 6, bias=False)
    base = layer.forward
    layer.forward = lambda x: base(x) + up(down(x))
    net = Situation(entry_point, layer=layer.requires_grad_(False))
    with pytest.raises(ValueError, match=r"must have a parameter that is trained; .* Hand in the module that holds"):
        eq.GradNorm(net.source)


def test_check_says_that_the_layer_is_frozen():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    net.shared.requires_grad_(False)
    report = eq.check(net, balancer, net.losses, batch())
    assert not report.ok
    assert "frozen" in str(report)


@pytest.mark.parametrize(
    "change", [freeze_the_weight, assign_a_state_dict, another_weight], ids=lambda change: change.__name__
)
def test_per_loss_on_a_tensor_that_is_no_longer_trained_is_refused(change):
    net = Situation("fork")
    source = eq.PerLoss(net.shared.weight, ("a", "b"))
    balancer = eq.GradNorm(source)
    for _ in range(2):
        step_exactly(balancer, net.losses(batch()), net.shared.weight)
    change(net)
    with pytest.raises((RuntimeError, ValueError), match=r"parameters\[0\] was frozen|may have been replaced since"):
        one_step(balancer, net.losses(batch()))


def test_a_head_that_was_replaced_behind_the_hooks_is_refused_by_path():
    net = Situation("attach")
    balancer = eq.GradNorm(net.source)
    step_exactly(balancer, net.losses(batch()), net.shared.weight)
    net.heads["b"] = nn.Linear(6, 1)
    balancer(net.losses(batch())).backward()
    with pytest.raises(RuntimeError, match=r"task 'b': .*'heads\.b' has replaced the head .* attach the model again"):
        balancer.step()


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_head_that_is_detached_later_is_refused_by_task(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    for _ in range(2):
        step_exactly(balancer, net.losses(batch()), net.shared.weight)
    forward = net.heads["b"].forward
    net.heads["b"].forward = lambda x: forward(x.detach())
    balancer(net.losses(batch())).backward()
    with pytest.raises(
        RuntimeError, match=r"task 'b': no gradient of its loss has arrived.*None where a batch has no labels"
    ):
        balancer.step()


@pytest.mark.parametrize("where", ["above", "below"])
def test_a_weight_that_is_used_a_second_time_is_refused_and_left_to_the_graph(where):
    def losses(net, x):
        weight = net.shared.weight
        x = x @ weight.mT @ weight if where == "below" else x
        features = net.features(x)
        if where == "above":
            features = {task: own @ weight @ weight.mT for task, own in features.items()}
        return {task: net.heads[task](features[task]).square().mean() for task in ("a", "b")}

    net = Situation()
    balancer = eq.GradNorm(net.source)
    balancer(losses(net, batch())).backward()
    with pytest.raises(ValueError, match="task 'a': .* weight is used a second time.*PerLoss .*parameters="):
        balancer.step()
    remedy = Situation("per loss") if where == "above" else Situation(parameters=("weight",))
    balancer = eq.GradNorm(remedy.source)
    for _ in range(3):
        step_exactly(balancer, losses(remedy, batch()), remedy.shared.weight)


def test_a_weight_that_is_used_above_the_fork_later_is_refused():
    def tied(net, x):
        features = {task: own @ net.shared.weight for task, own in net.features(x).items()}
        return {task: features[task].square().mean() for task in TASKS}

    net = Situation()
    balancer = eq.GradNorm(net.source)
    for _ in range(10):
        step_exactly(balancer, net.losses(batch()), net.shared.weight)
    with pytest.raises(ValueError, match="task 'a': .*'weight' past the fork"):
        two_steps(balancer, tied, net)


def test_a_hook_on_all_modules_is_seen():
    def scale(module, inputs, output):
        return 3 * output if isinstance(module, nn.Linear) and module.out_features == 6 else None

    net = Situation()
    balancer = eq.GradNorm(net.source)
    step_exactly(balancer, net.losses(batch()), net.shared.weight)
    handle = nn.modules.module.register_module_forward_hook(scale)
    try:
        step_exactly(balancer, net.losses(batch()), net.shared.weight)
    finally:
        handle.remove()
