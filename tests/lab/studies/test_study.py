"""A study: equal effort for every method, other seeds for the comparison, and the same outcome however often it is killed."""

import math
import os
import random
import signal
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.processes import CONTEXT

from equipoise.lab import Candidate, Range, Simplex, Store, Study, load_problem, run_study
from equipoise.lab.results.selection import normalised_loss
from equipoise.lab.studies.page import spent_and_best, trials_figure
from equipoise.lab.studies.run import number_of_runs
from equipoise.lab.studies.tuning import to_document, tuning_rows

TINY = Path(__file__).parents[1] / "tiny.py"
CANDIDATES = (
    Candidate("equal"),
    Candidate("gradnorm", space={"alpha": [0.0, 0.5, 1.5]}),
    Candidate("static", label="tuned static", space={"weights": Simplex(decades=2)}),
    Candidate("static", label="GradNorm Static", averaged_from="gradnorm"),
    Candidate("single_task", label="alone"),
)


def declared(**changes):
    given = {
        "title": "Tiny",
        "expectation": "Nothing is ahead.",
        "problems": [load_problem(TINY)],
        "methods": CANDIDATES,
        "space": {"learning_rate": Range(1e-3, 1e-1, log=True), "betas": [(0.9, 0.999), (0.9, 0.99)]},
        "trials": 4,
        "tuning_seeds": [0, 1],
        "seeds": [10, 11, 12],
        "steps": 6,
        **changes,
    }
    return Study(**given)


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory):
    store, events = Store(tmp_path_factory.mktemp("study") / "runs"), []
    (result,) = run_study(declared(), store=store, jobs=1, on_event=lambda event: events.append(event.kind))
    return result, store, events


def test_every_method_gets_the_same_trials_and_is_asked_for_the_same_settings_first(carried_out):
    searches = carried_out[0].searches
    assert list(searches) == ["equal", "gradnorm", "tuned static", "alone: scale_1", "alone: scale_10"]
    assert {len(search.trials) for search in searches.values()} == {4}
    first = {label: search.trials[0].searched["learning_rate"] for label, search in searches.items()}
    assert len(set(first.values())) == 1
    for label, search in searches.items():
        rates = [trial.searched["learning_rate"] for trial in search.trials]
        assert len(set(rates)) == 4, label
        assert all(1e-3 <= rate <= 1e-1 for rate in rates)
        assert all(trial.problem.learning_rate == rate for trial, rate in zip(search.trials, rates, strict=True))
        assert {trial.steps for trial in search.trials} == {2 * 6}


def test_a_method_is_selected_on_validation_by_the_mean_over_the_tuning_seeds(carried_out):
    result, store, _ = carried_out
    records = [record for record in store.load_all() if record.spec.seed in (0, 1) and record.spec.method == "equal"]
    by_rate = {}
    for record in records:
        settings = record.spec.problem_settings
        value = min(normalised_loss(record.validation))
        by_rate.setdefault((settings["learning_rate"], tuple(settings["betas"])), []).append(value)
    best = min(by_rate, key=lambda key: statistics.fmean(by_rate[key]))
    search = result.searches["equal"]
    assert (search.best.problem.learning_rate, search.best.problem.betas) == best
    assert search.best.value == pytest.approx(statistics.fmean(by_rate[best]))
    final = result.comparison.runs["equal"]
    assert list(final) == [10, 11, 12]
    assert {record.spec.problem_settings["learning_rate"] for record in final.values()} == {best[0]}


def test_weights_on_the_simplex_are_positive_and_sum_to_the_number_of_tasks(carried_out):
    weights = [trial.searched["weights"] for trial in carried_out[0].searches["tuned static"].trials]
    assert len(set(weights)) == 4
    for pair in weights:
        assert min(pair) > 0
        assert sum(pair) == pytest.approx(2, rel=1e-3)


def test_averaged_weights_are_those_of_the_run_with_the_same_seed(carried_out):
    result, _, _ = carried_out
    for seed, record in result.comparison.runs["GradNorm Static"].items():
        before = result.comparison.runs["gradnorm"][seed]
        means = [statistics.fmean(weights) for weights in before.curves.weights.values()]
        assert record.spec.method_settings["weights"] == pytest.approx(means, rel=1e-5)
        assert record.spec.problem_settings == before.spec.problem_settings
    assert result.steps_spent("GradNorm Static") == result.steps_spent("gradnorm") + 3 * 6


