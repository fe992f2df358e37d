"""eq.check: what is wrong is named with its cause, and nothing is changed by looking."""

import copy
import dataclasses
import json
import random
import threading

import numpy
import pytest
import torch
from helpers import processes
from helpers.reference import close, task_gradients
from torch import nn
from torch.utils.checkpoint import checkpoint

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
        units = dict(zip(TASKS, (1.0, 2.0, 4.0), strict=True))
        return {task: units[task] * (out - 1 - i / 2).square().mean() for i, (task, out) in enumerate(self(x).items())}


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
def _entry_point(request):
    return ENTRY_POINTS[request.param]


def findings(report, level):
    return [(finding.tasks, finding.message) for finding in report.findings if finding.level == level]


def spoilt(change, entry_point="fork, by rule", **settings):
    """The check of a model whose losses ``change`` has its hands on."""
    model, source = ENTRY_POINTS[entry_point]()
    balancer = eq.GradNorm(source, **{"alpha": 0.0} | settings)
    return eq.check(model, balancer, lambda x: change(model, model.losses(x), x), torch.randn(12, 6))


def the_error(report):
    """The tasks and the message of the one error that there must be."""
    (error,) = findings(report, "error")
    assert not report.ok
    assert str(report).endswith("\nnot ok")
    return error


# A model that is all right


def test_a_model_that_is_all_right(entry_point):
    model, source = entry_point()
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert report.ok
    assert report.findings == ()
    assert str(report).endswith("\nok")
    assert report.tasks == TASKS
    assert report.parameters == {name: tuple(p.shape) for name, p in source.shared_parameters.items()}
    assert report.deviations.max() < 1e-12
    assert (report.losses > 0).all()


@pytest.mark.parametrize("accumulate", [False, True])
def test_the_numbers_are_those_of_autograd(entry_point, accumulate):
    model, source = entry_point()
    balancer = eq.Static(source, {"a": 1.0, "b": 2.0, "c": 3.0}, every=1)
    balancer.accumulate = accumulate
    x, seen = torch.randn(12, 6), []
    torch.manual_seed(4)
    report = eq.check(model, balancer, model.losses, x)
    twin = copy.deepcopy(model)
    if isinstance(twin.shared, eq.Fork):
        twin.shared.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        twin.shared.measuring = False
    torch.manual_seed(4)
    losses = twin.losses(x)
    if source.shared_parameters:
        layer = twin.shared.shared_layer if isinstance(twin.shared, eq.Fork) else twin.shared
        wanted = [dict(layer.named_parameters())[name] for name in source.shared_parameters]
    else:
        wanted = seen
    gradients = torch.cat([task_gradients(losses.values(), one).flatten(1) for one in wanted], 1)
    close(report.losses, torch.stack(list(losses.values())).detach())
    close(report.weights, torch.tensor([0.5, 1.0, 1.5]))
    close(report.gradient_norms, report.weights * gradients.norm(dim=1))
    close(report.cosines, torch.nn.functional.cosine_similarity(gradients[:, None], gradients[None], dim=2))
    assert report.deviations.max() < 1e-12


def two_losses(scale):
    fork = eq.Fork(nn.Linear(3, 2), ("a", "b"))

    def losses_fn(x):
        features = fork(x)
        return {"a": features["a"].square().sum(), "b": scale * features["b"].square().sum()}

    return eq.check(fork, eq.GradNorm(fork, alpha=0.0), losses_fn, torch.ones(1, 3))


def test_whether_there_is_anything_to_balance():
    assert two_losses(1.0).balance == "the gradient norms are within a factor of 2: there is little to balance"
    assert two_losses(1.9).balance == "the gradient norms are within a factor of 2: there is little to balance"
    report = two_losses(2.1)
    assert report.balance == "out of balance: the gradient norm of task 'b' is 2.1 times that of task 'a'"
    assert report.balance in str(report).splitlines()
    report = two_losses(0.1)
    assert report.balance == "out of balance: the gradient norm of task 'a' is 10 times that of task 'b'"
    alone = spoilt(lambda model, losses, x: losses | {"b": None, "c": None})
    assert alone.balance == "there are no two gradients to be balanced"


RULE = {
    "method": "GradNorm",
    "opponent": "equal weights",
    "rule": {
        "measured": "norm_ratio",
        "threshold": 5.0,
        "optimizer": "",
        "there": "ahead",
        "elsewhere": "no difference",
    },
    "hits": 80,
    "problems": 108,
    "base": 60,
    "base_answer": "no difference",
}


