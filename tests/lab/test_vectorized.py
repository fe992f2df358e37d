"""Runs that are trained together come out as by themselves, up to rounding, whoever is trained beside them."""

from dataclasses import replace

import pytest
import torch

from equipoise.lab import Candidate, Range, Simplex, Store, Study, load_problem, run_study
from equipoise.lab.runs.methods import Method, parse_methods
from equipoise.lab.runs.train import run, specify
from equipoise.lab.runs.vectorized.run import VECTORIZED, can_be_vectorized, run_together
from equipoise.lab.store.codec import read, run_key, write
from equipoise.lab.studies.run import asked_together

STEPS = 40
TOY = load_problem("toy", {"size": "fifth", "num_tasks": 2, "learning_rate": 3e-3, "train_samples": 500})
GROUPS = load_problem("groups", {"capacity": "small", "train_samples": 500})
SETTINGS = {
    "static": ["static(weights=(1, 3))", "static(weights=(2, 0.1))"],
    "single_task": ["single_task(task='f0_sigma_1')"],
    "dwa": ["dwa(epoch_steps=5)"],
    "uncertainty": ["uncertainty", "uncertainty(initial='losses')", "uncertainty(normalize=True)"],
    "gradnorm": ["gradnorm", "gradnorm(alpha=0)", "gradnorm(lr=0.2)"],
    "gradnorm_closed_form": ["gradnorm_closed_form", "gradnorm_closed_form(initial_weights='balanced')"],
}


def methods():
    return [
        method for name in sorted(VECTORIZED) for text in SETTINGS.get(name, [name]) for method in parse_methods(text)
    ]


def train(problem, some, seeds=(0,), steps=STEPS):
    specs = [specify(problem, method, seed, steps=steps, vectorized=True) for method in some for seed in seeds]
    return run_together([problem] * len(specs), specs)


def alone(problem, method, seed=0, steps=STEPS):
    return run(problem, specify(problem, method, seed, steps=steps))


def table(series):
    return torch.tensor(list(series.values()), dtype=torch.float64)


def agree(one, other, tolerance=2e-4):
    assert one.evaluated_at == other.evaluated_at
    assert one.curves.step == other.curves.step
    for split in ("train", "validation", "test"):
        for part in ("losses", "metrics"):
            values = [table(getattr(getattr(record, split), part)) for record in (one, other)]
            torch.testing.assert_close(*values, rtol=tolerance, atol=tolerance)
    for name in ("losses", "weights", "gradient_norms", "targets", "training_rates"):
        ours, theirs = (getattr(record.curves, name) for record in (one, other))
        assert ours.keys() == theirs.keys(), name
        if ours and one.spec.method != "single_task":  # alone, a task has no others in its log
            torch.testing.assert_close(table(ours), table(theirs), rtol=5e-3, atol=1e-5, msg=name)
    assert (one.tasks, one.groups, one.title) == (other.tasks, other.groups, other.title)
    assert (one.floor_hits, one.skipped_steps) == (other.floor_hits, other.skipped_steps)


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    return dict(zip(map(str, methods()), train(TOY, methods()), strict=True))


@pytest.mark.parametrize("method", methods(), ids=str)
def test_every_method_comes_out_as_by_itself(method, trained):
    agree(trained[str(method)], alone(TOY, method))


def test_the_record_says_by_which_error_the_run_is_judged(monkeypatch):
    monkeypatch.setattr(type(TOY), "judged_by", TOY.tasks[0].name)
    (record,) = train(TOY, [Method("equal")], steps=2)
    assert record.judged_by == TOY.tasks[0].name


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "learning_rate": 1e-4},
        {"optimizer": "sgd", "learning_rate": 1e-4, "momentum": 0.9, "weight_decay": 0.1},
        {"weight_decay": 0.1, "betas": (0.8, 0.9)},
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup": 5},
        {"scaled_heads": True, "schedule": "linear"},
        {"perturbation": ("loss_times(f0_sigma_1, 1000)",)},
    ],
    ids=str,
)
def test_optimisers_and_perturbations_are_those_of_a_single_run(settings):
    problem, method = replace(TOY, **settings), Method("gradnorm_closed_form")
    agree(train(problem, [method])[0], alone(problem, method))


def test_the_branches_of_groups_are_trained():
    for method in parse_methods("equal,gradnorm"):
        agree(train(GROUPS, [method])[0], alone(GROUPS, method))


def test_companions_do_not_change_a_bit():
    some = parse_methods("gradnorm,equal,uncertainty")
    together = train(TOY, some, seeds=(0, 1, 2))
    (one,) = train(TOY, [some[0]], seeds=(1,))
    assert one.spec == together[1].spec
    assert replace(one, train_seconds=0, environment={}) == replace(together[1], train_seconds=0, environment={})


def test_learning_rates_may_differ():
    problems = [replace(TOY, learning_rate=rate) for rate in (1e-3, 1e-2)]
    method = Method("gradnorm")
    found = run_together(problems, [specify(p, method, 0, steps=STEPS, vectorized=True) for p in problems])
    for problem, record in zip(problems, found, strict=True):
        agree(record, alone(problem, method))


def test_data_may_differ_where_the_problem_says_so():
    problems = [
        load_problem("unequal", {"width": 8, "train_samples": 512, "frequencies": (1, frequency), "data_seed": seed})
        for frequency, seed in ((1, 0), (3, 0), (3, 1))
    ]
    for method in parse_methods("equal,gradnorm"):
        specs = [specify(problem, method, 0, steps=STEPS, vectorized=True) for problem in problems]
        found = run_together(problems, specs)
        for problem, spec, record in zip(problems, specs, found, strict=True):
            agree(record, alone(problem, method))
            (one,) = run_together([problem], [spec])
            assert (one.test, one.train, one.curves) == (record.test, record.train, record.curves)


