"""Data and parts of a problem that do not fit are refused before a run; missing labels are seen by nobody."""

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchmetrics import MeanMetric, MeanSquaredError, R2Score
from torchmetrics.classification import MulticlassAccuracy

from equipoise import Equal
from equipoise.lab import Method, Problem, Split, Splits, Store, Task, compare, load_problem, run, specify
from equipoise.lab.runs.checks import check_problem
from equipoise.lab.runs.evaluation import Evaluations

TINY = Path(__file__).with_name("tiny.py")


def changed(problem, monkeypatch, **parts):
    splits = problem.splits()
    monkeypatch.setattr(type(problem), "splits", lambda self: replace(splits, **parts))
    return problem


@pytest.mark.parametrize(
    ("part", "split", "message"),
    [
        ("train", slice(0, 7), "split 'train': wanted at least 8 samples, found 7"),
        ("test", slice(0, 0), "split 'test': wanted at least 1 samples, found 0"),
    ],
)
def test_splits_that_are_too_small_are_refused(part, split, message, monkeypatch):
    problem = load_problem(TINY)
    whole = getattr(problem.splits(), part)
    small = Split(whole.inputs[split], {name: targets[split] for name, targets in whole.targets.items()})
    changed(problem, monkeypatch, **{part: small})
    with pytest.raises(ValueError, match=message):
        run(problem, specify(problem, Method("equal"), 0))


def test_targets_that_do_not_fit_are_refused_by_name(monkeypatch):
    problem = load_problem(TINY)
    whole = problem.splits().validation
    changed(problem, monkeypatch, validation=Split(whole.inputs, {"scale_1": whole.targets["scale_1"]}))
    with pytest.raises(ValueError, match="split 'validation': wanted targets of scale_1, scale_10; found scale_1"):
        run(problem, specify(problem, Method("equal"), 0))
    short = {**whole.targets, "scale_10": whole.targets["scale_10"][:5]}
    changed(problem, monkeypatch, validation=Split(whole.inputs, short))
    with pytest.raises(ValueError, match="split 'validation', task 'scale_10': 20 inputs, but 5 targets"):
        run(problem, specify(problem, Method("equal"), 0))


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("train", "inputs", math.nan, "split 'train', inputs: wanted finite numbers, found nan in row 3"),
        ("test", "inputs", math.inf, "split 'test', inputs: wanted finite numbers, found inf in row 3"),
        ("validation", "scale_10", -math.inf, "split 'validation', targets of task 'scale_10': .* found -inf in row 3"),
    ],
)
def test_data_that_are_not_finite_are_refused_by_split_task_and_row(part, name, value, message, monkeypatch):
    problem = load_problem(TINY)
    split = getattr(problem.splits(), part)
    (split.inputs if name == "inputs" else split.targets[name])[3, 1] = value
    changed(problem, monkeypatch, **{part: split})
    with pytest.raises(ValueError, match=message):
        run(problem, specify(problem, Method("equal"), 0))


def test_the_remedy_for_a_missing_label_is_named(monkeypatch):
    problem = load_problem(TINY)
    split = problem.splits().train
    split.targets["scale_10"][7] = math.nan
    changed(problem, monkeypatch, train=split)
    with pytest.raises(ValueError, match=r"in row 7; where 'scale_10' has no label, say so in Split.labelled$"):
        run(problem, specify(problem, Method("equal"), 0))
    there = torch.arange(len(split)) != 7
    changed(problem, monkeypatch, train=replace(split, labelled={"scale_10": there}))
    assert run(problem, specify(problem, Method("equal"), 0, steps=2)).diverged is None


