"""The sentences of the answers: a difference is claimed only if the corrected test says so, level only within the margin."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from generate.answers.contrasts import (
    Contrast,
    Ends,
    against,
    contrast,
    counted,
    figures,
    hidden,
    in_common,
    interval,
    mean_change,
    median_change,
    of_search,
    said,
    standing,
    tally,
)
from generate.answers.measures import GAP, LOSS, LOSS_CHANGE, METRICS_CHANGE, mean_metric
from generate.answers.predictions import at_the_end, expected, inside, no_better, not_apart, within
from hypothesis import given
from hypothesis import strategies as st
from lab.conftest import synthetic_record

from equipoise.lab.record import Evaluation
from equipoise.lab.results.cells import HIDES, TURNED, Cell
from equipoise.lab.results.comparison import group
from equipoise.lab.results.rows import summarise
from equipoise.lab.results.statistics import Estimate, estimate

WITHIN = st.floats(-0.1, 0.1)


def made(values, p=None, measure=GAP, **more):
    difference = estimate(values)
    cell = Cell(difference, difference, difference.p_value if p is None else p, **more)
    return Contrast("toy", "ours", "theirs", measure, cell, len(values))


def test_a_difference_is_claimed_by_the_corrected_test_alone():
    clear = [-0.10, -0.11, -0.09, -0.10, -0.10]
    assert made(clear).outcome == "better"
    assert made([-value for value in clear]).outcome == "worse"
    assert made(clear, p=0.06).outcome == "not told apart"


def test_a_contrast_is_corrected_for_all_methods_of_the_comparison_whatever_stands_beside_it():
    others = {f"m{i}": [0.5 + 0.05 * ((seed * (i + 1)) % 3) for seed in range(5)] for i in range(4)}
    found = comparison(equal=[0.5, 0.51, 0.5, 0.51, 0.5], gradnorm=[0.49, 0.5, 0.495, 0.49, 0.495], **others)
    alone = contrast(found, "toy", "gradnorm", "equal")
    plain = LOSS.cell(found, "gradnorm", "equal").p_value
    assert alone.cell.p_value == pytest.approx(5 * plain)
    (one,) = against({"toy": found}, "equal", methods=["gradnorm"])
    (of_all,) = (each for each in against({"toy": found}, "equal") if each.method == "gradnorm")
    assert one == of_all == alone
    assert contrast(found, "toy", "gradnorm", "equal", LOSS_CHANGE).cell.p_value == alone.cell.p_value
    assert contrast(found, "toy", "equal", "gradnorm").cell.p_value == alone.cell.p_value


def test_the_lab_marks_the_same_contrasts_as_the_pages():
    found = comparison(equal=[0.5, 0.6, 0.7], gradnorm=[0.4, 0.5, 0.61], cov=[0.51, 0.64, 0.7])
    (row,) = (row for row in summarise(found) if row.label == "task-normalised test loss")
    of_lab = dict(zip(found.runs, row.cells, strict=True))
    for each in against({"toy": found}, "equal"):
        assert of_lab[each.method].p_value == each.cell.p_value
        assert of_lab[each.method].verdict == (each.outcome if each.outcome in ("better", "worse") else None)


def test_a_difference_that_the_last_step_turns_around_is_not_claimed():
    one = made([-0.10, -0.11, -0.09, -0.10, -0.10], withheld=TURNED)
    assert one.outcome == "not told apart"
    assert "but the last step turns it around" in figures(one)


def test_a_task_that_goes_the_other_way_is_told():
    one = made([-0.10, -0.11, -0.09, -0.10, -0.10], withheld=HIDES)
    assert one.outcome == "better"
    assert "though a task goes the other way" in figures(one)
    assert hidden([one]) == "there a task goes the other way or one task decides the mean"
    assert hidden([one, one]).startswith("on both a task")
    assert hidden([one, one, made([-0.10, -0.11, -0.09])]).startswith("on 2 of them")
    assert "better on 2 (toy and toy; on both a task goes the other way" in tally([one, one], "ours")


@given(st.floats(-0.05, 0.05), st.floats(1e-4, 0.05))
def test_level_means_that_the_whole_interval_lies_inside_the_margin(mean, half):
    difference = Estimate(mean, half, 5)
    for measure, scale in ((GAP, 1.0), (METRICS_CHANGE, 100.0)):
        wide = Estimate(scale * mean, scale * half, 5)
        outcome = Contrast("toy", "a", "b", measure, Cell(wide, wide, 0.5), 5).outcome
        inside = mean - half > -0.02 and mean + half < 0.02
        assert outcome == ("level" if inside else "not told apart"), difference


@pytest.mark.parametrize(
    ("mean", "half", "agrees"),
    [(0.02, 0.02, True), (-0.02, 0.02, True), (0.04, 0.02, None), (-0.04, 0.02, None), (0.08, 0.02, False)],
)
def test_within_a_limit_means_that_the_whole_interval_is(monkeypatch, mean, half, agrees):
    monkeypatch.setattr("generate.answers.page.study", lambda name: SimpleNamespace(expectation="words"))
    difference = Estimate(mean, half, 5)
    one = Contrast("toy", "ours", "theirs", LOSS, Cell(difference, difference, 0.5), 5)
    assert within("study", "words", [one], 0.05).agrees is agrees
    assert within("study", "words", [], 0.05) is None


@pytest.mark.parametrize(
    ("mean", "half", "better", "level", "not_better"),
    [
        (-0.5, 0.1, True, False, False),
        (-0.05, 0.1, None, None, None),
        (0.0, 0.01, None, True, True),
        (0.05, 0.06, None, None, True),
        (0.5, 0.1, False, False, True),
    ],
)
def test_an_expectation_is_decided_by_the_interval(monkeypatch, mean, half, better, level, not_better):
    monkeypatch.setattr("generate.answers.page.study", lambda name: SimpleNamespace(expectation="words"))
    difference = Estimate(mean, half, 5)
    one = Contrast("toy", "ours", "theirs", GAP, Cell(difference, difference, 0.5), 5)
    assert expected("study", "words", [one], "better").agrees is better
    assert expected("study", "words", [one], "level").agrees is level
    assert no_better("study", "words", [one]).agrees is not_better
    assert not_apart("study", "words", [one]).agrees is True
    undecided = expected("study", "words", [replace(one, unsearched="ours")], "better")
    assert undecided.agrees is None
    assert "returned equal weights" in undecided.figures


def test_all_must_lie_inside_and_one_outside_is_enough():
    within_it, across, outside = Ends(1, 0.5, 1.5, 3), Ends(0, -1, 1, 3), Ends(-1, -1.5, -0.5, 3)
    assert inside([within_it, within_it], 0, 2) is True
    assert inside([within_it, across], 0, 2) is None
    assert inside([across, outside], 0, 2) is False


def test_one_seed_is_never_level():
    assert made([0.0]).outcome == "not told apart"


def test_a_diverged_run_is_not_compared():
    one = made([0.1, 0.1], diverged=1)
    assert one.outcome == "diverged"
    assert "cannot be compared" in said(one)


@given(st.lists(WITHIN, min_size=2, max_size=10))
def test_the_sentence_says_what_the_contrast_comes_to(values):
    one = made(values)
    words = {
        "better": "is better than",
        "worse": "is worse than",
        "level": "are level",
        "not told apart": "not told apart",
    }
    assert words[one.outcome] in said(one)
    assert f"n = {len(values)}" in said(one)
    low, high = map(float, re.search(r"\[(.*), (.*)\]", said(one)).groups())
    half = one.difference.half_width
    assert math.isclose(low, one.difference.mean - half, abs_tol=0.06 * half or 1e-3)
    assert math.isclose(high, one.difference.mean + half, abs_tol=0.06 * half or 1e-3)


def test_an_interval_is_written_to_two_digits_of_its_half():
    assert interval(estimate([1.0, 2.0, 3.0])) == "+2.0 [-0.5, 4.5]"  # 4.303 * 1 / sqrt(3) = 2.484
    assert interval(Estimate(-12.34, 150.0, 3), " %") == "-12 % [-162, 138]"


def test_twice_as_much_and_half_as_much_cancel_in_the_mean_over_problems():
    log = 100 * math.log(2)
    found = mean_change([made([change, change], measure=LOSS_CHANGE) for change in (log, -log)])
    assert found.mean == pytest.approx(0, abs=1e-9)
    assert median_change([made([change, change], measure=LOSS_CHANGE) for change in (log, 0.0, -log)]) == 0
    three = mean_change([made([change] * 2, measure=LOSS_CHANGE) for change in (log, 2 * log, 3 * log)])
    assert (three.mean, three.n) == (pytest.approx(300), 3)
    assert three.high == pytest.approx(100 * (2 ** (2 + 2.484) - 1), rel=1e-3)  # 4.303 * 1 / sqrt(3) = 2.484


def test_a_problem_on_which_a_run_diverged_is_counted_and_not_averaged():
    sound = [made([change, change], measure=LOSS_CHANGE) for change in (10.0, 20.0)]
    lost = made([900.0, 900.0], measure=LOSS_CHANGE, diverged=1)
    assert mean_change([*sound, lost]).n == 2
    assert "diverged on 1 (toy)" in tally([*sound, lost], "ours")


def run(method, seed, final):
    """A run of two tasks whose L/L(0) on all splits ends at ``final``."""
    losses = {"a": [2.0, 2.0 * (1 + final) / 2, 2.0 * final], "b": [4.0, 4.0 * (1 + final) / 2, 4.0 * final]}
    record = synthetic_record(method, seed, ("a", "b"), steps=20)
    split = Evaluation(losses, losses)
    return replace(record, evaluated_at=[0, 10, 20], train=split, validation=split, test=split)


def comparison(**finals):
    (found,) = group([run(method, seed, final) for method, some in finals.items() for seed, final in enumerate(some)])
    return found


def test_a_contrast_reads_the_paired_difference_of_the_normalised_test_loss():
    found = comparison(equal=[0.5, 0.6, 0.7], gradnorm=[0.4, 0.5, 0.61])
    one = contrast(found, "toy", "gradnorm", "equal")
    assert one.difference.mean == pytest.approx(-0.29 / 3)
    assert one.cell.value.mean == pytest.approx(1.51 / 3)
    in_percent = contrast(found, "toy", "gradnorm", "equal", METRICS_CHANGE).ends.mean
    assert in_percent == pytest.approx(-100 * (0.1 / 0.5 + 0.1 / 0.6 + 0.09 / 0.7) / 3)
    geometric = contrast(found, "toy", "gradnorm", "equal", LOSS_CHANGE).ends.mean
    assert geometric == pytest.approx(100 * ((0.4 / 0.5 * 0.5 / 0.6 * 0.61 / 0.7) ** (1 / 3) - 1))


def test_of_a_metric_that_rises_more_is_better():
    found = comparison(equal=[0.5, 0.6, 0.7], gradnorm=[0.6, 0.7, 0.81])
    for higher, outcome in ((True, "better"), (False, "worse")):
        measure = mean_metric("", "score", 0.01, higher_is_better=higher)
        one = contrast(found, "toy", "gradnorm", "equal", measure)
        assert one.outcome == outcome


def test_methods_are_counted_and_the_smallest_mean_is_named():
    found = comparison(equal=[0.5, 0.6, 0.7], gradnorm=[0.4, 0.5, 0.61], cov=[0.501, 0.601, 0.7])
    contrasts = against({"toy": found}, "equal")
    assert counted(contrasts) == {"better": 1, "worse": 0, "level": 1, "not told apart": 0, "diverged": 0}
    assert standing("toy", found) == ("On toy, gradnorm has the best mean, 0.503; it is better than 2 of the 2 others.")


def test_means_over_problems_are_over_those_that_all_methods_have_and_judge_by_the_loss():
    def at(problem, method, **more):
        return replace(made([1.0, 1.1], measure=LOSS_CHANGE), problem=problem, method=method, **more)

    both = [at(problem, method) for problem in ("a", "b") for method in ("one", "other")]
    assert in_common([*both, at("c", "one")]) == ["a", "b"]
    assert in_common([*both, at("d", "one", judged_by="error"), at("d", "other", judged_by="error")]) == ["a", "b"]


def test_the_largest_mean_counts_if_it_is_told_apart_from_the_next(monkeypatch):
    monkeypatch.setattr("generate.answers.page.study", lambda name: SimpleNamespace(expectation="words"))
    found = comparison(equal=[0.5, 0.6, 0.7], gradnorm=[0.4, 0.5, 0.61], cov=[0.51, 0.59, 0.7])
    for method, end, agrees in [
        ("gradnorm", "smallest", True),
        ("gradnorm", "largest", False),
        ("equal", "largest", None),
    ]:
        assert at_the_end("study", "words", found, [method], end).agrees is agrees


def test_a_search_that_returned_equal_weights_is_told():
    found = comparison(equal=[0.5, 0.6, 0.7], static=[0.51, 0.63, 0.7])
    for weights, same in (((1.0, 1.0), True), ((0.5, 1.5), False)):
        changed = {
            seed: replace(one, spec=replace(one.spec, method_settings={"weights": weights}))
            for seed, one in found.runs["static"].items()
        }
        some = replace(found, runs={"equal": found.runs["equal"], "tuned static": changed})
        assert contrast(some, "toy", "tuned static", "equal").unsearched == ("tuned static" if same else "")
        assert bool(of_search({"toy": some})) is same
