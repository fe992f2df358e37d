"""What every balancer promises of its weights and its steps, without a special case."""

import copy
import inspect
import json
import math

import pytest
import torch
from helpers.balancers import (
    BALANCERS,
    CLASSES,
    COMBINES,
    FAMILY,
    NEEDS_ALL_TASKS,
    NEEDS_NO_GRADIENTS,
    SUM_IS_T,
    TASKS,
    buffers,
    build,
    same,
)
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(params=BALANCERS, name="name")
def _name(request):
    return request.param


def public_classes():
    return {
        c for c in (getattr(eq, name) for name in eq.__all__) if isinstance(c, type) and issubclass(c, eq.Balancer)
    } - {eq.Balancer}


def test_every_public_balancer_is_here():
    assert public_classes() == {type(build(name)[1]) for name in BALANCERS}


# Weights


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
    train(network, balancer, batches(3, TASKS))
    ((x, y),) = batches(1, TASKS, seed=3)
    losses = mse(network(x), y)
    total = balancer(losses)
    total.backward()
    balancer.step()
    close(total, (balancer.log()["weights"] * torch.stack([*losses.values()])).sum())


def test_losses_as_one_tensor_are_losses_by_name(name):
    found = []
    for as_one_tensor in (False, True):
        network, balancer = build(name)
        for x, y in batches(4, TASKS, units=[1, 10, 100]):
            losses = mse(network(x), y)
            balancer(torch.stack([*losses.values()]) if as_one_tensor else losses).backward()
            balancer.step()
        found.append({**buffers(balancer), "gradient": network.trunk[0].weight.grad})
    for key, value in found[0].items():
        close(found[1][key], value, equal_nan=True, msg=key)


def test_permuting_the_tasks_permutes_the_weights(name):
    order = ("c", "a", "b")
    network, balancer = build(name)
    permuted = MLP(order)
    permuted.load_state_dict(network.state_dict())
    permuted_balancer = BALANCERS[name](permuted.fork)
    data = list(batches(8, TASKS, units=[1, 10, 100]))
    if name == "DTP":  # whose indicators go by the order of the tasks here
        permuted_balancer.reset_parameters()
        permuted_balancer.observe(dict(zip(TASKS, balancer.indicators.tolist(), strict=True)))
    train(network, balancer, data, lr=1e-4)
    train(permuted, permuted_balancer, data, lr=1e-4)
    close(permuted_balancer.weights, balancer.weights[[2, 0, 1]])


TAKE_WEIGHTS = [n for n, c in CLASSES.items() if "initial_weights" in inspect.signature(c).parameters]


@pytest.mark.parametrize("name", [name for name in TAKE_WEIGHTS if name != "Uncertainty, from the losses"])
def test_the_weights_of_the_first_step_can_be_given(name):
    network, balancer = build(name, initial_weights={"a": 1.0, "b": 2.0, "c": 9.0})
    given = torch.tensor([0.25, 0.5, 2.25]) * (4 if name == "Uncertainty" else 1)  # which are not scaled there
    close(balancer.weights, given)
    logs = train(network, balancer, batches(4, TASKS, units=[1, 10, 100]), lr=1e-4)
    close(logs[0]["weights"], given)
    assert (balancer.weights != given).any()
    network, balancer = build(name, initial_weights="balanced", every=1)
    (log,) = train(network, balancer, batches(1, TASKS, units=[1, 10, 100]), lr=1e-4)
    close(log["gradient_norms"], log["gradient_norms"].mean().expand(3))
    close(log["weights"].sum(), torch.tensor(3.0))
    assert (log["weights"] - 1).abs().max() > 0.5
    with pytest.raises(ValueError, match="initial_weights must be 'balanced'; found 'even'"):
        build(name, initial_weights="even")


# Absent tasks, frozen weights, steps that are not finite


@pytest.mark.parametrize("name", [name for name in BALANCERS if name not in NEEDS_ALL_TASKS])
def test_an_absent_task_keeps_its_weight_and_its_state(name):
    network, balancer = build(name)
    data = list(batches(4, TASKS))
    train(network, balancer, data[:3])
    before = buffers(balancer)
    x, y = data[3]
    network.zero_grad()
    total = balancer(mse(network(x), y) | {"b": None})
    total.backward()
    assert network.heads["b"][1].weight.grad is None
    balancer.step()
    close(total, sum(balancer.log()["weights"][i] * mse(network(x), y)[TASKS[i]] for i in (0, 2)))
    assert balancer.log()["losses"][1].isnan()
    if not balancer.moves_absent:
        assert balancer.weights[1] == before["weights"][1]
    for key, value in buffers(balancer).items():
        if value.shape == (3,) and key != "weights":
            assert same(value[1], before[key][1]), key


@pytest.mark.parametrize("name", NEEDS_ALL_TASKS)
def test_an_absent_task_is_refused_by_name_where_all_are_needed(name):
    network, balancer = build(name)
    ((x, y),) = batches(1, TASKS)
    with pytest.raises(ValueError, match="task 'b' is absent, but scalarizer"):
        balancer(mse(network(x), y) | {"b": None})


