import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from equipoise.lab import MetricInfo
from equipoise.lab.results.comparison import group, method_label
from equipoise.lab.results.flags import flags
from equipoise.lab.results.rows import summarise
from equipoise.lab.results.selection import converged, diverged_at, normalised_loss, read_early, selected
from equipoise.lab.results.statistics import Estimate, estimate, holm, paired_difference
from equipoise.lab.runs.methods import parse_methods

finite = st.floats(-1e6, 1e6)


def rows_by_label(comparison):
    methods = list(comparison.runs)
    return {row.label: dict(zip(methods, row.cells, strict=True)) for row in summarise(comparison)}


def test_estimate_by_hand():
    # Sample deviation 1, standard error 1 / sqrt(3), t(0.975, 2 degrees of freedom) = 4.302653.
    result = estimate([1.0, 2.0, 3.0])
    assert result.mean == 2.0
    assert result.half_width == pytest.approx(4.302652729749464 / math.sqrt(3), rel=1e-12)
    assert result.n == 3


@given(st.lists(finite, min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-3))
def test_estimate_is_scipys_interval(values):
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    result = estimate(values)
    tolerance = 1e-9 * max(1.0, *map(abs, values))
    assert result.mean - result.half_width == pytest.approx(low, rel=1e-9, abs=tolerance)
    assert result.mean + result.half_width == pytest.approx(high, rel=1e-9, abs=tolerance)


@given(st.lists(finite, min_size=1, max_size=8).flatmap(lambda v: st.tuples(st.just(v), st.permutations(v))))
def test_the_order_of_the_seeds_does_not_matter(case):
    values, shuffled = case
    # repr, since NaN differs from itself.
    assert repr(estimate(values)) == repr(estimate(shuffled))


@given(st.dictionaries(st.integers(0, 99), finite, min_size=2))
def test_a_method_never_differs_from_itself(values):
    difference = paired_difference(values, values)
    assert (difference.mean, difference.half_width, difference.n) == (0.0, 0.0, len(values))
    assert not difference.excludes_zero


@given(st.dictionaries(st.integers(0, 9), finite), st.dictionaries(st.integers(0, 9), finite))
def test_pairs_are_common_seeds_and_swapping_changes_the_sign(ours, theirs):
    there, back = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert there.n == back.n == len(ours.keys() & theirs.keys())
    if there.n:
        assert there.mean == -back.mean


def test_one_seed_has_no_interval_and_says_nothing():
    result = estimate([3.0])
    assert result.mean == 3.0
    assert math.isnan(result.half_width)
    assert not result.excludes_zero


def test_a_value_that_is_not_finite_is_not_averaged_away():
    assert math.isnan(estimate([1.0, math.nan, 2.0]).mean)
    assert math.isnan(estimate([1.0, math.inf]).mean)
    assert estimate([]).n == 0


def test_the_test_split_is_read_where_the_validation_loss_is_smallest(make_record):
    # mean L / L(0): 1, (1/4 + 1/2)/2, (1/2 + 1/10)/2, (1/4 + 1)/2: the smallest is the third, though neither task's sum
    # of losses (14, 6, 3, 11) nor the last evaluation would say the second.
    validation = {"alpha": [4.0, 1.0, 2.0, 1.0], "beta": [10.0, 5.0, 1.0, 10.0]}
    test = {"alpha": [9.0, 8.0, 7.0, 1.0], "beta": [9.0, 8.0, 6.0, 1.0]}
    record = make_record(steps=30, validation=validation, train=test, test=test)
    np.testing.assert_allclose(normalised_loss(record.validation), [1.0, 0.375, 0.3, 0.625])
    assert selected(record) == 2
    rows = rows_by_label(group([record])[0])
    assert rows["alpha"]["equal"].value.mean == 7.0
    assert rows["beta"]["equal"].value.mean == 6.0
    assert rows["mean of the tasks"]["equal"].value.mean == 6.5
    assert rows["task-normalised test loss"]["equal"].value.mean == pytest.approx((7 / 9 + 6 / 9) / 2)


def test_without_a_positive_first_loss_the_last_evaluation_is_read(make_record):
    validation = {"alpha": [-1.0, -5.0, -2.0], "beta": [1.0, 0.5, 0.7]}
    record = make_record(steps=20, train=validation, validation=validation, test=validation)
    assert selected(record) == 2
    rows = rows_by_label(group([record])[0])
    assert rows["alpha"]["equal"].value.mean == -2.0
    assert math.isnan(rows["task-normalised test loss"]["equal"].value.mean)