def test_a_run_that_diverges_stops_where_it_does_by_itself_and_alone():
    problems = [replace(TOY, optimizer="sgd", learning_rate=rate) for rate in (1e3, 1e-4)]
    specs = [specify(p, Method("equal"), 0, steps=150, vectorized=True) for p in problems]
    lost, sound = run_together(problems, specs)
    by_itself = alone(problems[0], Method("equal"), steps=150)
    assert lost.diverged == by_itself.diverged
    assert lost.diverged is not None
    assert lost.evaluated_at == by_itself.evaluated_at
    assert sound.diverged is None
    agree(sound, alone(problems[1], Method("equal"), steps=150))


def test_what_cannot_be_vectorized():
    for text in ("pcgrad", "rlw", "graddrop", "gradnorm(every=2)", "gradnorm(start=3)"):
        assert not can_be_vectorized(TOY, parse_methods(text)[0]), text
    assert not can_be_vectorized(load_problem("pinn"), Method("equal"))
    assert not can_be_vectorized(replace(TOY, perturbation="missing(f0_sigma_1, 0.5)"), Method("equal"))
    assert all(can_be_vectorized(problem, Method("gradnorm")) for problem in (TOY, GROUPS))


def test_runs_of_two_problems_are_refused():
    problems = [TOY, replace(TOY, batch_size=50)]
    specs = [specify(problem, Method("equal"), 0, steps=STEPS, vectorized=True) for problem in problems]
    with pytest.raises(ValueError, match="wanted runs that differ in method, seed, learning rate and data alone"):
        run_together(problems, specs)
    with pytest.raises(ValueError, match="not the one that was specified"):
        run_together([TOY], [replace(specs[0], vectorized=False)])
    with pytest.raises(ValueError, match="wanted cpu and 32-true"):
        specify(TOY, Method("equal"), 0, precision="bf16-mixed", vectorized=True)


def test_a_record_says_whether_it_was_trained_together():
    (together,) = train(TOY, [Method("equal")])
    assert read(write(together)).spec.vectorized
    assert '"vectorized"' not in write(alone(TOY, Method("equal")))


STUDY = Study(
    title="Together",
    expectation="None.",
    problems=[TOY],
    methods=[
        Candidate("equal"),
        Candidate("gradnorm"),
        Candidate("mgda"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=2)}),
        Candidate("static", averaged_from="gradnorm", label="averaged"),
    ],
    space={"learning_rate": Range(1e-4, 1e-1, log=True)},
    trials=3,
    tuning_seeds=[0],
    seeds=[5, 6],
    steps=20,
    sampler="sobol",
)


def test_a_vectorized_study_finds_what_an_ordinary_one_does(tmp_path):
    (ordinary,) = run_study(STUDY, store=Store(tmp_path / "one"), jobs=1)
    vectorized = replace(STUDY, vectorized=True)
    (found,) = run_study(vectorized, store=Store(tmp_path / "many"), jobs=2)
    events = []
    (again,) = run_study(vectorized, store=Store(tmp_path / "many"), jobs=1, on_event=events.append)
    assert {event.kind for event in events} == {"reused"}
    assert again.comparison == found.comparison
    for label, search in ordinary.searches.items():
        assert [t.searched for t in found.searches[label].trials] == [t.searched for t in search.trials]
        for one, other in zip(search.trials, found.searches[label].trials, strict=True):
            assert one.value == pytest.approx(other.value, rel=1e-3)
    for label, runs in found.comparison.runs.items():
        assert {record.spec.vectorized for record in runs.values()} == {label != "mgda"}, label


def test_the_runs_of_a_study_are_told_by_the_steps_in_which_they_were_trained_together(tmp_path):
    study = replace(STUDY, vectorized=True)
    run_study(study, store=Store(tmp_path), jobs=1)
    records = Store(tmp_path).load_all()
    trials, final, averaged = asked_together(study, records)
    assert (len(trials), len(final), len(averaged)) == (4 * 3, 4 * 2, 2)
    together = [spec for _, spec in trials if spec.vectorized]
    again = run_together([replace(TOY, learning_rate=s.problem_settings["learning_rate"]) for s in together], together)
    by_spec = {run_key(record.spec): record for record in records}
    for record in again:
        before = by_spec[run_key(record.spec)]
        assert replace(before, train_seconds=0, environment={}) == replace(record, train_seconds=0, environment={})
    with pytest.raises(ValueError, match="records: found none of toy, equal, seed 0"):
        asked_together(study, [])


def test_trials_at_sobol_points_are_a_grid_and_the_same_for_every_method(tmp_path):
    (result,) = run_study(replace(STUDY, vectorized=True), store=Store(tmp_path), jobs=1)
    rates = {label: [t.searched["learning_rate"] for t in s.trials] for label, s in result.searches.items()}
    assert sorted(rates["equal"]) == pytest.approx([10**-3.25, 10**-2.5, 10**-1.75], rel=1e-3)
    assert rates["equal"] == rates["gradnorm"] == rates["tuned static"]


def test_vectorized_trials_must_be_known_beforehand():
    with pytest.raises(ValueError, match="vectorized: wanted the sampler 'sobol'"):
        replace(STUDY, vectorized=True, sampler="tpe")
