"""Helmholtz's equation by a physics-informed network."""

import math

import pytest
import torch
from torch.testing import assert_close

from equipoise.lab import Method, run, specify
from equipoise.lab.problems.pinn import Helmholtz
from equipoise.lab.results.comparison import group
from equipoise.lab.results.provenance import legend
from equipoise.lab.results.selection import normalised_loss, selected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Helmholtz(frequencies=(0, 1)), r"frequencies: wanted two integers of at least 1, found \(0, 1\)"),
        (lambda: Helmholtz(wavenumber=-1.0), "wavenumber: wanted a finite number of at least 0, found -1.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_derivatives_of_the_solution_are_those_of_autograd():
    network = Helmholtz(capacity="small").network().double()
    points = torch.rand(5, 2, dtype=torch.double, requires_grad=True)
    value, first, second = network.solution(points)
    (slopes,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    for axis in (0, 1):
        assert_close(first[axis, :, 0], slopes[:, axis])
        (curvatures,) = torch.autograd.grad(slopes[:, axis].sum(), points, retain_graph=True)
        assert_close(second[axis, :, 0], curvatures[:, axis])
    with torch.no_grad():
        assert_close(network.solution(points)[2], second)


def test_the_true_solution_has_no_loss_and_no_error(monkeypatch):
    problem = Helmholtz(frequencies=(1, 2), wavenumber=1.5)
    network = problem.network().double()

    def truth(points):
        x, y = points.double().clone().requires_grad_().unbind(dim=1)
        u = torch.sin(math.pi * x) * torch.sin(2 * math.pi * y)
        (ux, uy) = torch.autograd.grad(u.sum(), (x, y), create_graph=True)
        (uxx,), (uyy,) = (torch.autograd.grad(d.sum(), z, retain_graph=True) for d, z in ((ux, x), (uy, y)))
        return u[:, None], torch.stack([ux, uy])[..., None], torch.stack([uxx, uyy])[..., None]

    monkeypatch.setattr(network, "solution", truth)
    split = problem.splits().test
    outputs = network(split.inputs)
    for task in problem.tasks:
        metric = task.metric()
        metric.update(outputs[task.name], split.targets[task.name].double())
        assert metric.compute() < 1e-5
        assert task.loss(outputs[task.name], split.targets[task.name].double()) < 1e-6


def test_every_kind_of_point_lies_where_it_belongs():
    points = Helmholtz().splits().train.inputs
    assert (points.abs() <= 1).all()
    assert (points[:, 1, 0].abs() == 1).all()
    assert (points[:, 2, 1].abs() == 1).all()
    assert (points[:, 0].abs() < 1).all()


def test_the_losses_of_the_physics_are_orders_of_magnitude_apart():
    problem = Helmholtz()
    losses = run(problem, specify(problem, Method("equal"), 0, steps=1)).train.losses
    equation, dirichlet, neumann = (losses[name][0] for name in ("equation", "dirichlet", "neumann"))
    assert equation > 10 * neumann > 1000 * dirichlet


def test_the_error_of_nothing_is_one():
    problem = Helmholtz(test_points=20_000)
    metric = problem.tasks[0].metric()
    targets = problem.splits().test.targets["equation"]
    metric.update(torch.zeros_like(targets), targets)
    assert metric.compute().item() == pytest.approx(1, abs=0.02)


def test_a_run_is_read_where_the_error_of_the_solution_is_smallest_on_validation():
    problem = Helmholtz(capacity="small", train_points=200, validation_points=50, test_points=50)
    record = run(problem, specify(problem, Method("equal"), 0, steps=40))
    errors = record.validation.metrics["equation"]
    assert min(errors) < errors[0]
    assert selected(record) == errors.index(min(errors))
    assert selected(record) != normalised_loss(record.validation).argmin()
    assert "where the validation RelativeL2Error of equation is smallest" in legend(group([record])[0], [])[0]


def test_the_physics_is_learned_with_balanced_weights():
    problem = Helmholtz(capacity="small", frequencies=(1, 1), train_points=2000, test_points=300, batch_size=64)
    record = run(problem, specify(problem, Method("gradnorm_closed_form", {"alpha": 0.0}), 0, steps=600))
    errors = record.test.metrics["equation"]
    assert errors[0] > 0.9
    assert errors[-1] < 0.3