def flat(value):
    """The same numbers at every evaluation, so that the selection does not matter."""
    return {task: [float(v)] * 2 for task, v in value.items()}


def pair(make_record, equal, ours, **settings):
    """One comparison of two methods; the test metric of each seed is given."""
    records = []
    for method, seeds in (("equal", equal), ("gradnorm", ours)):
        for seed, metrics in enumerate(seeds):
            losses = flat(dict.fromkeys(metrics, 1.0))
            splits = dict.fromkeys(("train", "validation", "test"), losses)
            run = make_record(method, seed, tuple(metrics), steps=10, metrics=flat(metrics), **splits, **settings)
            records.append(run)
    return group(records)[0]


def test_changes_against_the_reference_by_hand(make_record):
    equal = [{"a": 10.0, "b": 100.0}, {"a": 20.0, "b": 200.0}, {"a": 10.0, "b": 100.0}]
    ours = [{"a": 9.0, "b": 120.0}, {"a": 18.0, "b": 220.0}, {"a": 8.0, "b": 130.0}]
    rows = rows_by_label(pair(make_record, equal, ours))
    # a: -10, -10, -20 %; b: +20, +10, +30 %; per seed: 5, 0, 5 %.
    delta = rows["change against equal"]["gradnorm"].value
    assert delta.mean == pytest.approx(10 / 3)
    assert delta.half_width == pytest.approx(4.302652729749464 * np.std([5, 0, 5], ddof=1) / math.sqrt(3))
    worst = rows["change against equal, worst task"]["gradnorm"]
    assert (worst.value.mean, worst.note) == (pytest.approx(20.0), "b")
    assert rows["a"]["gradnorm"].difference.mean == pytest.approx((-1 - 2 - 2) / 3)
    assert rows["mean of the tasks"]["gradnorm"].value.mean == pytest.approx((64.5 + 119 + 69) / 3)
    assert rows["a"]["equal"].difference is None


def test_the_sign_of_a_change_follows_the_direction_of_the_metric(make_record):
    equal, ours = [{"a": 0.5}] * 2, [{"a": 0.6}] * 2
    lower = rows_by_label(pair(make_record, equal, ours))
    higher = rows_by_label(pair(make_record, equal, ours, higher_is_better=True))
    assert lower["change against equal"]["gradnorm"].value.mean == pytest.approx(20.0)
    assert higher["change against equal"]["gradnorm"].value.mean == pytest.approx(-20.0)
    assert (lower["a"]["gradnorm"].verdict, higher["a"]["gradnorm"].verdict) == ("worse", "better")


def test_a_base_that_is_not_positive_gives_no_relative_change(make_record):
    rows = rows_by_label(pair(make_record, [{"a": -0.1, "b": 1.0}] * 2, [{"a": 0.2, "b": 2.0}] * 2))
    assert math.isnan(rows["change against equal"]["gradnorm"].value.mean)
    assert math.isnan(rows["change against equal, worst task"]["gradnorm"].value.mean)
    assert rows["a"]["gradnorm"].verdict == "worse"


def test_pairing_finds_what_separate_intervals_hide(make_record):
    # The seeds differ much, the methods by 1 on every seed: the two intervals overlap, the paired one excludes 0.
    equal = [{"a": 10.0}, {"a": 20.0}, {"a": 30.0}]
    rows = rows_by_label(pair(make_record, equal, [{"a": 9.0}, {"a": 18.9}, {"a": 29.1}]))
    assert rows["a"]["equal"].value.half_width > 10
    assert rows["a"]["gradnorm"].verdict == "better"


@pytest.mark.parametrize("ours", [[9.0, 21.0, 9.5], [9.0]])
def test_no_verdict_where_the_interval_contains_zero_or_does_not_exist(make_record, ours):
    equal = [{"a": 10.0}, {"a": 20.0}, {"a": 10.0}]
    rows = rows_by_label(pair(make_record, equal, [{"a": value} for value in ours]))
    assert all(cells["gradnorm"].verdict is None for cells in rows.values())