def test_several_rows_are_counted(monkeypatch):
    problem = load_problem(TINY)
    split = problem.splits().train
    split.inputs[5:9] = math.nan
    changed(problem, monkeypatch, train=split)
    with pytest.raises(ValueError, match="found nan in row 5, and in 3 more rows"):
        run(problem, specify(problem, Method("equal"), 0))


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        (
            {"scale_7": torch.ones(40).bool()},
            "labelled has the unknown task 'scale_7'; the tasks are scale_1, scale_10",
        ),
        (
            {"scale_1": torch.ones(40)},
            "task 'scale_1': labelled must be 40 Booleans.* found torch.float32 of shape .40,",
        ),
        ({"scale_1": torch.ones(40, 2).bool()}, r"must be 40 Booleans.* found torch.bool of shape \(40, 2\)"),
        ({"scale_1": torch.ones(39).bool()}, r"must be 40 Booleans.* found torch.bool of shape \(39,\)"),
        ({"scale_1": torch.zeros(40).bool()}, "split 'train', task 'scale_1': wanted a label, found none"),
    ],
)
def test_labelled_must_fit_the_samples(labelled, message, monkeypatch):
    problem = load_problem(TINY)
    changed(problem, monkeypatch, train=replace(problem.splits().train, labelled=labelled))
    with pytest.raises(ValueError, match=message):
        run(problem, specify(problem, Method("equal"), 0))


SEEN: list[torch.Tensor] = []
"""The targets that the loss of a task was handed."""


def noted_loss(outputs, targets):
    SEEN.append(targets)
    return functional.mse_loss(outputs, targets)


@dataclass(frozen=True, kw_only=True)
class Sparse(Problem):
    """Two regressions of which one has few labels; every target without a label is not finite."""

    steps: int = 12
    batch_size: int = 4
    learning_rate: float = 1e-2
    every: int = 10

    @property
    def tasks(self):
        return (
            Task("full", functional.mse_loss, MeanSquaredError, "regression"),
            Task("sparse", noted_loss, MeanSquaredError, "regression"),
        )

    def splits(self):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(80, 3, generator=generator)
        there = torch.arange(80) % self.every == 0
        targets = inputs.sum(dim=1, keepdim=True)
        sparse = torch.where(there[:, None], targets, torch.nan)
        parts = torch.split(torch.arange(80), [40, 20, 20])
        return Splits(
            *(Split(inputs[p], {"full": targets[p], "sparse": sparse[p]}, {"sparse": there[p]}) for p in parts)
        )

    def trunk(self):
        return nn.Linear(3, 4)

    def shared_layer(self):
        return nn.Linear(4, 4)

    def head(self, task):
        return nn.Linear(4, 1)


@pytest.mark.parametrize("method", ["equal", "gradnorm", "inverse_initial_loss"])
def test_loss_and_metric_see_samples_with_a_label_only(method):
    SEEN.clear()
    problem = Sparse()
    record = run(problem, specify(problem, Method(method), 0))
    assert SEEN
    assert all(len(targets) and targets.isfinite().all() for targets in SEEN)
    assert record.diverged is None
    for split in (record.train, record.validation, record.test):
        assert all(map(math.isfinite, split.losses["sparse"]))
        assert split.losses["sparse"] == pytest.approx(split.metrics["sparse"], rel=1e-5)
    absent = [math.isnan(loss) for loss in record.curves.losses["sparse"]]
    assert any(absent)
    assert not all(absent)
    assert all(map(math.isfinite, record.curves.losses["full"]))


def test_a_task_that_is_absent_from_a_batch_is_handed_on_as_none(monkeypatch):
    handed = []
    forward = Equal.forward
    monkeypatch.setattr(
        Equal, "forward", lambda self, losses: handed.append(losses["sparse"] is None) or forward(self, losses)
    )
    problem = Sparse()
    record = run(problem, specify(problem, Method("equal"), 0))
    assert handed == [math.isnan(loss) for loss in record.curves.losses["sparse"]]