def rules_are(monkeypatch, tmp_path, *some):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(some))
    monkeypatch.setattr("equipoise.checking.rules.RULES", path)


def test_a_rule_of_thumb_is_quoted_with_its_hits(monkeypatch, tmp_path):
    rules_are(monkeypatch, tmp_path, RULE)
    report = two_losses(9.0)
    assert report.rules_of_thumb == (
        "rule of thumb, GradNorm against equal weights: ahead where the largest gradient norm is at least 5 times the "
        "smallest, else no difference; so here: ahead (right on 80 of 108 generated problems; “no difference” everywhere, "
        "on 60)",
    )
    assert report.rules_of_thumb[0] in " ".join(str(report).split())
    assert "so here: no difference (right" in two_losses(2.0).rules_of_thumb[0]


def test_a_rule_of_thumb_is_about_gradients_without_weights(monkeypatch, tmp_path):
    """As it was fitted on a first batch with equal weights."""
    rules_are(monkeypatch, tmp_path, RULE)
    fork = eq.Fork(nn.Linear(3, 2), ("a", "b"))
    balancer = eq.GradNorm(fork, initial_weights={"a": 1.9, "b": 0.1})

    def losses_fn(x):
        features = fork(x)
        return {"a": features["a"].square().sum(), "b": 9 * features["b"].square().sum()}

    report = eq.check(fork, balancer, losses_fn, torch.ones(1, 3))
    assert "so here: ahead (right" in report.rules_of_thumb[0]


def test_a_rule_of_thumb_about_an_optimiser_says_so(monkeypatch, tmp_path):
    rules_are(monkeypatch, tmp_path, {**RULE, "rule": {**RULE["rule"], "optimizer": "sgd"}})
    (said,) = two_losses(9.0).rules_of_thumb
    assert "ahead where, with SGD, the largest gradient norm is at least 5" in said
    assert "so here: no difference with Adam and ahead with SGD (right" in said


def test_where_no_rule_held_up_it_says_that(monkeypatch, tmp_path):
    nothing = "no rule of thumb held up that tells from one batch whether GradNorm will be ahead of equal weights"
    rules_are(monkeypatch, tmp_path)
    assert two_losses(9.0).rules_of_thumb == (nothing,)
    rules_are(monkeypatch, tmp_path, {**RULE, "opponent": "1 / L(0)"})
    first, second = two_losses(9.0).rules_of_thumb
    assert first.startswith("rule of thumb, GradNorm against 1 / L(0): ahead where")
    assert second == nothing


def test_without_two_gradients_no_rule_is_quoted(monkeypatch, tmp_path):
    rules_are(monkeypatch, tmp_path, RULE)
    assert spoilt(lambda model, losses, x: losses | {"b": None, "c": None}).rules_of_thumb == ()


def test_the_weights_are_those_of_the_losses_at_hand():
    model, source = ENTRY_POINTS["fork, by rule"]()
    balancer = eq.RLW(source) if hasattr(eq, "RLW") else pytest.skip("no method that weighs")
    x = torch.randn(12, 6)
    torch.manual_seed(4)
    report = eq.check(model, balancer, model.losses, x)
    torch.manual_seed(4)
    losses = model.losses(x)
    close(balancer(losses).detach(), (report.weights * report.losses).sum())


# Nothing is changed


def state_of(model, balancer, source):
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    flags = ("measuring", "keep_gradients", "auditing", "copying", "paused", "owner")
    kept = {name: getattr(source, name) for name in (*flags, "passes")}
    kept |= {"aliases": {i: len(some) for i, some in source.aliases.items()}, "features": len(source.features)}
    return copy.deepcopy([model.state_dict(), balancer.state_dict(), balancer.log(), gradients]), kept


def assert_identical(actual, expected):
    for ours, theirs in zip(actual[0], expected[0], strict=True):
        assert list(ours) == list(theirs)
        torch.testing.assert_close(dict(ours), dict(theirs), rtol=0, atol=0, equal_nan=True)
    assert actual[1] == expected[1]


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
            before = state_of(model, balancer, source)
            report = eq.check(model if steps else source, balancer, losses_fn, x)
            assert report.ok
            assert_identical(state_of(model, balancer, source), before)
        if not pending:
            balancer(losses_fn(x)).backward()
        balancer.step()
        return state_of(model, balancer, source)[0], None

    assert_identical(train(look=True), train(look=False))