def test_single_tasks_are_the_base_of_delta_m(carried_out):
    comparison = carried_out[0].comparison
    assert set(comparison.single_task) == {"scale_1", "scale_10"}
    assert all(list(runs) == [10, 11, 12] for runs in comparison.single_task.values())
    assert "alone: scale_1" not in comparison.runs


def test_a_task_alone_does_not_see_the_others():
    from equipoise.lab import Method, run, specify

    def losses(scales):
        problem = load_problem(TINY, {"scales": scales})
        record = run(problem, specify(problem, Method("single_task", {"task": "scale_1"}), 0))
        return record.test.losses["scale_1"], record.curves.weights

    assert losses((1.0, 10.0))[0] == losses((1.0, 30.0))[0]
    falls = losses((1.0, 10.0))[0]
    assert falls[-1] < falls[0]


def test_what_was_done_is_found_again(carried_out):
    result, store, events = carried_out
    assert events.count("finished") == len(store.load_all()) <= number_of_runs(declared())
    again = []
    (second,) = run_study(declared(), store=store, jobs=1, on_event=lambda event: again.append(event.kind))
    assert set(again) == {"reused"}
    assert table(second) == table(result)


def table(result):
    """Everything that a study finds, but times."""
    finals = {
        label: {seed: replace(record, train_seconds=0, environment={}) for seed, record in runs.items()}
        for label, runs in result.comparison.runs.items()
    }
    return list(tuning_rows(result)), finals


def test_the_cost_of_the_search_is_on_the_axis(carried_out):
    steps, best = spent_and_best(carried_out[0].searches["gradnorm"])
    assert steps == [12, 24, 36, 48]
    assert best == sorted(best, reverse=True)
    assert best[-1] == carried_out[0].searches["gradnorm"].best.value


def test_every_trial_is_in_the_figure_of_trials(carried_out):
    result = carried_out[0]
    by_method = {
        trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in trials_figure(result, "learning_rate").data
    }
    assert by_method["equal"] == [(t.problem.learning_rate, t.value) for t in result.searches["equal"].trials]
    assert len(by_method["tuned static"]) == 4


def test_the_document_says_what_was_expected_and_what_each_search_took(carried_out):
    text = to_document([carried_out[0]])
    assert "Expected beforehand: Nothing is ahead." in text
    assert "Task-normalised test loss, mean of 3 paired seeds" in text
    for cell in ("| tuned static | 4 | 48 |", "learning\\_rate", "| GradNorm Static | none of its own | 66 |"):
        assert cell in text.replace("learning_rate", "learning\\_rate"), cell


@pytest.mark.parametrize(
    ("space", "flagged"),
    [
        (Range(0.011, 0.0111), False),
        ([0.01], False),
        ([0.0101, 0.0102], False),
        ([1e-9, 1e-8, 1e-7, 1e-2], True),
        (Range(1e-12, 1e-11, log=True), None),
    ],
)
def test_a_best_value_at_the_edge_is_flagged(space, flagged, tmp_path):
    study = declared(
        methods=[Candidate("equal")], space={"learning_rate": space}, trials=6, tuning_seeds=[0], seeds=[9]
    )
    (result,) = run_study(study, store=Store(tmp_path), jobs=1)
    search = result.searches["equal"]
    if isinstance(space, Range):
        value = search.best.searched["learning_rate"]
        low, high = map(math.log, (space.low, space.high))
        flagged = not 0.1 < (math.log(value) - low) / (high - low) < 0.9
    assert search.best.at_edge == (("learning_rate",) if flagged else ())
    (row,) = tuning_rows(result)
    assert row[-1] == ("learning_rate" if flagged else "no")