def test_what_is_frozen_does_not_move(name):
    network, balancer = build(name)
    data = list(batches(8, TASKS))
    train(network, balancer, data[:4])
    before = buffers(balancer)
    balancer.freeze()
    for x, y in data[4:]:
        losses = mse(network(x), y)
        total = balancer(losses)
        close(total, (before["weights"] * torch.stack([*losses.values()])).sum())
        total.backward()
        balancer.step()
    for key, value in buffers(balancer).items():
        assert torch.equal(value, before[key]), key
    assert set(balancer.averaged()) == set(TASKS)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(name):
    network, balancer = build(name)
    data = list(batches(4, TASKS))
    train(network, balancer, data[:3])
    before = buffers(balancer)
    losses = mse(network(data[3][0]), data[3][1])
    balancer(losses | {"c": losses["c"] * float("nan")}).backward()
    balancer.step()
    for key, value in buffers(balancer).items():
        assert torch.equal(value, before[key] + (key == "skipped_steps")), key


SPOILT = ("Uncertainty", "InverseLossVariance", "CoV", "GradNorm")
"""Methods that keep a square of what is 1e25."""


@pytest.mark.parametrize("spike", [1e25, 1e38])
def test_a_finite_spike_does_not_spoil_the_state(name, spike):
    """A step whose new state would not be finite in float32 changes nothing and is counted; no state ever is not finite."""
    network, balancer = build(name)
    network, balancer = network.float(), balancer.float()
    data = [(x.float(), {task: v.float() for task, v in y.items()}) for x, y in batches(9, TASKS)]
    train(network, balancer, data[:3])
    before = buffers(balancer)
    losses = mse(network(data[3][0]), data[3][1])
    balancer(losses | {"c": losses["c"] / losses["c"].detach() * spike}).backward()
    balancer.step()
    after = buffers(balancer)
    assert all(torch.isfinite(value).all() for value in after.values())
    if balancer.skipped_steps:
        assert same(after, before | {"skipped_steps": torch.tensor(1)})
    assert balancer.skipped_steps or name not in SPOILT
    network.zero_grad()
    for log in train(network, balancer, data[4:], lr=1e-4):
        assert torch.isfinite(log["weights"]).all()
    assert all(torch.isfinite(value).all() for value in buffers(balancer).values())
    assert balancer.skipped_steps <= 1


def test_a_step_that_is_to_be_skipped_changes_nothing_and_is_counted(name):
    network, balancer = build(name)
    data = list(batches(4, TASKS))
    train(network, balancer, data[:3])
    before = buffers(balancer)
    balancer(mse(network(data[3][0]), data[3][1])).backward()
    balancer.step(skip=True)
    for key, value in buffers(balancer).items():
        assert torch.equal(value, before[key] + (key == "skipped_steps")), key


def test_evaluation_changes_nothing(name):
    network, balancer = build(name)
    train(network, balancer, batches(3, TASKS))
    before = copy.deepcopy(balancer.state_dict())
    ((x, y),) = batches(1, TASKS, seed=5)
    with torch.no_grad():
        balancer(mse(network(x), y))
    network.eval()
    assert torch.isfinite(balancer(mse(network(x), y)))
    network.train()
    balancer.eval()
    assert torch.isfinite(balancer(mse(network(x), y)))
    assert same(balancer.state_dict(), before)
    balancer.train()
    train(network, balancer, batches(1, TASKS))


# What is refused


def test_a_task_too_few_too_many_or_no_scalar_is_refused_by_name(name):
    network, balancer = build(name)
    ((x, y),) = batches(1, TASKS)
    losses = mse(network(x), y)
    with pytest.raises(ValueError, match="task 'b': its loss is missing; hand in None"):
        balancer({"a": losses["a"], "c": losses["c"]})
    with pytest.raises(ValueError, match="losses: unknown task 'd'; the tasks are 'a', 'b', 'c'"):
        balancer(losses | {"d": losses["a"]})
    with pytest.raises(ValueError, match=r"task 'c': a loss must be a scalar, of shape \(\); found \(16, 2\)"):
        balancer(losses | {"c": network(x)["c"]})
    with pytest.raises(TypeError, match="task 'a': a loss must be a tensor or None; found float"):
        balancer(losses | {"a": 1.0})
    with pytest.raises(TypeError, match="losses must be a dict by task name; found list"):
        balancer(list(losses.values()))
    with pytest.raises(ValueError, match="task 'a': its loss is on meta, the weights are on cpu"):
        balancer(losses | {"a": losses["a"].to("meta")})
    with pytest.raises(ValueError, match=r"a tensor of shape \(3,\) in task order; found a tensor of shape \(2,\)"):
        balancer(torch.stack([losses["a"], losses["b"]]))
    with pytest.raises(TypeError, match=r"task 'a': a loss must be a real floating-point tensor; found torch.int64"):
        balancer(losses | {"a": torch.tensor(1)})