def test_a_forward_pass_before_the_check_can_still_be_trained_on():
    model, source = ENTRY_POINTS["fork, by rule"]()
    balancer, x = eq.GradNorm(source), torch.randn(12, 6)
    total = balancer(model.losses(x))
    assert eq.check(model, balancer, model.losses, x).ok
    total.backward()
    balancer.step()
    assert balancer.log()["audit"] < 1e-12


def test_nothing_is_changed_by_a_check_that_fails():
    model, source = ENTRY_POINTS["fork, by rule"]()
    balancer = eq.GradNorm(source)
    before = state_of(model, balancer, source)

    def failing(x):
        model.losses(x)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        eq.check(model, balancer, failing, torch.randn(12, 6))
    assert_identical(state_of(model, balancer, source), before)


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
    eq.check(model, eq.Static(TASKS, dict.fromkeys(TASKS, 1.0)), model.losses, x)
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


# Errors, each with its cause


def test_a_head_that_works_in_place(entry_point):
    model, source = entry_point(heads={"b": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 2))})
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    if isinstance(source, eq.PerLoss):  # hands nothing out, so that this is as good as in any model
        assert report.ok
        return
    tasks, message = the_error(report)
    assert tasks == ("b",)
    assert message == "task 'b': its head works in place on the features; use inplace=False, or clone() them first"
    assert report.deviations.max() < 1e-12


def test_every_head_that_works_in_place_even_on_a_view():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1).relu_())

    model, source = ENTRY_POINTS["fork, by rule"](
        {"a": Flat(8, 2), "c": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 2))}
    )
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert [tasks for tasks, message in findings(report, "error") if "in place" in message] == [("a",), ("c",)]


@pytest.mark.parametrize("entry_point", ["fork, by rule", "fork, a block", "fork, features", "attach"])
@pytest.mark.parametrize(("reader", "read"), [("a", "b"), ("b", "a")])
def test_a_loss_that_reads_another_alias(entry_point, reader, read):
    report = spoilt(lambda model, losses, x: losses | {reader: losses[reader] + losses[read]}, entry_point)
    tasks, message = the_error(report)
    assert tasks == (reader,)
    wanted = f"the head of task {read!r} is given" if entry_point == "attach" else f"features[{read!r}]"
    assert f"{wanted}: every head must read its own" in message


def test_two_losses_on_one_head():
    tasks, message = the_error(spoilt(lambda model, losses, x: losses | {"c": 2 * losses["a"]}))
    assert tasks == ("c",)
    assert "found that it reads features['a']" in message
    assert "Losses on one head are one task, their sum, or are measured with PerLoss" in message
    assert spoilt(lambda model, losses, x: losses | {"c": 2 * losses["a"]}, "per loss").ok


def test_heads_whose_outputs_are_joined_are_right():
    model, source = ENTRY_POINTS["fork, by rule"]()

    def losses_fn(x):
        joined = torch.cat([*model(x).values()], 1)
        return {task: (joined[:, 2 * i] - i).square().mean() for i, task in enumerate(TASKS)}

    assert eq.check(model, eq.GradNorm(source), losses_fn, torch.randn(12, 6)).ok


@pytest.mark.parametrize("entry_point", ["fork, by rule", "fork, chosen", "attach"])
def test_a_loss_that_goes_past_the_fork(entry_point):
    name = "bias" if entry_point == "fork, chosen" else "weight"

    def penalised(model, losses, x):
        layer = getattr(model.shared, "shared_layer", model.shared)
        return losses | {"b": losses["b"] + getattr(layer, name).square().sum()}

    tasks, message = the_error(spoilt(penalised, entry_point))
    assert tasks == ("b",)
    assert f"it also reaches {name!r} past the fork. PerLoss measures such a loss" in message
    assert spoilt(penalised, "per loss").ok


def test_a_loss_that_goes_past_a_fork_at_the_features():
    model, source = ENTRY_POINTS["fork, features"]()
    seen = []
    source.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))

    def losses_fn(x):
        losses = model.losses(x)
        return losses | {"a": losses["a"] + seen[-1].square().mean()}

    tasks, message = the_error(eq.check(model, eq.GradNorm(source), losses_fn, torch.randn(12, 6)))
    assert tasks == ("a",)
    assert "it also reaches 'features' past the fork" in message


