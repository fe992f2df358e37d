import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from equipoise.lab import MetricInfo
from equipoise.lab.results.statistics import (
    diverged_at,
    estimate,
    group,
    method_label,
    normalised_loss,
    paired_difference,
    selected,
    summarise,
)
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
    delta = rows["delta_m, mean change of the tasks"]["gradnorm"].value
    assert delta.mean == pytest.approx(10 / 3)
    assert delta.half_width == pytest.approx(4.302652729749464 * np.std([5, 0, 5], ddof=1) / math.sqrt(3))
    worst = rows["change of the worst task"]["gradnorm"]
    assert (worst.value.mean, worst.note) == (pytest.approx(20.0), "b")
    assert rows["a"]["gradnorm"].difference.mean == pytest.approx((-1 - 2 - 2) / 3)
    assert rows["mean of the tasks"]["gradnorm"].value.mean == pytest.approx((64.5 + 119 + 69) / 3)
    assert rows["a"]["equal"].difference is None


def test_the_sign_of_a_change_follows_the_direction_of_the_metric(make_record):
    equal, ours = [{"a": 0.5}] * 2, [{"a": 0.6}] * 2
    lower = rows_by_label(pair(make_record, equal, ours))
    higher = rows_by_label(pair(make_record, equal, ours, higher_is_better=True))
    assert lower["delta_m, mean change of the tasks"]["gradnorm"].value.mean == pytest.approx(20.0)
    assert higher["delta_m, mean change of the tasks"]["gradnorm"].value.mean == pytest.approx(-20.0)
    assert (lower["a"]["gradnorm"].verdict, higher["a"]["gradnorm"].verdict) == ("worse", "better")


def test_a_base_that_is_not_positive_gives_no_relative_change(make_record):
    rows = rows_by_label(pair(make_record, [{"a": -0.1, "b": 1.0}] * 2, [{"a": 0.2, "b": 2.0}] * 2))
    assert math.isnan(rows["delta_m, mean change of the tasks"]["gradnorm"].value.mean)
    assert math.isnan(rows["change of the worst task"]["gradnorm"].value.mean)
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
