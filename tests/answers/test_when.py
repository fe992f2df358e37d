"""The map: condensed to the last digit, judged by rules fixed beforehand, and quoted by `equipoise.check` as it was judged."""

import json
import math
import subprocess

import pytest
from generate.answers import condensed, records, thumb, when
from generate.pages import ROOT

from equipoise.checking.rules import RULES, Rule
from equipoise.lab import Candidate, Range, Store, Study, load_problem, run_study
from equipoise.lab.studies.summary import final_losses

TINY = {"width": 4, "train_samples": 256, "validation_samples": 64, "test_samples": 64}
is_there = records.has_figures("map")


@pytest.fixture(scope="module")
def study():
    return Study(
        title="Tiny",
        expectation="Nothing is learned.",
        problems=[load_problem("unequal", {**TINY, "data_seed": seed}) for seed in (0, 1)],
        methods=[Candidate("equal"), Candidate("gradnorm")],
        space={"learning_rate": Range(1e-3, 1e6, log=True)},
        trials=3,
        tuning_seeds=[0],
        seeds=[100, 101],
        steps=60,
        sampler="sobol",
        vectorized=True,
    )


@pytest.fixture(scope="module")
def results(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    return run_study(study, store=Store(folder), jobs=1), folder


@pytest.fixture(scope="module")
def table(study, results):
    return json.loads(condensed.written(condensed.condense(study, results[1])))


def test_the_table_has_what_the_records_say(table, results):
    for cell, result in zip(table["cells"], results[0], strict=True):
        for label, losses in final_losses(result).items():
            assert cell["methods"][label]["test"] == list(losses.values())
            tasks = cell["methods"][label]["tasks"].values()
            assert [sum(pair) / 2 for pair in zip(*tasks, strict=True)] == pytest.approx(list(losses.values()))
        for label, search in result.searches.items():
            found = cell["methods"][label]["trials"]
            assert found == [trial.value if math.isfinite(trial.value) else None for trial in search.trials]
            assert table["trials"][label] == [trial.searched for trial in search.trials]
    assert [cell["settings"]["data_seed"] for cell in table["cells"]] == [0, 1]


def test_a_problem_is_measured_again_to_the_last_digit(table, study):
    found = condensed.measure_again(study, 1)
    assert list(found) == [0, 1]  # they are trained together
    again = found[1]
    assert list(condensed.differences(table["cells"][1], again)) == []
    again["methods"]["equal"]["test"][0] += 1e-15
    (found,) = condensed.differences(table["cells"][1], again)
    assert found.startswith("methods equal test:")


def test_the_first_batch_has_the_ratios_of_the_scales():
    plain, scaled = (load_problem("unequal", {**TINY, "scales": scales}) for scales in ((1, 1), (1, 1000)))
    plain, scaled = condensed.first_batch(plain, 0), condensed.first_batch(scaled, 0)
    assert plain["loss_ratio"] < 2
    assert 5e5 < scaled["loss_ratio"] < 2e6
    assert 100 < scaled["norm_ratio"] < 1e4
    assert -1 <= scaled["cosine"] <= 1


def cell(norm_ratio, ours, theirs=(1.0, 1.0, 1.0), optimizer="adam"):
    """A problem with test losses of two methods."""
    return {
        "settings": {"optimizer": optimizer},
        "first_batch": {"norm_ratio": norm_ratio, "loss_ratio": 1.0, "cosine": 0.0},
        "methods": {"ours": {"test": list(ours)}, "theirs": {"test": list(theirs)}},
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        ((0.95, 0.95, 0.951), (1, 1, 1), "ahead"),
        ((1.05, 1.05, 1.051), (1, 1, 1), "behind"),
        ((0.99, 0.99, 0.991), (1, 1, 1), "no difference"),  # within the margin
        ((0.5, 0.9, 1.3), (1, 1, 1), "no difference"),  # not told apart
        ((0.5, 0.9, 1.3), (0.55, 0.99, 1.43), "ahead"),  # paired
        ((None, 0.5, 0.5), (1, 1, 1), "behind"),
        ((0.5, 0.5, 0.5), (None, 1, 1), "ahead"),
        ((None, 0.5, 0.5), (1, 1, None), "no difference"),
    ],
)
def test_ahead_takes_a_margin_and_an_interval(ours, theirs, wanted):
    assert thumb.outcome(cell(1.0, ours, theirs), "ours", "theirs") == wanted


