"""eq.check: what is wrong is named, and nothing is changed by looking."""

import copy
import dataclasses
import random
import threading

import numpy
from helpers import processes
import pytest
import torch
from helpers.reference import close, task_gradients
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

TASKS = ("a", "b", "c")


class Model(nn.Module):
    """A trunk with statistics and noise, a last shared layer, and heads; ``layer`` None is a plain model."""

    def __init__(self, layer=None, heads=None):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Tanh())
        self.shared = nn.Linear(8, 8) if layer is None else layer
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.Tanh(), nn.Linear(8, 2)) for task in TASKS} | (heads or {}))

    def forward(self, x):
        features = self.shared(self.trunk(x))
        features = features if isinstance(features, dict) else dict.fromkeys(TASKS, features)
        return {task: self.heads[task](features[task]) for task in TASKS}

    def losses(self, x):
        units = dict(zip(TASKS, (1.0, 5.0, 30.0), strict=True))
        return {task: units[task] * (output - i).square().mean() for i, (task, output) in enumerate(self(x).items())}


def forked(layer, **keywords):
    def build(heads=None):
        model = Model(eq.Fork(layer(), TASKS, **keywords), heads)
        return model, model.shared

    return build


def attached(heads=None):
    model = Model(heads=heads)
    return model, eq.attach(model, "shared", {task: f"heads.{task}" for task in TASKS})


def per_loss(heads=None):
    model = Model(heads=heads)
    return model, eq.PerLoss(model.shared, TASKS)


ENTRY_POINTS = {
    "fork, by rule": forked(lambda: nn.Linear(8, 8)),
    "fork, a block": forked(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))),
    "fork, chosen": forked(lambda: nn.Linear(8, 8), parameters=("bias",)),
    "fork, features": forked(lambda: None),
    "attach": attached,
    "per loss": per_loss,
}


@pytest.fixture(params=ENTRY_POINTS, name="entry_point")
def _door(request):
    return ENTRY_POINTS[request.param]


def findings(report, level):
    return [(finding.tasks, finding.message) for finding in report.findings if finding.level == level]


def test_a_model_that_is_all_right(entry_point):
    model, source = entry_point()
    balancer = eq.GradNorm(source)
    report = eq.check(model, balancer, model.losses, torch.randn(12, 6))
    assert report.ok
    assert not report.findings
    assert str(report).endswith("\nok")
    assert report.tasks == TASKS
    assert report.parameters == {name: tuple(p.shape) for name, p in source.parameters_measured.items()}
    assert report.deviations.max() < 1e-12
    assert (report.losses > 0).all()


def test_the_numbers_are_those_of_autograd(entry_point):
    model, source = entry_point()
    balancer = eq.Static(source, {"a": 1.0, "b": 2.0, "c": 3.0}, every=1)
    x, seen = torch.randn(12, 6), []
    torch.manual_seed(4)
    report = eq.check(model, balancer, model.losses, x)
    twin = copy.deepcopy(model)
    if isinstance(twin.shared, eq.Fork):
        twin.shared.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        twin.shared.measure(False)
    torch.manual_seed(4)
    losses = twin.losses(x)
    if source.parameters_measured:
        layer = twin.shared.shared_layer if isinstance(twin.shared, eq.Fork) else twin.shared
        wanted = [dict(layer.named_parameters())[name] for name in source.parameters_measured]
    else:
        wanted = seen
    gradients = torch.cat([task_gradients(losses.values(), one).flatten(1) for one in wanted], 1)
    close(report.losses, torch.stack(list(losses.values())))
    close(report.weights, torch.tensor([0.5, 1.0, 1.5]))
    close(report.gradient_norms, report.weights * gradients.norm(dim=1))
    close(report.cosines, torch.nn.functional.cosine_similarity(gradients[:, None], gradients[None], dim=2))
    assert report.ratio == pytest.approx((report.gradient_norms.max() / report.gradient_norms.min()).item())


def state_of(model, balancer):
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return copy.deepcopy([model.state_dict(), balancer.state_dict(), balancer.log(), gradients])