def test_a_diverged_run_is_counted_and_never_averaged_over(make_record):
    sound = [make_record(seed=seed) for seed in range(3)]
    broken = {"alpha": [1.0, 1.0, math.nan, math.nan, math.nan], "beta": [1.0] * 5}
    bad = [make_record("gradnorm", seed) for seed in range(2)] + [make_record("gradnorm", 2, test=broken)]
    assert diverged_at(sound[0]) is None
    assert diverged_at(bad[2]) == 20
    rows = rows_by_label(group([*sound, *bad])[0])
    # The run was sound at the step that is read, and on beta to its end.
    for label in ("alpha", "beta", "mean of the tasks", "task-normalised test loss"):
        cell = rows[label]["gradnorm"]
        assert math.isnan(cell.value.mean), label
        assert (cell.diverged, cell.verdict) == (1, None)
        assert rows[label]["equal"].diverged == 0
        assert math.isfinite(rows[label]["equal"].value.mean)
    assert math.isfinite(rows["time per training step"]["gradnorm"].value.mean)


def test_time_per_step(make_record):
    rows = rows_by_label(group([make_record(seed=s, train_seconds=t) for s, t in enumerate((0.04, 0.12))])[0])
    assert rows["time per training step"]["equal"].value.mean == pytest.approx(2.0)


def test_no_mean_over_different_metrics(make_record):
    record = make_record()
    assert "mean of the tasks" in rows_by_label(group([record])[0])
    first, second = record.tasks
    mixed = type(record)(**{**record.__dict__, "tasks": (first, replace(second, metric=MetricInfo("R2Score", True)))})
    assert "mean of the tasks" not in rows_by_label(group([mixed])[0])


@pytest.mark.parametrize(
    "change",
    [{"problem": "other"}, {"problem_settings": {"batch_size": 8}}, {"steps": 20}, {"evaluate_every": 20}],
    ids=lambda change: next(iter(change)),
)
def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(make_record, change):
    comparisons = group([make_record(seed=0), make_record(seed=1), make_record(seed=2, **change)])
    assert [comparison.seeds for comparison in comparisons] == [[0, 1], [2]]


def test_method_settings_are_methods_of_their_own_and_the_reference_comes_first(make_record):
    records = [
        make_record("gradnorm", method_settings={"alpha": 0.5}),
        make_record("gradnorm", method_settings={"alpha": 1.0}),
        make_record("equal"),
    ]
    comparison = group(records)[0]
    assert list(comparison.runs) == ["equal", "gradnorm(alpha=0.5)", "gradnorm(alpha=1.0)"]
    assert comparison.reference == "equal"
    assert group(records[:2])[0].reference == "gradnorm(alpha=0.5)"
    assert group(records, reference="gradnorm(alpha=1.0)")[0].reference == "gradnorm(alpha=1.0)"


def test_a_label_is_what_the_command_line_reads(make_record):
    (method,) = parse_methods("static(weights=(1.0, 2.0))")
    assert method_label(make_record(method.name, method_settings=method.settings).spec) == str(method)


def test_the_order_of_settings_is_not_a_difference(make_record):
    one = make_record(seed=0, problem_settings={"a": 1, "b": [2, 3]})
    two = make_record(seed=1, problem_settings={"b": (2, 3), "a": 1})
    assert len(group([one, two])) == 1


def test_the_same_run_twice_is_refused(make_record):
    with pytest.raises(ValueError, match="toy: two records of equal with seed 3"):
        group([make_record(seed=3), make_record(seed=3)])


def test_runs_of_one_comparison_must_agree_on_their_tasks(make_record):
    with pytest.raises(ValueError, match="gradnorm with seed 0 has other tasks"):
        group([make_record(), make_record("gradnorm", tasks=("x", "y"))])


@given(st.lists(finite, min_size=3, max_size=8).filter(lambda values: np.std(values) > 1e-3))
def test_the_p_value_is_that_of_scipys_t_test(values):
    assert estimate(values).p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6, abs=1e-12)


def test_the_correction_for_many_looks_by_hand():
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert [Estimate(m, h, 3).p_value for m, h in ((0.0, 0.0), (1.0, 0.0))] == [1.0, 0.0]


def test_a_difference_that_is_found_by_looking_often_is_not_marked(make_record):
    """One task alone would be marked (p = .03); among ten it is not, as one in five such tables would have it by chance."""

    def rows(count):
        tasks = [f"t{i}" for i in range(count)]
        equal = [dict.fromkeys(tasks, 10.0)] * 4
        ours = [{task: 10 - 0.3 * shift if task == "t0" else 10 + (-1) ** i * 0.1 for task in tasks}
                for i, shift in enumerate((0.4, 1.0, 1.6, 1.0))]  # fmt: skip
        return rows_by_label(pair(make_record, equal, ours))["t0"]["gradnorm"]

    assert rows(1).difference.p_value == pytest.approx(rows(10).difference.p_value)
    assert rows(1).difference.p_value == pytest.approx(stats.ttest_1samp([0.4, 1.0, 1.6, 1.0], 0).pvalue)
    assert (rows(1).verdict, rows(10).verdict) == ("better", None)
    assert rows(10).p_value == pytest.approx(10 * rows(1).p_value)