def test_a_head_that_reads_no_alias_at_all():
    model, source = ENTRY_POINTS["fork, by rule"]()

    def losses_fn(x):
        hidden = model.trunk(x)
        features = model.shared(hidden) | {"c": model.shared.shared_layer(hidden)}
        return {task: model.heads[task](features[task]).square().mean() for task in TASKS}

    tasks, message = the_error(eq.check(model, eq.GradNorm(source), losses_fn, torch.randn(12, 6)))
    assert tasks == ("c",)
    assert "it also reaches 'weight' past the fork" in message


def test_a_layer_that_is_used_a_second_time_below_the_fork():
    model, source = ENTRY_POINTS["fork, by rule"]()
    model.trunk.append(source.shared_layer)
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert [tasks for tasks, _ in findings(report, "error")] == [("a",), ("b",), ("c",)]
    assert "its weight used again below the fork" in findings(report, "error")[0][1]
    model, source = forked(lambda: nn.Linear(8, 8), parameters=("weight",))()
    model.trunk.append(source.shared_layer)
    assert eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6)).ok  # the remedy


def test_a_hook_that_changes_what_the_layer_gives_is_measured():
    model, source = ENTRY_POINTS["fork, by rule"]()
    source.shared_layer.register_forward_hook(lambda module, inputs, output: 3 * output)
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert report.ok
    assert report.deviations.max() < 1e-12


@pytest.mark.parametrize("entry_point", ["fork, by rule", "fork, features", "attach", "per loss"])
def test_a_loss_that_is_a_constant(entry_point):
    report = spoilt(lambda model, losses, x: losses | {"c": losses["c"].detach()}, entry_point)
    tasks, message = the_error(report)
    assert tasks == ("c",)
    assert "its loss must carry a gradient; found a constant" in message
    assert report.gradient_norms[2] == 0


def test_features_that_are_detached():
    class Detaching(nn.Sequential):
        def forward(self, x):
            return super().forward(x.detach())

    for build in (ENTRY_POINTS["fork, by rule"], ENTRY_POINTS["fork, features"], attached, per_loss):
        model, source = build(heads={"b": Detaching(nn.Linear(8, 2))})
        tasks, message = the_error(eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6)))
        assert tasks == ("b",)
        assert "no gradient of its loss arrives" in message


def test_a_head_that_was_replaced_after_it_was_attached():
    model, source = attached()
    model.heads["b"] = nn.Linear(8, 2)
    tasks, message = the_error(eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6)))
    assert tasks == ("b",)
    assert "has replaced the head that was attached" in message


def test_hooks_that_were_removed():
    model, source = attached()
    balancer = eq.GradNorm(source)
    source.remove()
    report = eq.check(model, balancer, model.losses, torch.randn(12, 6))
    assert [tasks for tasks, _ in findings(report, "error")] == [("a",), ("b",), ("c",)]
    assert "its hooks were removed" in findings(report, "error")[0][1]


def test_a_dead_task(entry_point):
    model, source = entry_point()
    dead = lambda x: model.losses(x) | {"a": model.losses(x)["a"] * 0.0 + 1}  # noqa: E731
    report = eq.check(model, eq.GradNorm(source, accumulate=True), dead, torch.randn(12, 6))
    tasks, message = the_error(report)
    assert tasks == ("a",)
    assert "its gradient at the last shared layer is zero" in message
    assert torch.isfinite(report.cosines[1:, 1:]).all()


def test_an_absent_task_is_no_finding(entry_point):
    model, source = entry_point()
    report = eq.check(model, eq.GradNorm(source), lambda x: model.losses(x) | {"b": None}, torch.randn(12, 6))
    assert report.ok
    assert report.losses.isnan().tolist() == [False, True, False]
    assert report.gradient_norms.isnan().tolist() == [False, True, False]
    assert report.deviations.isnan().tolist() == [False, True, False]
    assert report.cosines.isnan().sum() == 5
    with pytest.raises(ValueError, match="found None for every task"):
        eq.check(model, eq.GradNorm(source), lambda x: dict.fromkeys(TASKS), torch.randn(12, 6))


def test_losses_in_one_tensor(entry_point):
    model, source = entry_point()
    stacked = lambda x: torch.stack([*model.losses(x).values()])  # noqa: E731
    torch.manual_seed(3)
    report = eq.check(model, eq.GradNorm(source), stacked, torch.randn(12, 6))
    torch.manual_seed(3)
    by_name = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert report.ok, report
    close(report.gradient_norms, by_name.gradient_norms)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_loss_that_is_not_finite(value, steps):
    model, source = ENTRY_POINTS["fork, by rule"]()
    balancer, x = eq.GradNorm(source), torch.randn(12, 6)
    for _ in range(steps):
        balancer(model.losses(x)).backward()
        balancer.step()
    report = eq.check(model, balancer, lambda x: model.losses(x) | {"b": model.losses(x)["b"] * value}, x)
    assert any(
        tasks == ("b",) and f"must be finite; found {value}" in text for tasks, text in findings(report, "error")
    )