def assert_identical(actual, expected):
    assert [list(part) for part in actual] == [list(part) for part in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.pop("_extra_state", None) == theirs.pop("_extra_state", None)
        torch.testing.assert_close(dict(ours), dict(theirs), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("pending", [False, True])
def test_nothing_is_changed_by_looking(entry_point, steps, pending):
    def train(look):
        torch.manual_seed(0)
        random.seed(0)
        numpy.random.seed(0)
        model, source = entry_point(heads={"b": nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))})
        balancer, optimizer = eq.GradNorm(source), torch.optim.SGD(model.parameters(), 0.01)

        def losses_fn(x):
            return model.losses(x + random.random() + numpy.random.rand() + 0.1 * torch.rand_like(x))

        x = torch.randn(12, 6)
        for _ in range(steps):
            optimizer.zero_grad()
            balancer(losses_fn(x)).backward()
            optimizer.step()
            balancer.step()
        if pending:  # in the middle of a step
            balancer(losses_fn(x)).backward()
        if look:
            before = state_of(model, balancer)
            report = eq.check(model if steps else source, balancer, losses_fn, x)
            assert report.ok
            assert_identical(state_of(model, balancer), before)
        if not pending:
            balancer(losses_fn(x)).backward()
        balancer.step()
        return state_of(model, balancer)

    assert_identical(train(look=True), train(look=False))


def test_a_buffer_that_a_method_writes_is_as_it_was():
    class Counting(Model):
        def __init__(self):
            super().__init__(eq.Fork(nn.Linear(8, 8), TASKS))
            self.register_buffer("calls", torch.zeros(()))

        def losses(self, x):  # and no forward pass of this module
            self.calls = self.calls + 1
            features = self.shared(self.trunk(x))
            return {task: self.heads[task](features[task]).square().mean() for task in TASKS}

    model = Counting()
    calls = model.calls
    assert eq.check(model, eq.GradNorm(model.shared), model.losses, torch.randn(12, 6)).ok
    assert model.calls is calls
    assert calls == 0


def test_the_source_is_as_it_was():
    model, fork = ENTRY_POINTS["fork, by rule"]()
    x = torch.randn(12, 6)
    eq.check(model, eq.Equal(TASKS), model.losses, x)
    assert not fork.measuring
    balancer = eq.GradNorm(fork)
    eq.check(model, balancer, model.losses, x)
    assert fork.measuring
    model.heads["b"][0] = nn.ReLU(inplace=True)
    with pytest.raises(RuntimeError, match="the features of task 'b'"):  # as before the first step
        model(x)


def test_an_embedding_that_renormalises_is_as_it_was():
    model = nn.ModuleDict({"table": eq.Fork(nn.Embedding(5, 4, max_norm=0.5), ("a", "b"))})
    before = model["table"].shared_layer.weight.detach().clone()

    def losses_fn(x):
        features = model["table"](x)
        return {"a": features["a"].square().mean(), "b": features["b"].cos().mean()}

    assert eq.check(model, eq.GradNorm(model["table"]), losses_fn, torch.tensor([0, 3])).ok
    assert torch.equal(model["table"].shared_layer.weight, before)


def test_a_model_that_another_thread_trains_is_left_alone():
    model, source = ENTRY_POINTS["fork, by rule"]()
    other = nn.BatchNorm1d(6)

    def losses_fn(x):
        thread = threading.Thread(target=lambda: other(x))
        thread.start()
        thread.join()
        return model.losses(x)

    eq.check(model, eq.GradNorm(source), losses_fn, torch.randn(12, 6))
    assert other.num_batches_tracked == 1


def test_a_head_that_works_in_place(entry_point):
    model, source = entry_point(heads={"b": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 2))})
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    if isinstance(source, eq.PerLoss):  # hands nothing out, so that this is as good as in any model
        assert report.ok
        return
    assert findings(report, "error")[0] == (
        ("b",),
        "task 'b': its head works in place on the features; use inplace=False, or clone() them first",
    )
    assert "not ok" in str(report)


def test_every_head_that_works_in_place_even_on_a_view():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1).relu_())

    model, source = ENTRY_POINTS["fork, by rule"](
        {"a": Flat(8, 2), "c": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 2))}
    )
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert [tasks for tasks, message in findings(report, "error") if "in place" in message] == [("a",), ("c",)]


def spoilt(change):
    """A forked model whose losses ``change`` has its hands on, and the check of it."""
    model, source = ENTRY_POINTS["fork, by rule"]()
    return eq.check(
        model, eq.GradNorm(source, alpha=0.0), lambda x: change(model, model.losses(x), x), torch.randn(12, 6)
    )


