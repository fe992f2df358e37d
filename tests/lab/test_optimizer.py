"""The optimiser's settings are settings of a problem, and each of them reaches the optimiser."""

import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from equipoise.lab import Method, load_problem, run, specify
from equipoise.lab.problems.toy import Toy
from equipoise.lab.runs.optimizer import optimizer_of, schedule_of

TINY = Path(__file__).with_name("tiny.py")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"optimizer": "adam", "betas": (0.8, 0.99)}, {"betas": (0.8, 0.99), "weight_decay": 0.0}),
        ({"optimizer": "adam", "weight_decay": 0.1}, {"betas": (0.9, 0.999), "weight_decay": 0.1}),
        ({"optimizer": "adamw", "betas": (0.7, 0.9), "weight_decay": 0.2}, {"betas": (0.7, 0.9), "weight_decay": 0.2}),
        ({"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.3}, {"momentum": 0.9, "weight_decay": 0.3}),
    ],
)
def test_the_optimiser_is_the_problems_and_holds_the_networks_parameters_only(settings, wanted):
    problem = load_problem(TINY, {"learning_rate": 0.5, **settings})
    network = problem.network()
    found = optimizer_of(problem, network)
    assert type(found).__name__.lower() == settings["optimizer"]
    (group,) = found.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]
    assert group["lr"] == 0.5
    assert {name: group[name] for name in wanted} == wanted


def test_the_decay_of_adamw_is_decoupled_and_that_of_adam_is_not():
    """With a gradient of 0, AdamW shrinks a parameter by rate times decay; Adam takes a step of the rate."""
    moved = {}
    for optimizer in ("adam", "adamw"):
        problem = load_problem(TINY, {"optimizer": optimizer, "weight_decay": 0.5, "learning_rate": 0.1})
        parameter = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(parameter.weight, 2.0)
        parameter.weight.grad = torch.zeros(1, 1)
        optimizer_of(problem, parameter).step()
        moved[optimizer] = parameter.weight.item()
    assert moved == pytest.approx({"adam": 2 - 0.1, "adamw": 2 * (1 - 0.1 * 0.5)}, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"schedule": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ({"warmup": 2}, [1 / 3, 2 / 3, 1, 1]),
        ({"warmup": 2, "schedule": "linear"}, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_schedule_by_value(settings, factors, scaled):
    problem = load_problem(TINY, {"learning_rate": 0.5, "scaled_heads": scaled, "optimizer": "sgd", **settings})
    optimizer = optimizer_of(problem, problem.network())
    schedule = schedule_of(problem, optimizer, len(factors))
    found = []
    for _ in factors:
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    rates = [[0.5 * factor] * len(optimizer.param_groups) for factor in factors]
    assert_close(found, rates)


def test_a_constant_rate_needs_no_schedule():
    problem = load_problem(TINY)
    assert schedule_of(problem, optimizer_of(problem, problem.network()), 10) is None


def test_a_schedule_ends_with_the_steps_of_the_run():
    """The last step of a linear schedule has a rate of 1 / steps: with two steps, the second is half of the first."""
    moves = {}
    for schedule in ("constant", "linear"):
        problem = Toy(size="fifth", train_samples=100, validation_samples=2, test_samples=2, schedule=schedule)
        moves[schedule] = run(problem, specify(problem, Method("equal"), 0, steps=2)).test.losses["f0_sigma_1"]
    assert moves["constant"][1] == moves["linear"][1]
    assert moves["constant"][2] != moves["linear"][2]


def toy(**settings):
    return Toy(size="fifth", train_samples=100, validation_samples=20, test_samples=20, **settings)


def test_scaled_heads_start_in_proportion_to_their_tasks_scale_and_the_trunk_as_before():
    networks = []
    for problem in (toy(), toy(scaled_heads=True)):
        torch.manual_seed(0)
        networks.append(problem.network())
        optimizer = optimizer_of(problem, networks[-1])
    plain, scaled = networks
    for scale, one, other in zip((1, 100), plain.heads, scaled.heads, strict=True):
        for before, after in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(scale * before, after)
    for part in ("trunk", "fork"):
        for before, after in zip(getattr(plain, part).parameters(), getattr(scaled, part).parameters(), strict=True):
            assert torch.equal(before, after)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3, 0.1]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in scaled.parameters())


def test_scaled_heads_step_in_proportion_to_their_tasks_scale():
    problem = toy(scaled_heads=True)
    network = problem.network()
    optimizer = optimizer_of(problem, network)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    sum(output.sum() for output in network(torch.randn(5, 50)).values()).backward()
    optimizer.step()
    steps = {
        name: (parameter.detach() - old).abs().max().item()
        for (name, parameter), old in zip(network.named_parameters(), before, strict=True)
    }
    assert steps["heads.1.1.bias"] == pytest.approx(100 * steps["heads.0.1.bias"], rel=1e-3)
    assert steps["fork.shared_layer.bias"] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate: wanted a positive, finite number, found 0.0"),
        ({"learning_rate": math.inf}, "learning_rate: wanted a positive, finite number, found inf"),
        ({"momentum": 1.0, "optimizer": "sgd"}, r"momentum: wanted a number in \[0, 1\), found 1.0"),
        ({"momentum": 0.9}, "momentum: it is that of 'sgd', and the optimizer is 'adam'; wanted 0, found 0.9"),
        ({"betas": (0.9, 1.0)}, r"betas: wanted two numbers in \[0, 1\), found \(0.9, 1.0\)"),
        (
            {"betas": (0.5, 0.9), "optimizer": "sgd"},
            "betas: they are the moments of 'adam' and 'adamw', and the optimizer",
        ),
        ({"betas": (0.9,)}, "setting 'betas' of problem 'Tiny': wanted"),
        ({"weight_decay": -1.0}, "weight_decay: wanted a finite number of at least 0, found -1.0"),
        ({"warmup": 20}, "warmup: wanted at least 0 and fewer than the 20 steps of the run, found 20"),
        (
            {"schedule": "step"},
            "setting 'schedule' of problem .*: wanted 'constant' or 'cosine' or 'linear', found 'step'",
        ),
        ({"batch_size": 0}, "batch_size: wanted at least 1, found 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name_before_a_run(settings, message):
    problem = type(load_problem(TINY))(**settings)
    with pytest.raises(ValueError, match=message):
        specify(problem, Method("equal"), 0)


def test_heads_are_not_scaled_by_nothing():
    problem = load_problem(TINY, {"scaled_heads": True})
    with pytest.raises(ValueError, match="scaled_heads: Tiny has a network without heads"):
        optimizer_of(problem, torch.nn.Linear(1, 1))