def test_a_gradient_that_is_not_finite():
    tasks, message = the_error(
        spoilt(lambda model, losses, x: losses | {"b": 1 + (losses["b"] - losses["b"].detach()).sqrt()})
    )
    assert tasks == ("b",)
    assert "gradient must be finite" in message


def test_a_first_loss_that_the_method_cannot_start_from():
    model, source = ENTRY_POINTS["attach"]()
    x = torch.randn(12, 6)
    below_zero = lambda x: model.losses(x) | {"a": model.losses(x)["a"] - 20}  # noqa: E731
    assert eq.check(model, eq.GradNorm(source, alpha=0.0, accumulate=True), below_zero, x).ok
    balancer = eq.GradNorm(source, accumulate=True)
    tasks, message = the_error(eq.check(model, balancer, below_zero, x))
    assert tasks == ("a",)
    assert "a loss must not be negative with alpha > 0" in message
    balancer(model.losses(x)).backward()
    balancer.step()
    zero = lambda x: model.losses(x) | {"a": (first := model.losses(x)["a"]) - first.detach()}  # noqa: E731
    assert eq.check(model, balancer, zero, x).ok  # a loss may get there later
    tasks, message = the_error(eq.check(model, balancer, below_zero, x))
    assert tasks == ("a",)
    assert "must not be negative" in message


def test_a_first_loss_that_was_given():
    model, source = ENTRY_POINTS["attach"]()
    given = eq.GradNorm(source, initial_losses=dict.fromkeys(TASKS, 1.0), accumulate=True)
    zero = lambda x: model.losses(x) | {"a": (first := model.losses(x)["a"]) - first.detach()}  # noqa: E731
    assert eq.check(model, given, zero, torch.randn(12, 6)).ok


@pytest.mark.parametrize("what", ["model", "balancer"])
def test_eval(what):
    model, source = ENTRY_POINTS["fork, by rule"]()
    balancer = eq.GradNorm(source)
    {"model": model, "balancer": balancer}[what].eval()
    report = eq.check(model, balancer, model.losses, torch.randn(12, 6))
    assert the_error(report) == (
        (),
        "nothing is measured in eval(): call train() on the model and on the balancer",
    )
    assert (report.losses > 0).all()
    assert report.gradient_norms.isnan().all()


@pytest.mark.parametrize("entry_point", ["fork, by rule", "fork, a block", "attach", "per loss"])
def test_a_layer_that_was_frozen(entry_point):
    model, source = ENTRY_POINTS[entry_point]()
    balancer = eq.GradNorm(source)
    model.shared.requires_grad_(False)
    report = eq.check(model, balancer, model.losses, torch.randn(12, 6))
    tasks, message = the_error(report)
    assert tasks == ()
    assert "must have a parameter that is trained; found that all of them are frozen" in message
    assert (report.losses > 0).all()


def test_a_weight_that_was_frozen_leaves_the_rest_of_the_layer():
    model, source = ENTRY_POINTS["fork, by rule"]()
    balancer = eq.GradNorm(source)
    source.shared_layer.weight.requires_grad_(False)
    report = eq.check(model, balancer, model.losses, torch.randn(12, 6))
    assert report.ok
    assert report.parameters == {"bias": (8,)}


def test_a_fork_without_a_layer_on_top_of_nothing_that_is_trained():
    model, source = ENTRY_POINTS["fork, features"]()
    model.trunk.requires_grad_(False)
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert [tasks for tasks, _ in findings(report, "error")] == [("a",), ("b",), ("c",)]
    assert not report.ok


def test_a_fork_that_is_called_several_times():
    fork = eq.Fork(nn.Linear(3, 2), ("a", "b"))

    def losses_fn(x):
        first, second = fork(x), fork(x + 1)
        return {task: (first[task] + (i + 1) * second[task]).square().mean() for i, task in enumerate("ab")}

    x = torch.randn(4, 3)
    report = eq.check(fork, eq.GradNorm(fork), losses_fn, x)
    assert [tasks for tasks, _ in findings(report, "error")] == [("a",), ("b",)]
    assert "only accumulate=True adds up" in findings(report, "error")[0][1]
    report = eq.check(fork, eq.GradNorm(fork, accumulate=True), losses_fn, x)
    assert report.ok
    assert report.deviations.max() < 1e-12