def read_at(make_record, method, seed, validation, metrics, **settings):
    splits = {"train": {"a": validation}, "validation": {"a": validation}, "test": {"a": validation}}
    steps = 10 * (len(validation) - 1)
    return make_record(method, seed, ("a",), steps=steps, metrics={"a": metrics}, **splits, **settings)


def test_no_mark_is_turned_around_by_the_last_step(make_record):
    """Equal weights are best on validation early; GradNorm is better there, but worse at the last step."""
    early, late = [1.0, 0.3, 0.9, 0.8, 0.7, 0.6], [1.0, 0.8, 0.7, 0.6, 0.5, 0.3]
    records = []
    for seed in range(4):
        shift = 0.01 * seed
        equal = read_at(make_record, "equal", seed, early, [9.0, 5.0 + shift, 5, 4, 3, 2.0 + shift])
        ours = read_at(make_record, "gradnorm", seed, late, [9.0, 8, 7, 6, 5, 3.0 - shift])
        records += [equal, ours]
    assert (read_early(records[0]), read_early(records[1])) == (False, False)
    cell = rows_by_label(group(records)[0])["a"]["gradnorm"]
    assert cell.value.mean == pytest.approx(2.985)
    assert cell.p_value < 0.05
    assert (cell.verdict, cell.withheld) == (None, "the last step turns it around")
    assert cell.last.mean == pytest.approx(2.985)
    assert cell.last_difference.mean == pytest.approx(0.97)
    same = [record if record.spec.method != "equal" else read_at(make_record, "equal", record.spec.seed, early, [9.0] * 6)
            for record in records]  # fmt: skip
    assert rows_by_label(group(same)[0])["a"]["gradnorm"].verdict == "better"


def test_a_run_read_before_a_fifth_of_its_steps_is_early(make_record):
    ends = [1.0, 0.4, *[0.5] * 9]
    record = read_at(make_record, "equal", 0, ends, [1.0] * 11)
    assert read_early(record)
    (cell,) = rows_by_label(group([record])[0])["read at step"].values()
    assert (cell.text, cell.note) == ("10", "1 early")
    assert not read_early(read_at(make_record, "equal", 0, [1.0, 0.5, 0.4, *[0.5] * 8], [1.0] * 11))


@pytest.mark.parametrize(
    ("validation", "has"),
    [
        ([1.0, 0.8, 0.6, 0.55, 0.5, 0.494], False),  # from .500 to .494: 1.2 %
        ([1.0, 0.8, 0.6, 0.5, 0.4, 0.397], True),
        ([1.0, 0.3, 0.6, 0.5, 0.9, 0.5], True),  # the smallest counts
        ([-1.0, 0.5, 0.4, 0.3, 0.2, 0.1], None),
    ],
)
def test_a_run_has_converged_when_its_criterion_falls_no_more(make_record, validation, has):
    assert converged(read_at(make_record, "equal", 0, validation, validation)) is has


def test_a_mean_hides_no_task(make_record):
    """The coefficients of determination of three tasks: the mean follows the one that neither method learns."""
    equal = [{"a": 0.79, "b": 0.99 + 0.001 * s, "c": -20.9} for s in range(4)]
    ours = [{"a": 0.91 + 0.001 * s, "b": 0.97, "c": -19.6 - 0.01 * s} for s in range(4)]
    mean = rows_by_label(pair(make_record, equal, ours, higher_is_better=True))["mean of the tasks"]["gradnorm"]
    assert mean.p_value < 0.05
    assert (mean.verdict, mean.withheld) == (None, "it hides a task that goes the other way")
    # All tasks gain, but without the third they would lose nothing and gain nothing: no single task may decide.
    one = [{**values, "a": equal[s]["a"], "b": equal[s]["b"]} for s, values in enumerate(ours)]
    mean = rows_by_label(pair(make_record, equal, one, higher_is_better=True))["mean of the tasks"]["gradnorm"]
    assert (mean.verdict, mean.withheld) == (None, "it hides a task that goes the other way")
    all_ = [{task: value + 0.1 + 0.001 * s for task, value in equal[s].items()} for s in range(4)]
    mean = rows_by_label(pair(make_record, equal, all_, higher_is_better=True))["mean of the tasks"]["gradnorm"]
    assert (mean.verdict, mean.withheld) == ("better", "")