def test_a_loss_that_reads_another_alias():
    report = spoilt(lambda model, losses, x: losses | {"b": losses["b"] + losses["a"]})
    ((tasks, message),) = findings(report, "error")
    assert tasks == ("b",)
    assert "found that it reads features['a']: every head must read its own" in message


def test_a_loss_that_goes_past_the_fork():
    penalty = lambda model, losses, x: losses | {"a": losses["a"] + model.shared.shared_layer.weight.square().sum()}  # noqa: E731
    ((tasks, message),) = findings(spoilt(penalty), "error")
    assert tasks == ("a",)
    assert "its parameter 'weight' past the fork" in message


def test_a_loss_that_does_not_reach_the_layer_is_dead_and_the_reason_is_there():
    report = spoilt(lambda model, losses, x: losses | {"c": losses["c"].detach()})
    errors = findings(report, "error")
    assert [tasks for tasks, _ in errors] == [("c",), ("c",)]
    assert "found a gradient of zero" in errors[0][1]
    assert "does not reach the fork" in errors[1][1]
    assert report.gradient_norms[2] == 0


def test_a_dead_task(entry_point):
    model, source = entry_point()
    dead = lambda x: model.losses(x) | {"a": model.losses(x)["a"] * 0.0}  # noqa: E731
    report = eq.check(model, eq.GradNorm(source, alpha=0.0), dead, torch.randn(12, 6))
    ((tasks, message),) = findings(report, "error")
    assert tasks == ("a",)
    assert "gradient of zero" in message
    assert torch.isfinite(report.cosines[1:, 1:]).all()


def test_an_absent_task_is_no_finding(entry_point):
    model, source = entry_point()
    report = eq.check(model, eq.GradNorm(source), lambda x: model.losses(x) | {"b": None}, torch.randn(12, 6))
    assert report.ok
    assert report.losses.isnan().tolist() == [False, True, False]
    assert report.gradient_norms.isnan().tolist() == [False, True, False]
    assert report.cosines.isnan().sum() == 5
    with pytest.raises(ValueError, match="found None for every task"):
        eq.check(model, eq.GradNorm(source), lambda x: dict.fromkeys(TASKS), torch.randn(12, 6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value):
    report = spoilt(lambda model, losses, x: losses | {"b": losses["b"] * value})
    assert (("b",), f"task 'b': its loss must be finite; found {value}") in findings(report, "error")


def test_a_gradient_that_is_not_finite():
    report = spoilt(lambda model, losses, x: losses | {"b": (losses["b"] - losses["b"].detach()).sqrt()})
    assert any(tasks == ("b",) and "gradient must be finite" in message for tasks, message in findings(report, "error"))


def test_a_first_loss_that_the_method_cannot_start_from():
    model, source = ENTRY_POINTS["attach"]()
    below_zero = lambda x: model.losses(x) | {"a": model.losses(x)["a"] - 100}  # noqa: E731
    assert eq.check(model, eq.GradNorm(source, alpha=0.0), below_zero, torch.randn(12, 6)).ok
    ((tasks, message),) = findings(eq.check(model, eq.GradNorm(source), below_zero, torch.randn(12, 6)), "error")
    assert tasks == ("a",)
    assert "must be positive" in message


@pytest.mark.parametrize("what", ["model", "balancer"])
def test_eval(what):
    model, source = ENTRY_POINTS["fork, by rule"]()
    balancer = eq.GradNorm(source)
    {"model": model, "balancer": balancer}[what].eval()
    report = eq.check(model, balancer, model.losses, torch.randn(12, 6))
    assert findings(report, "error") == [
        ((), "nothing is measured in eval(): call train() on the model and on the balancer")
    ]


def test_losses_with_nothing_in_common():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = eq.Fork(nn.Linear(6, 6), TASKS)

        def losses(self, x):
            features = self.shared(x)
            return {
                task: features[task][:, 2 * i : 2 * i + 2 + (i == 1)].square().mean() for i, task in enumerate(TASKS)
            }

    model = Split()
    report = eq.check(model, eq.GradNorm(model.shared), model.losses, torch.randn(12, 6))
    assert report.disjoint == (("a", "b"), ("a", "c"))
    assert [tasks for tasks, _ in findings(report, "warning")] == [("a", "b"), ("a", "c")]
    assert "no entry of the last shared layer in common" in findings(report, "warning")[0][1]
    assert report.ok


def test_norms_far_apart_and_gradients_that_are_opposed():
    report = spoilt(lambda model, losses, x: losses | {"a": 1e6 * losses["a"]})
    ((tasks, message),) = findings(report, "warning")
    assert tasks == ("a", "b") or tasks == ("a", "c")
    assert "apart" in message
    assert report.ratio > 1e3

    fork = eq.Fork(nn.Linear(3, 2), ("a", "b"))

    def losses_fn(x):
        features = fork(x)
        return {"a": features["a"].sum(), "b": -2 * features["b"].sum()}

    report = eq.check(fork, eq.GradNorm(fork, alpha=0.0), losses_fn, torch.ones(1, 3))
    ((tasks, message),) = findings(report, "warning")
    assert tasks == ("a", "b")
    assert "cosine of -1.00" in message
    close(report.cosines, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))


