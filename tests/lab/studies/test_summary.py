"""The sentence that a study ends with."""

from dataclasses import replace

import pytest

from equipoise.lab import Candidate, Study, load_problem
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.studies.run import Result
from equipoise.lab.studies.summary import summary

NOISE = (0.01, -0.02, 0.015, -0.01, 0.005)


@pytest.fixture
def said(make_record):
    """The summary for methods with these test losses (of those before training) by seed."""

    def of(**losses):
        runs = {}
        for method, values in losses.items():
            runs[method] = {
                seed: make_record(method, seed, ("a",), test={"a": [1.0, value]}, validation={"a": [1.0, 0.5]},
                                  train={"a": [1.0, 0.5]}, evaluate_every=40)
                for seed, value in enumerate(values)
            }  # fmt: skip
        study = Study(
            title="t", expectation="e", problems=[load_problem("toy")], methods=[Candidate("equal")], space={}, trials=1,
            tuning_seeds=[99], seeds=range(len(next(iter(losses.values())))),
        )  # fmt: skip
        first = next(iter(runs.values()))[0]
        comparison = Comparison(first.spec, "toy", tuple(first.tasks), runs, next(iter(runs)), {}, {})
        return summary(Result(study, {}, comparison))

    return of


def test_a_small_loss_is_not_rounded_to_zero(said):
    text = said(equal=[0.0008 + x / 1000 for x in NOISE], best=[0.00041234 - x / 1000 for x in NOISE])
    assert "best (0.000412) is ahead of all other methods." in text
    assert "there is equal alone, at 0.012." in said(equal=[0.0123])


def test_one_is_ahead_of_all(said):
    text = said(equal=[0.8 + x for x in NOISE], best=[0.4 - x for x in NOISE], third=[0.9 + x for x in NOISE])
    assert "mean of 5 paired seeds: best (0.400) is ahead of all other methods." in text
    assert "Behind best: equal by 0.4 [" in text
    assert "third by 0.5 [" in text


def test_no_method_is_ahead(said):
    text = said(equal=[0.5, 0.6, 0.55, 0.52, 0.58], other=[0.6, 0.5, 0.52, 0.57, 0.55], last=[0.9 + x for x in NOISE])
    assert "no method is ahead; other, equal are not told apart" in text
    assert "Not told apart from other: equal by 0.002 [-" in text
    assert "Behind other: last by 0.3" in text


def test_a_problem_can_be_judged_by_an_error(make_record):
    losses = {"train": {"a": [1.0, 0.5]}, "validation": {"a": [1.0, 0.5]}, "test": {"a": [1.0, 0.5]}}
    run = make_record("equal", 0, ("a",), metrics={"a": [0.9, 0.7]}, evaluate_every=40, **losses)
    comparison = Comparison(
        run.spec, "toy", tuple(run.tasks), {"equal": {0: replace(run, judged_by="a")}}, "equal", {}, {}
    )
    study = Study(
        title="t", expectation="e", problems=[load_problem("toy")], methods=[Candidate("equal")], space={}, trials=1,
        tuning_seeds=[99], seeds=[0],
    )  # fmt: skip
    text = summary(Result(study, {}, comparison))
    assert text == "Test MeanSquaredError of a, mean of 1 paired seed: there is equal alone, at 0.700."


def test_a_small_lead_of_many_is_no_lead(said):
    # p = 0.02 of the pair alone; with six methods it is none
    lead = {"equal": [0.5, 0.51, 0.5, 0.51, 0.5], "first": [0.49, 0.5, 0.495, 0.49, 0.495]}
    assert "first (0.494) is ahead" in said(**lead)
    others = {f"m{i}": [0.5 + 0.05 * ((seed * (i + 1)) % 3) for seed in range(5)] for i in range(4)}
    assert "no method is ahead" in said(**lead, **others)


def test_one_seed_has_no_interval(said):
    text = said(equal=[0.5], other=[0.4])
    assert "mean of 1 paired seed: no method is ahead" in text
    assert "equal by 0.1 (one seed, no interval)" in text


def test_a_method_that_diverged_is_named(said):
    text = said(equal=[0.5, 0.5], other=[0.4, float("nan")])
    assert "there is equal alone, at 0.500. other diverged." in text
    assert "no method has a sound run." in said(equal=[float("nan")])