def test_a_task_without_labels_in_the_thinned_training_split_is_evaluated_on_all_of_it():
    problem = Sparse(every=40)
    splits = problem.splits()
    there = torch.zeros(40, dtype=torch.bool)
    there[1] = True  # which thinning leaves out
    moved = replace(
        splits.train, targets={**splits.train.targets, "sparse": torch.ones(40, 1)}, labelled={"sparse": there}
    )
    test = replace(splits.test, labelled={}, targets=dict.fromkeys(("full", "sparse"), torch.ones(20, 1)))
    evaluations = Evaluations(problem.network(), problem, Splits(moved, test, test))
    evaluations.take(0)
    assert math.isfinite(evaluations.of("train").losses["sparse"][0])


ThreeClasses = partial(MulticlassAccuracy, num_classes=3)


@dataclass(frozen=True, kw_only=True)
class Misfit(type(load_problem(TINY))):
    """Tiny with a part that does not fit."""

    part: str = ""

    @property
    def tasks(self):
        one, other = super().tasks
        changes = {
            "loss": {"loss": lambda outputs, targets: functional.mse_loss(outputs[:3], targets)},
            "broadcast": {"loss": lambda outputs, targets: functional.mse_loss(outputs[:, :1], targets)},
            "vector": {"loss": lambda outputs, targets: outputs.sum(dim=1)},
            "constant": {"loss": lambda outputs, targets: targets.sum()},
            "metric": {"metric": ThreeClasses},
            "further": {"more_metrics": {"accuracy": ThreeClasses}},
        }
        return one, replace(other, **changes.get(self.part, {}))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "loss",
            r"task 'scale_10': its loss does not take outputs of shape \(8, 2\) and targets of shape \(8, 2\)",
        ),
        ("broadcast", "task 'scale_10': its loss does not take .*Using a target size"),
        ("vector", "task 'scale_10': its loss must be a scalar that depends on the outputs"),
        ("constant", "task 'scale_10': its loss must be a scalar that depends on the outputs"),
        ("metric", "task 'scale_10': its metric 'MulticlassAccuracy' does not take outputs of shape"),
        ("further", "task 'scale_10': its metric 'accuracy' does not take outputs of shape"),
    ],
)
def test_losses_and_metrics_that_do_not_fit_are_refused_before_the_first_run(part, message, tmp_path):
    problem = Misfit(part=part)
    with pytest.raises(ValueError, match=message):
        compare([problem], [Method("equal")], [0], 5, store=Store(tmp_path / "runs"), jobs=1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("part", ["splits", "network"])
def test_an_error_in_a_part_of_a_problem_names_the_part(part, monkeypatch):
    def broken(self):
        raise KeyError("no such column")

    problem = load_problem(TINY)
    monkeypatch.setattr(type(problem), part, broken)
    with pytest.raises(ValueError, match=rf"problem 'Tiny', {part}\(\): KeyError: 'no such column'") as caught:
        check_problem(problem, [Method("equal")])
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_network_that_lacks_a_task_is_refused(monkeypatch):
    problem = load_problem(TINY)
    forward = type(problem.network()).forward
    monkeypatch.setattr(
        type(problem.network()), "forward", lambda self, inputs: {"scale_1": forward(self, inputs)["scale_1"]}
    )
    with pytest.raises(ValueError, match="network: wanted outputs of scale_1, scale_10; found scale_1"):
        check_problem(problem, [Method("equal")])


def test_the_pass_before_a_comparison_leaves_no_trace():
    problem = load_problem(TINY, {"dropout": 0.5})
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_problem(problem, [Method("equal"), Method("gradnorm")])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_problem_is_judged_by_an_error_alone(monkeypatch):
    problem = load_problem(TINY)
    monkeypatch.setattr(type(problem), "judged_by", "scale_1")
    check_problem(problem, [])
    monkeypatch.setattr(type(problem), "judged_by", "scale_2")
    with pytest.raises(ValueError, match=r"judged_by: .* \(scale_1, scale_10\), found 'scale_2'"):
        check_problem(problem, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "regress"}, "task 'scale_1': kind must be 'regression' or 'classification'; found 'regress'"),
        (
            {"metric": MeanMetric},
            "task 'scale_1': its metric MeanMetric does not say if higher is better; derive a class",
        ),
        ({"metric": MulticlassAccuracy}, "task 'scale_1': its metric cannot be built by .*: Argument `num_classes`"),
        ({"metric": MeanSquaredError()}, "task 'scale_1': its metric cannot be built by MeanSquaredError"),
        ({"metric": dict}, "task 'scale_1': its metric must be one of torchmetrics; found {}"),
        ({"more_metrics": {"m": MeanMetric}}, "task 'scale_1': its metric MeanMetric does not say if higher is better"),
        ({"name": "scale_10"}, "tasks: wanted one or more, each name once; found scale_10, scale_10"),
    ],
)
def test_a_task_that_could_not_be_recorded_is_refused_before_the_first_run(change, message, monkeypatch):
    problem = load_problem(TINY)
    first, *others = problem.tasks
    monkeypatch.setattr(type(problem), "tasks", (replace(first, **change), *others))
    with pytest.raises(ValueError, match=message):
        check_problem(problem, [Method("equal")])