def test_a_hook_that_changes_what_the_layer_gives_shows_as_a_deviation():
    model, source = ENTRY_POINTS["fork, by rule"]()
    source.shared_layer.register_forward_hook(lambda module, inputs, output: 3 * output)
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert [tasks for tasks, _ in findings(report, "error")] == [("a",), ("b",), ("c",)]
    assert "found a deviation of 6.7e-01 from autograd.grad" in findings(report, "error")[0][1]
    model, source = forked(lambda: nn.Linear(8, 8), parameters=("weight",))()
    source.shared_layer.register_forward_hook(lambda module, inputs, output: 3 * output)
    assert eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6)).ok  # the remedy


def test_the_precision_is_reported(entry_point):
    model, source = entry_point()
    model.to(torch.float32)
    balancer = eq.GradNorm(source).to(torch.float32)

    def losses_fn(x):
        with torch.autocast("cpu", torch.bfloat16):
            return {task: loss.float() for task, loss in model.losses(x).items()}

    x = torch.randn(12, 6, dtype=torch.float32)
    report = eq.check(model, balancer, losses_fn, x)
    assert report.ok, report
    assert report.weight_dtype == (torch.float32 if source.parameters_measured else None)
    assert report.autocast_dtypes == (torch.bfloat16,)
    assert "autocast: bfloat16" in str(report)
    assert torch.bfloat16 in report.feature_dtypes or isinstance(source, eq.PerLoss) or report.feature_dtypes
    assert eq.check(model, balancer, model.losses, x).autocast_dtypes == ()


def test_a_layer_in_float16_is_a_warning():
    fork = eq.Fork(nn.Linear(3, 2, dtype=torch.float16), ("a", "b"))

    def losses_fn(x):
        return {task: (i + 1) * feature.float().square().mean() for i, (task, feature) in enumerate(fork(x).items())}

    report = eq.check(fork, eq.GradNorm(fork), losses_fn, torch.ones(2, 3, dtype=torch.float16))
    assert report.ok, report
    assert "float16" in findings(report, "warning")[-1][1]


def test_a_layer_that_is_frozen_is_measured_all_the_same():
    model, source = ENTRY_POINTS["fork, by rule"]()
    source.requires_grad_(False)
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert report.ok
    assert (report.gradient_norms > 0).all()
    assert report.deviations.isnan().all()


def test_a_fork_without_a_layer_on_top_of_nothing_that_is_trained():
    fork = eq.Fork(None, ("a", "b"))
    losses_fn = lambda x: {task: (i + 1) * feature.square().sum() for i, (task, feature) in enumerate(fork(x).items())}  # noqa: E731
    report = eq.check(fork, eq.GradNorm(fork), losses_fn, torch.ones(2, 3))
    assert report.ok
    close(report.gradient_norms, torch.tensor([1.0, 2.0]) * 2 * 6**0.5)
    assert report.cosines.isnan().all()


# Dynamo makes an instance of every autograd.Function that it traces, which PyTorch itself warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_is_run_as_it_was_written():
    model, source = ENTRY_POINTS["fork, by rule"]()
    compiled = torch.compile(model, backend="aot_eager")
    losses_fn = lambda x: {task: output.square().mean() for task, output in compiled(x).items()}  # noqa: E731
    x = torch.randn(12, 6)
    balancer = eq.GradNorm(source)
    assert eq.check(compiled, balancer, losses_fn, x).ok
    balancer(losses_fn(x)).backward()
    balancer.step()
    assert eq.check(compiled, balancer, losses_fn, x).ok