def test_a_fork_that_a_later_balancer_has_taken():
    model, source = ENTRY_POINTS["fork, by rule"]()
    first, second = eq.GradNorm(source), eq.GradNorm(source)
    assert "another balancer" in the_error(eq.check(model, first, model.losses, torch.randn(12, 6)))[1]
    assert eq.check(model, second, model.losses, torch.randn(12, 6)).ok


class Neck(Model):
    """A further layer above the fork, which the tasks of ``shared_by`` share."""

    def __init__(self, shared_by=TASKS, entry_point="fork"):
        super().__init__(eq.Fork(nn.Linear(8, 8), TASKS) if entry_point == "fork" else None)
        self.neck, self.scale, self.shared_by = nn.Linear(8, 8), nn.Parameter(torch.ones(())), shared_by
        vars(self)["source"] = self.shared
        if entry_point == "attach":
            self.entries = nn.ModuleDict({task: nn.Identity() for task in TASKS})
            vars(self)["source"] = eq.attach(self, "shared", {task: f"entries.{task}" for task in TASKS})

    def forward(self, x):
        features = self.shared(self.trunk(x))
        if not isinstance(features, dict):
            features = {task: self.entries[task](features) for task in TASKS}
        features = {task: self.neck(f) if task in self.shared_by else f for task, f in features.items()}
        return {task: self.scale * self.heads[task](features[task]) for task in TASKS}


@pytest.mark.parametrize("entry_point", ["fork", "attach"])
def test_a_further_shared_layer_above_the_fork(entry_point):
    model = Neck(entry_point=entry_point)
    tasks, message = the_error(eq.check(model, eq.GradNorm(model.source), model.losses, torch.randn(12, 6)))
    assert tasks == TASKS
    assert "they share 'neck.weight' above the fork: put it behind the last layer that they share" in message
    model = Neck(("a", "c"), entry_point)
    tasks, _ = the_error(eq.check(model, eq.GradNorm(model.source), model.losses, torch.randn(12, 6)))
    assert tasks == ("a", "c")


@pytest.mark.parametrize("shared_by", [(), ("b",)])
def test_a_layer_above_the_fork_of_one_task_or_a_scalar_of_all_is_right(shared_by):
    model = Neck(shared_by)
    assert eq.check(model, eq.GradNorm(model.source), model.losses, torch.randn(12, 6)).ok


def test_a_layer_below_the_fork_that_heads_use_again_is_right():
    model, source = ENTRY_POINTS["fork, by rule"]()
    first = model.trunk[0].weight  # tied, as an embedding of words is with the outputs
    tied = lambda x: {task: (loss + 1e-2 * first.square().sum()) for task, loss in model.losses(x).items()}  # noqa: E731
    assert eq.check(model, eq.GradNorm(source), tied, torch.randn(12, 6)).ok


# Warnings


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
    assert [tasks for tasks, _ in findings(report, "warning")] == [("a", "b"), ("a", "c")]
    assert "their gradients have no entry of W in common (one of 2 pairs)" in findings(report, "warning")[0][1]
    assert report.ok


def test_only_some_of_many_pairs_are_named():
    layer = nn.Linear(3, 9)
    report = eq.check(
        layer,
        eq.GradNorm(eq.PerLoss(layer, [str(i) for i in range(9)])),
        lambda x: layer(x).square().mean(0),
        torch.randn(5, 3),
    )
    assert report.ok
    assert len(findings(report, "warning")) <= 6
    assert "(one of 36 pairs)" in findings(report, "warning")[-1][1]


def test_losses_and_norms_far_apart():
    report = spoilt(lambda model, losses, x: losses | {"a": 1e6 * losses["a"]})
    (one, losses), (other, norms) = findings(report, "warning")
    assert one[0] == other[0] == "a"
    assert "standardise the targets first: weights cannot repair the scale of an output" in losses
    largest, smallest = report.gradient_norms.max(), report.gradient_norms.min()
    assert (
        f"their gradient norms are {largest:.3g} and {smallest:.3g}, a factor of {largest / smallest:.3g} apart"
        in norms
    )
    assert report.ok
    offset = spoilt(lambda model, losses, x: losses | {"a": 1e4 + losses["a"]})  # a loss apart, and no norm
    assert ["standardise" in message for _, message in findings(offset, "warning")] == [True]