@pytest.mark.parametrize(
    "draw", [torch.randn, lambda *size: torch.from_numpy(np.random.default_rng().normal(size=size))]
)
def test_data_that_are_drawn_anew_each_time_are_refused(draw, monkeypatch):
    problem = load_problem(TINY)
    splits = problem.splits()

    def drawn(self):
        return replace(splits, validation=replace(splits.validation, inputs=draw(20, 4).float()))

    monkeypatch.setattr(type(problem), "splits", drawn)
    with pytest.raises(
        ValueError, match="split 'validation': wanted the same data each time, found others the second time"
    ):
        check_problem(problem, [Method("equal")])


def test_data_that_are_no_tensors_are_refused_by_name(monkeypatch):
    problem = load_problem(TINY)
    splits = problem.splits()
    targets = {name: values.numpy() for name, values in splits.test.targets.items()}
    for found, message in (
        (replace(splits, test=replace(splits.test, inputs=splits.test.inputs.numpy())), "split 'test', inputs"),
        (replace(splits, test=replace(splits.test, targets=targets)), "split 'test', targets of task 'scale_1'"),
    ):
        monkeypatch.setattr(type(problem), "splits", lambda self, found=found: found)
        with pytest.raises(ValueError, match=f"{message}: wanted a tensor, found ndarray"):
            check_problem(problem, [Method("equal")])
    monkeypatch.setattr(type(problem), "splits", lambda self: (splits.train, splits.validation, splits.test))
    with pytest.raises(ValueError, match=r"splits: wanted Splits\(train, validation, test\), found tuple"):
        check_problem(problem, [Method("equal")])


def test_a_loss_may_warn(monkeypatch):
    def loss(outputs, targets):
        warnings.warn("it will have another name", FutureWarning, stacklevel=2)
        return functional.mse_loss(outputs, targets)

    problem = load_problem(TINY)
    monkeypatch.setattr(type(problem), "tasks", tuple(replace(task, loss=loss) for task in problem.tasks))
    with pytest.warns(FutureWarning, match="another name"):
        check_problem(problem, [Method("equal")])


def test_a_metric_that_fails_on_a_split_names_it(monkeypatch):
    problem = load_problem(TINY)
    splits = problem.splits()
    validation = splits.validation
    one = Split(validation.inputs[:1], {name: targets[:1] for name, targets in validation.targets.items()})
    monkeypatch.setattr(type(problem), "splits", lambda self: replace(splits, validation=one))
    monkeypatch.setattr(type(problem), "tasks", tuple(replace(task, metric=R2Score) for task in problem.tasks))
    with pytest.raises(ValueError, match="split 'validation', task 'scale_1': ValueError: Needs at least two samples"):
        run(problem, specify(problem, Method("equal"), 0))