GOOD, SAME = (0.8, 0.8, 0.81), (1.0, 1.0, 1.01)


def test_a_rule_that_is_there_is_found_and_holds_up():
    cells = [cell(ratio, GOOD if ratio > 30 else SAME) for ratio in range(60)]
    judged = thumb.judge(cells, "ours", "theirs")
    assert (judged.rule.measured, judged.rule.there, judged.rule.elsewhere) == ("norm_ratio", "ahead", "no difference")
    assert 28 <= judged.rule.threshold <= 33
    assert judged.tested[0] >= 28
    assert judged.holds_up


def test_an_optimiser_can_be_part_of_a_rule():
    cells = [
        cell(ratio, GOOD if ratio > 30 and name == "sgd" else SAME, optimizer=name)
        for ratio in range(60)
        for name in ("adam", "sgd")
    ]
    judged = thumb.judge(cells, "ours", "theirs")
    assert judged.rule.optimizer == "sgd"
    assert judged.holds_up


def test_a_rule_that_is_not_there_does_not_hold_up():
    cells = [cell(ratio, GOOD if (ratio * 37) % 100 < 30 else SAME) for ratio in range(100)]
    judged = thumb.judge(cells, "ours", "theirs")
    assert judged.fitted[0] >= judged.fitted[1] * 0.6
    assert not judged.holds_up


def test_a_rule_that_is_as_good_as_the_same_answer_everywhere_does_not_hold_up():
    judged = thumb.judge([cell(ratio, GOOD) for ratio in range(60)], "ours", "theirs")
    assert judged.base_answer == "ahead"
    assert judged.base == judged.tested
    assert not judged.holds_up


def test_no_problem_is_in_both_halves():
    cells = [cell(float(number), SAME) for number in range(216)]
    one, other = thumb.halves(cells)
    assert len(one) == len(other) == 108
    assert sorted(each["first_batch"]["norm_ratio"] for each in one + other) == list(range(216))


@pytest.mark.skipif(not is_there, reason="the study has not been run")
def test_the_committed_table_is_that_of_the_study():
    study, found = records.study("map"), condensed.table()
    assert len(found["cells"]) == len(study.problems) >= 200
    for problem, each in zip(study.problems, found["cells"], strict=True):
        assert all(getattr(problem, k) == (tuple(v) if isinstance(v, list) else v) for k, v in each["settings"].items())
        assert each["methods"].keys() == {candidate.label for candidate in study.methods}
        for method in each["methods"].values():
            assert len(method["trials"]) == study.trials
            assert len(method["test"]) == len(study.seeds)
    assert {len(trials) for trials in found["trials"].values()} == {study.trials}


@pytest.mark.skipif(not is_there, reason="the study has not been run")
def test_the_expectation_and_the_halves_were_written_before_the_runs():
    commit = condensed.table()["environment"]["commit"]
    assert not commit.endswith("dirty")
    command = ["git", "-C", str(ROOT), "show", f"{commit}:studies/map.py"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode and "studies/" not in shown.stderr:
        pytest.skip("there is no git history here that goes back so far")
    before, now = {}, {}
    exec(compile(shown.stdout, "map", "exec"), before)
    exec(compile((ROOT / "studies" / "map.py").read_text(), "map", "exec"), now)
    assert before["study"] == now["study"]
    assert before["SPLIT_SEED"] == now["SPLIT_SEED"]


@pytest.mark.skipif(not is_there, reason="the study has not been run")
def test_check_quotes_the_rules_as_they_were_judged():
    assert RULES.read_text(encoding="utf-8") == when.rules()
    for each in json.loads(when.rules()):
        (opponent,) = (label for label, words in when.OPPONENTS.items() if words == each["opponent"])
        judged = thumb.judge(condensed.table()["cells"], each["method"], opponent)
        assert judged.holds_up
        assert Rule(**each["rule"]) == judged.rule
        assert (each["hits"], each["problems"]) == judged.tested
    page = (ROOT / "docs" / "start" / "when_not.md").read_text(encoding="utf-8")
    assert ("No rule of thumb was found" in page) == (when.EQUAL not in RULES.read_text(encoding="utf-8"))