def test_gradients_that_are_opposed():
    fork = eq.Fork(nn.Linear(3, 2), ("a", "b"))

    def losses_fn(x):
        features = fork(x)
        return {"a": features["a"].sum(), "b": -2 * features["b"].sum()}

    report = eq.check(fork, eq.GradNorm(fork, alpha=0.0), losses_fn, torch.ones(1, 3))
    ((tasks, message),) = findings(report, "warning")
    assert tasks == ("a", "b")
    assert "cosine of -1.00" in message
    close(report.cosines, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))


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
    assert report.precisions.get("W") == ((torch.float32,) if source.shared_parameters else None)
    assert report.precisions["autocast"] == (torch.bfloat16,)
    assert ("features" in report.precisions) == (not isinstance(source, eq.PerLoss))
    assert "autocast: bfloat16" in str(report)
    assert "autocast" not in eq.check(model, balancer, model.losses, x).precisions


def test_a_layer_in_float16_is_a_warning():
    fork = eq.Fork(nn.Linear(3, 2, dtype=torch.float16), ("a", "b"))

    def losses_fn(x):
        return {task: (i + 1) * feature.float().square().mean() for i, (task, feature) in enumerate(fork(x).items())}

    report = eq.check(fork, eq.GradNorm(fork), losses_fn, torch.ones(2, 3, dtype=torch.float16))
    assert report.ok, report
    assert "float16" in findings(report, "warning")[-1][1]


def test_gradients_too_small_for_float16_are_compared_all_the_same():
    fork = eq.Fork(nn.Linear(3, 2, dtype=torch.float16), ("a", "b"))
    losses_fn = lambda x: {t: (1 + 1e-7 * f.float().square().mean()) for t, f in fork(x).items()}  # noqa: E731
    report = eq.check(fork, eq.GradNorm(fork), losses_fn, torch.ones(2, 3, dtype=torch.float16))
    assert report.ok, report
    assert (report.gradient_norms > 0).all()


# Set-ups


# Dynamo makes an instance of every autograd.Function that it traces, which PyTorch itself warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("what", ["module", "function"])
def test_a_compiled_model_is_run_as_it_was_written(what):
    model, source = ENTRY_POINTS["fork, by rule"]()
    compiled = torch.compile(model if what == "module" else model.forward, backend="aot_eager")
    losses_fn = lambda x: {task: output.square().mean() for task, output in compiled(x).items()}  # noqa: E731
    x = torch.randn(12, 6)
    balancer = eq.GradNorm(source)
    where = compiled if what == "module" else model
    assert eq.check(where, balancer, losses_fn, x).ok
    balancer(losses_fn(x)).backward()
    balancer.step()
    assert eq.check(where, balancer, losses_fn, x).ok


@pytest.mark.parametrize("entry_point", ["fork, by rule", "fork, features", "attach", "per loss"])
@pytest.mark.parametrize("part", ["trunk", "heads", "model"])
def test_checkpoints(entry_point, part):
    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    model, source = ENTRY_POINTS[entry_point]()
    if part == "trunk":
        model.trunk = Checkpointed(model.trunk)
    elif part == "heads":
        for head in model.heads.values():
            head[0] = Checkpointed(head[0])
    forward = model.forward
    if part == "model":
        model.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert report.ok, report
    assert report.deviations.max() < 1e-12


def test_a_reentrant_checkpoint_is_not_audited_and_the_report_says_why():
    model, source = ENTRY_POINTS["fork, by rule"]()
    head = model.heads["b"][1]
    model.heads["b"][1] = nn.Identity()

    def losses_fn(x):
        outputs = model(x)
        outputs["b"] = checkpoint(head, outputs["b"], use_reentrant=True)
        return {task: (output - 1).square().mean() for task, output in outputs.items()}

    report = eq.check(model, eq.GradNorm(source), losses_fn, torch.randn(12, 6))
    assert report.ok
    assert "use_reentrant" in report.left_out
    assert report.left_out in findings(report, "warning")[0][1]
    assert report.gradient_norms.isnan().all()
    assert str(report).endswith("\nok, but not audited")


def test_a_graph_that_cannot_be_differentiated_is_an_error():
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("there is no way back")

    report = spoilt(lambda model, losses, x: losses | {"b": OneWay.apply(losses["b"])})
    assert "there is no way back" in the_error(report)[1]