def test_a_run_that_diverges_is_the_worst_trial(tmp_path):
    study = declared(methods=[Candidate("equal")], space={"learning_rate": [1e30, 1e-3]}, trials=5, seeds=[9], steps=60)
    study = replace(study, problems=[load_problem(TINY, {"optimizer": "sgd"})])
    (result,) = run_study(study, store=Store(tmp_path), jobs=1)
    values = {trial.searched["learning_rate"]: trial.value for trial in result.searches["equal"].trials}
    assert values[1e30] == math.inf
    assert result.searches["equal"].best.searched["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": []}, "wanted methods, found none"),
        ({"expectation": ""}, "wanted expectation, found none"),
        ({"trials": 0}, "trials: wanted at least 1, a whole number; found 0"),
        ({"trials": "3"}, "trials: wanted at least 1, a whole number; found '3'"),
        ({"methods": [Candidate("equal", trials=0.5)]}, "trials: wanted at least 1, a whole number; found 0.5"),
        ({"steps": 0}, "steps: wanted at least 1, a whole number; found 0"),
        ({"seeds": [101, 101]}, "^seeds: 101 occurs twice"),
        ({"tuning_seeds": [0, 0]}, "tuning_seeds: 0 occurs twice"),
        ({"seeds": [-5]}, r"^seeds: wanted whole numbers from 0 to 2\*\*32 - 1, found -5"),
        ({"problems": [load_problem(TINY), load_problem(TINY)]}, "problems: tiny occurs twice"),
        ({"space": {"learning_rate": []}}, r"space of 'learning_rate': wanted a Range, .* list of choices, found \[\]"),
        ({"space": {"learning_rate": 0.1}}, "space of 'learning_rate': wanted a Range, .* list of choices, found 0.1"),
        ({"space": {"learning_rate": Range(-1.0, 0.1)}}, "learning_rate: wanted a positive, finite number, found -1.0"),
        ({"space": {"batch_size": Range(4, 16)}}, "setting 'batch_size' of problem 'Tiny': wanted int, found 4.0"),
        ({"space": {"warmup": [0, 6]}}, "warmup: wanted at least 0 and fewer than the 6 steps of the run, found 6"),
        ({"seeds": [1, 2]}, "seeds: 1 serves for tuning too"),
        ({"figures": ["costs"]}, "unknown figure 'costs': did you mean 'cost'"),
        ({"reference": "equl"}, "unknown method in reference 'equl': did you mean 'equal'"),
        ({"space": {"rate": [1]}}, "unknown setting of problem 'Tiny' in space 'rate'"),
        ({"space": {"steps": [1]}}, "unknown setting of problem 'Tiny' in space 'steps'"),
        ({"methods": [Candidate("equal"), Candidate("equal")]}, "the label 'equal' occurs twice"),
        (
            {"methods": [Candidate("equal"), Candidate("static", averaged_from="x")]},
            "unknown method in averaged_from 'x'",
        ),
    ],
)
def test_a_study_that_cannot_be_carried_out_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        declared(**changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("gradnrom",), "unknown method 'gradnrom'"),
        (("gradnorm", {"alpa": 1}), "unknown setting of method 'gradnorm' 'alpa'"),
        (("gradnorm", {"alpha": 1}, {"alpha": [1]}), "'alpha' is both fixed and searched"),
        (("gradnorm", {}, {"alpha": [0.5, "a"]}), "setting 'alpha' of method 'gradnorm': wanted float, found 'a'"),
        (("gradnorm", {}, {"alpha": ()}), r"space of 'alpha': wanted .* a list of choices, found \(\)"),
    ],
)
def test_a_method_that_is_not_known_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Candidate(*given)


def test_a_value_that_a_method_refuses_is_known_before_the_first_run(tmp_path):
    study = declared(methods=[Candidate("equal"), Candidate("gradnorm", space={"alpha": [0.5, -1.0]})])
    with pytest.raises(ValueError, match=r"method 'gradnorm\(alpha=-1.0\)': .*alpha"):
        run_study(study, store=Store(tmp_path / "runs"), jobs=1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("ends", [(1.0, 1.0, False), (2.0, 1.0, False), (0.0, 1.0, True)])
def test_a_range_has_two_ends(ends):
    with pytest.raises(ValueError, match="Range: wanted two"):
        Range(*ends)


def work(folder):
    run_study(declared(), store=Store(folder), jobs=1)


def test_a_study_that_is_killed_at_random_comes_to_the_same_table(carried_out, tmp_path):
    unbroken, folder = carried_out[0], tmp_path / "runs"
    chance = random.Random(0)
    for _ in range(4):
        process = CONTEXT.Process(target=work, args=(folder,))
        process.start()
        count = len(list(folder.glob("*.json")))
        for _ in range(3000):
            if len(list(folder.glob("*.json"))) > count or not process.is_alive():
                break
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    store = Store(folder)
    (result,) = run_study(declared(), store=store, jobs=1)
    assert table(result) == table(unbroken)
    assert not store.corrupt
    assert list(folder.glob(".*")) == []