def with_more(record, **metrics):
    """The record with further metrics of its first task, higher is better."""
    first, *others = record.tasks
    infos = dict.fromkeys(metrics, MetricInfo("Further", True))
    test = replace(record.test, more_metrics={first.name: {name: [value] * 2 for name, value in metrics.items()}})
    return replace(record, tasks=(replace(first, more_metrics=infos), *others), test=test)


def test_every_metric_has_a_row_and_weighs_the_same_in_the_change(make_record):
    equal, ours = ({"a": 10.0, "b": 10.0}, {"a": 11.0, "b": 12.0})
    comparison = pair(make_record, [equal] * 2, [ours] * 2)
    records = [with_more(run, iou=0.5 if run.spec.method == "equal" else 0.6, acc=0.5) for run in comparison.records]
    (comparison,) = group(records)
    task_rows = [row for row in summarise(comparison) if row.is_task]
    assert [(row.label, row.unit) for row in task_rows] == [
        ("a", "MeanSquaredError"), ("a", "iou"), ("a", "acc"), ("b", "MeanSquaredError")
    ]  # fmt: skip
    # a: +10 %; its further metrics: -20 % and 0 %; b: +20 %.
    assert rows_by_label(comparison)["change against equal"]["gradnorm"].value.mean == pytest.approx(10 / 4)


def test_delta_m_is_against_runs_of_single_tasks_and_needs_one_of_each(make_record):
    records = pair(make_record, [{"a": 10.0, "b": 10.0}] * 2, [{"a": 9.0, "b": 12.0}] * 2).records
    for task, metric in (("a", 8.0), ("b", 5.0)):
        for seed in range(2):
            losses = flat({"a": 1.0, "b": 1.0})
            splits = dict.fromkeys(("train", "validation", "test"), losses)
            metrics = flat({"a": metric, "b": metric})
            method = {"method_settings": {"task": task}, "tasks": ("a", "b"), "steps": 10, "metrics": metrics}
            records.append(make_record("single_task", seed, **method, **splits))
    label = "delta_m, change against single-task training"
    (comparison,) = group(records)
    assert list(comparison.runs) == ["equal", "gradnorm"]
    rows = rows_by_label(comparison)
    # equal: +25 and +100 %; GradNorm: +12.5 and +140 %.
    assert rows[label]["equal"].value.mean == pytest.approx(62.5)
    assert rows[label]["gradnorm"].value.mean == pytest.approx(76.25)
    assert rows[label]["gradnorm"].difference.mean == pytest.approx(13.75)
    assert label not in rows_by_label(group(records[:-2])[0])


def test_a_change_that_cannot_be_had_says_why(make_record):
    def text(*records):
        return rows_by_label(group(records)[0])["change against equal"]["gradnorm"].text

    broken = {"alpha": [1.0, 1.0, math.nan, math.nan, math.nan], "beta": [1.0] * 5}
    assert text(make_record(), make_record("gradnorm", 1)) == "no common seed"
    assert text(make_record(test=broken), make_record("gradnorm")) == "none: a run of the base diverged"
    zero = {"alpha": [0.0] * 5, "beta": [1.0] * 5}
    assert text(make_record(metrics=zero), make_record("gradnorm")) == "none: the base of alpha is not above 0"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["equal", "gradnorm"])
def test_a_metric_that_is_not_finite_is_named_as_what_a_change_lacks(method, value, make_record):
    lacking = {"alpha": [value] * 5, "beta": [1.0] * 5}
    records = {name: make_record(name, metrics=lacking if name == method else None) for name in ("equal", "gradnorm")}
    (comparison,) = group(records.values())
    rows = rows_by_label(comparison)
    assert rows["change against equal"]["gradnorm"].text == "none: alpha is not finite"
    assert rows["change against equal, worst task"]["gradnorm"].text == "none: alpha is not finite"
    assert flags(comparison)[-1] == f"{method}: MeanSquaredError of alpha is not finite where 1 of 1 runs are read."


def test_a_run_without_the_error_by_which_it_is_judged_says_so(make_record):
    lacking = {"alpha": [math.nan] * 5, "beta": [1.0] * 5}
    record = make_record()
    judged = replace(record, judged_by="alpha", validation=replace(record.validation, metrics=lacking))
    said = "The validation MeanSquaredError of alpha was not finite at any step, so its run is read at the last evaluation."
    assert said in flags(group([judged])[0])