def test_a_loss_without_gradient_is_refused_by_name(name):
    network, balancer = build(name)
    ((x, y),) = batches(1, TASKS)
    losses = mse(network(x), y)
    with pytest.raises(ValueError, match="task 'b': its loss must carry a gradient; found a constant"):
        balancer(losses | {"b": losses["b"].detach()})


def test_a_first_loss_that_is_not_finite_is_refused_by_name(name):
    network, balancer = build(name)
    ((x, y),) = batches(1, TASKS)
    losses = mse(network(x), y)
    with pytest.raises(ValueError, match="task 'b': its first loss must be finite; found nan"):
        balancer(losses | {"b": losses["b"] * float("nan")})


def test_a_step_without_a_backward_pass_is_refused(name):
    network, balancer = build(name)
    with pytest.raises(RuntimeError, match=r"backward\(\)"):
        balancer.step()
    ((x, y),) = batches(1, TASKS)
    balancer(mse(network(x), y)).backward()
    balancer.step()
    with pytest.raises(RuntimeError, match=r"backward\(\)"):
        balancer.step()


def settings_of(name):
    own = inspect.signature(CLASSES[name]).parameters
    return [setting for setting in own if setting not in ("tasks", "fork")]


@pytest.mark.parametrize(
    "bad",
    [math.nan, math.inf, -1e39, object(), torch.ones(2), "no such thing"],
    ids=["nan", "inf", "-1e39", "object", "tensor", "word"],
)
def test_a_setting_that_means_nothing_is_refused_by_name(name, bad):
    for setting in settings_of(name):
        with pytest.raises((TypeError, ValueError), match=rf"\b{setting}\b.*; found"):
            build(name, **{setting: bad})


@pytest.mark.parametrize("name", NEEDS_NO_GRADIENTS)
def test_names_alone_will_do_where_no_gradient_is_needed(name):
    network, balancer = build(name)
    named = BALANCERS[name](TASKS)
    data = list(batches(5, TASKS))
    twin = copy.deepcopy(network)
    train(network, balancer, data)
    train(twin, named, data)
    close(named.weights, balancer.weights)
    with pytest.raises(ValueError, match="every: gradient norms are measured at a fork; found task names only"):
        BALANCERS[name](TASKS, every=1)


@pytest.mark.parametrize("name", [name for name in BALANCERS if name not in NEEDS_NO_GRADIENTS])
def test_names_are_refused_where_gradients_are_needed(name):
    with pytest.raises(TypeError, match=r"needs a Fork.*; found tuple"):
        CLASSES[name](TASKS, **{"aggregator": torch.sum} if name.startswith("Aggregated") else {})


# What can be seen


def test_the_log_has_what_is_promised(name):
    network, balancer = build(name)
    assert set(balancer.log()) == {"weights", "skipped_steps"}
    train(network, balancer, batches(1, TASKS))
    log = balancer.log()
    assert {"losses", "weights", "training_rates", "skipped_steps"} <= log.keys()
    assert ({"gradient_norms", "targets"} <= log.keys()) == (name in FAMILY)
    assert ("audit" in log) == (name not in NEEDS_NO_GRADIENTS)
    assert "audit" not in log or log["audit"] < 1e-9


def test_scalars_are_the_log_as_numbers_by_name(name):
    network, balancer = build(name)
    train(network, balancer, batches(2, TASKS))
    if name not in NEEDS_ALL_TASKS:
        ((x, y),) = batches(1, TASKS, seed=3)
        balancer(mse(network(x), y) | {"b": None}).backward()
        balancer.step()
    log, scalars = balancer.log(), balancer.scalars()
    json.dumps(scalars)
    assert all(type(value) is float or name == "skipped_steps" for name, value in scalars.items())
    for i, task in enumerate(TASKS):
        assert scalars[f"weight/{task}"] == log["weights"][i]
        assert scalars.get(f"loss/{task}", math.nan) == pytest.approx(log["losses"][i].item(), nan_ok=True)
        assert ("gradient_norm/" + task in scalars) == (
            "gradient_norms" in log and not log["gradient_norms"][i].isnan()
        )
    assert scalars["skipped_steps"] == 0


def test_the_repr_shows_settings_and_weights(name):
    network, balancer = build(name)
    train(network, balancer, batches(2, TASKS))
    text = repr(balancer)
    assert type(balancer).__name__ in text
    for task, weight in zip(TASKS, balancer.weights.tolist(), strict=True):
        assert f"{task}: {weight:.4g}" in text
    for setting, parameter in inspect.signature(CLASSES[name]).parameters.items():
        shown = parameter.default not in (None, inspect.Parameter.empty)
        assert not shown or f"{setting}=" in text, (setting, text)
    assert len(text.splitlines()) <= 6
    if name not in COMBINES:
        assert "audit left out" not in text