def test_a_balancer_of_names_is_checked_at_the_one_fork():
    model, source = ENTRY_POINTS["fork, by rule"]()
    for where in (model, source):
        report = eq.check(where, eq.Equal(TASKS), model.losses, torch.randn(12, 6))
        assert report.ok
        assert (report.gradient_norms > 0).all()
    plain, source = ENTRY_POINTS["attach"]()
    assert eq.check(source, eq.Equal(TASKS), plain.losses, torch.randn(12, 6)).ok
    with pytest.raises(ValueError, match="Model has 0 forks. Hand in the fork itself"):
        eq.check(plain, eq.Equal(TASKS), plain.losses, torch.randn(12, 6))
    with pytest.raises(ValueError, match=r"the balancer has the tasks \('x',\); the fork has \('a', 'b', 'c'\)"):
        eq.check(model, eq.Equal(("x",)), model.losses, torch.randn(12, 6))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda losses: list(losses.values()), TypeError, "losses must be a dict by task name; found list"),
        (lambda losses: losses | {"d": losses["a"]}, ValueError, "unknown task 'd'"),
        (lambda losses: {"a": losses["a"], "b": losses["b"]}, ValueError, "task 'c': its loss is missing"),
        (lambda losses: losses | {"a": losses["a"].expand(2)}, ValueError, "task 'a': a loss must be a scalar"),
    ],
)
def test_losses_that_the_balancer_would_not_take_are_refused(change, error, message):
    model, source = ENTRY_POINTS["fork, by rule"]()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        eq.check(model, eq.GradNorm(source), lambda x: change(model.losses(x)), torch.randn(12, 6))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_report_is_an_object_and_a_text():
    model, source = ENTRY_POINTS["fork, by rule"]()
    report = eq.check(model, eq.GradNorm(source), lambda x: model.losses(x) | {"b": None}, torch.randn(12, 6))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.tasks = ()
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["task", "loss", "weight"]
    assert lines[2].split() == ["b", "-", "1", "-", "-", "-", "-"]
    assert lines[5] == "W: weight (8, 8), float64"


def trained(rank, entry_point, settings, look):
    """Weights and parameters after 3 steps under DistributedDataParallel, and how often a check before a step was refused."""
    torch.manual_seed(0)
    model, source = ENTRY_POINTS[entry_point]()
    wrapped = nn.parallel.DistributedDataParallel(model, **settings)
    balancer, optimizer = eq.GradNorm(source), torch.optim.SGD(model.parameters(), 0.01)

    def losses_fn(x):
        return {task: output.square().mean() for task, output in wrapped(x).items()}

    torch.manual_seed(rank)
    refused = 0
    for _ in range(3):
        x = torch.randn(12, 6)
        if look:
            found = processes.caught(eq.check, wrapped, balancer, losses_fn, x)
            refused += isinstance(found, dict) and "check the model without it" in found["error"]
            assert refused or found.ok
        optimizer.zero_grad()
        balancer(losses_fn(x)).backward()
        optimizer.step()
        balancer.step()
    return torch.cat([balancer.weights, *(p.detach().flatten() for p in model.parameters())]), refused


def two_processes(rank, world):
    processes.connect()
    return {
        f"{entry_point} {settings}": [trained(rank, entry_point, settings, look) for look in (False, True)]
        for entry_point in ("fork, by rule", "attach")
        for settings in ({}, {"static_graph": True})
    }


def test_a_wrapped_model_trains_on_as_if_nobody_had_looked():
    for rank in processes.run(two_processes, 2):
        for case, ((unseen, _), (seen, refused)) in rank.items():
            assert torch.equal(unseen, seen), case
            assert refused == (1 if "static_graph" in case else 0), case  # the first time only


def test_a_sharded_model_is_refused():
    model, source = ENTRY_POINTS["fork, by rule"]()
    model.trunk[0].weight.full_tensor = None  # what tells a parameter that is held in parts
    with pytest.raises(ValueError, match="which fully_shard does not support: check the model without it"):
        eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