def test_a_balancer_of_names_is_checked_at_the_one_fork():
    names = eq.Static(TASKS, dict.fromkeys(TASKS, 1.0))
    model, source = ENTRY_POINTS["fork, by rule"]()
    for where in (model, source):
        report = eq.check(where, names, model.losses, torch.randn(12, 6))
        assert report.ok
        assert (report.gradient_norms > 0).all()
        assert report.deviations.max() < 1e-12
    plain, source = ENTRY_POINTS["attach"]()
    assert eq.check(source, names, plain.losses, torch.randn(12, 6)).ok
    with pytest.raises(ValueError, match="Model has 0 forks. Hand in the fork itself"):
        eq.check(plain, names, plain.losses, torch.randn(12, 6))
    with pytest.raises(ValueError, match=r"the balancer has the tasks \('x',\); the fork has \('a', 'b', 'c'\)"):
        eq.check(model, eq.Static(("x",), {"x": 1.0}), model.losses, torch.randn(12, 6))


def test_what_is_no_balancer_is_refused():
    model, _ = ENTRY_POINTS["fork, by rule"]()
    with pytest.raises(TypeError, match="check takes one balancer at a time, .*; found Model"):
        eq.check(model, model, model.losses, torch.randn(12, 6))


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
    assert isinstance(report, eq.CheckReport)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.tasks = ()
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["task", "loss", "weight"]
    assert lines[2].split() == ["b", "-", "1", "-", "-", "-", "-"]
    assert lines[5:7] == ["W: weight (8, 8)", "precisions: W: float64; features: float64"]


def test_many_tasks_have_no_column_each():
    tasks = [f"task {i}" for i in range(40)]
    fork = eq.Fork(nn.Linear(3, 2), tasks)
    losses_fn = lambda x: {t: (f.sum(1) - 0.1).square().mean() for t, f in fork(x).items()}  # noqa: E731
    report = eq.check(fork, eq.GradNorm(fork), losses_fn, torch.randn(5, 3))
    assert report.ok
    assert max(map(len, str(report).splitlines())) < 120


def trained(rank, entry_point, settings, look):
    """Weights and parameters after 3 steps under DistributedDataParallel, and how often a check was not audited."""
    torch.manual_seed(0)
    model, source = ENTRY_POINTS[entry_point]()
    wrapped = nn.parallel.DistributedDataParallel(model, **settings)
    balancer, optimizer = eq.GradNorm(source), torch.optim.SGD(model.parameters(), 0.01)

    def losses_fn(x):
        return {task: output.square().mean() for task, output in wrapped(x).items()}

    torch.manual_seed(rank)
    left_out = 0
    for _ in range(3):
        x = torch.randn(12, 6)
        if look:
            report = eq.check(wrapped, balancer, losses_fn, x)
            assert report.ok, report
            left_out += "static_graph" in report.left_out
        optimizer.zero_grad()
        balancer(losses_fn(x)).backward()
        optimizer.step()
        balancer.step()
    return torch.cat([balancer.weights, *(p.detach().flatten() for p in model.parameters())]), left_out


def two_processes(rank, world):
    processes.connect()
    return {
        f"{entry_point} {settings}": [trained(rank, entry_point, settings, look) for look in (False, True)]
        for entry_point in ("fork, by rule", "attach")
        for settings in ({}, {"static_graph": True})
    }


@pytest.mark.slow
def test_a_wrapped_model_trains_on_as_if_it_had_not_been_checked():
    for rank in processes.run(two_processes, 2):
        for case, ((unseen, _), (seen, left_out)) in rank.items():
            assert torch.equal(unseen, seen), case
            assert (left_out > 0) == ("static_graph" in case), case


def test_a_sharded_layer_is_not_audited_and_the_report_says_why():
    model, source = ENTRY_POINTS["fork, by rule"]()
    source.shared_layer.weight.full_tensor = None  # the mark of a parameter of which every process holds a part
    report = eq.check(model, eq.GradNorm(source), model.losses, torch.randn(12, 6))
    assert report.ok
    assert "fully_shard" in report.left_out
    assert report.left_out in findings(report, "warning")[0][1]


def test_a_sharded_trunk_is_not_looked_through():
    model = Neck()
    model.trunk[0].weight.full_tensor = None
    assert eq.check(model, eq.GradNorm(model.source), model.losses, torch.randn(12, 6)).ok
