"""Committed records: small, replayed to the same outcome, and made again to the last digit."""

import re
from dataclasses import replace

import pytest
from generate.answers import __main__ as commands
from generate.answers import records

from equipoise.lab import Store, run_study
from equipoise.lab.studies.source import load_study
from equipoise.lab.studies.summary import final_losses, summary

STUDY = """
from equipoise.lab import Candidate, Range, Study, load_problem

study = Study(
    title="Tiny",
    expectation="Nothing is learned.",
    problems=[load_problem("toy", {"size": "fifth", "num_tasks": 2, "train_samples": 100})],
    methods=[
        Candidate("equal"),
        Candidate("gradnorm"),
        Candidate("static", averaged_from="gradnorm", label="GradNorm static"),
    ],
    space={"learning_rate": Range(1e-3, 1e6, log=True)},
    trials=3,
    tuning_seeds=[0],
    seeds=[100, 101],
    steps=60,
    VECTORIZED
)
"""


@pytest.fixture(scope="module", params=["", "vectorized=True, sampler='sobol'"], ids=["alone", "together"])
def folder(tmp_path_factory, request):
    """The folder of a small study, whose runs are trained one by one or together."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "tiny.py").write_text(STUDY.replace("VECTORIZED", request.param))
    return folder


@pytest.fixture(scope="module")
def done(folder):
    """The outcome of the study."""
    return run_study(load_study(folder / "tiny.py"), store=Store(folder / "runs"), jobs=1)


@pytest.fixture
def kept(monkeypatch, folder, done):
    monkeypatch.setattr(records, "FOLDER", folder / "kept")
    monkeypatch.setattr(records, "study", lambda name: done[0].study)
    records.records.cache_clear()
    records.results.cache_clear()
    records.keep("tiny", folder / "runs")
    yield records.results("tiny")
    records.records.cache_clear()
    records.results.cache_clear()


def test_thin_records_are_replayed_to_the_same_outcome(kept, done):
    assert final_losses(kept[0]) == final_losses(done[0])
    assert summary(kept[0]) == summary(done[0])
    for label, search in done[0].searches.items():
        assert kept[0].searches[label].trials == search.trials
    values = [trial.value for search in kept[0].searches.values() for trial in search.trials]
    assert float("inf") in values  # a trial that diverged stays one


def test_trials_are_thinned_and_final_runs_keep_their_evaluations(kept, folder):
    whole = {records.key(record): record for record in Store(folder / "runs").load_all()}
    for record in records.records("tiny"):
        before = whole[records.key(record)]
        if record.spec.seed == 0:
            assert len(record.evaluated_at) <= 4
            assert not record.curves.weights
        else:
            assert record.evaluated_at == before.evaluated_at
    assert records.path_of("tiny").stat().st_size < 0.3 * sum(
        path.stat().st_size for path in folder.glob("runs/*.json")
    )


def test_a_record_is_made_again_to_the_last_digit(kept):
    for seed in (0, 100):
        record = next(record for record in records.records("tiny") if record.spec.seed == seed)
        again = records.train_again(record, "tiny")
        assert records.differences(record, again) == []


def test_a_run_that_differs_is_told_with_both_processors(kept, monkeypatch):
    record = next(record for record in records.records("tiny") if record.spec.seed == 100)
    task = record.tasks[0].name
    losses = {**record.test.losses, task: [2 * loss for loss in record.test.losses[task]]}
    elsewhere = {**record.environment, "processor": "another one"}
    other = replace(record, test=replace(record.test, losses=losses), environment=elsewhere)
    monkeypatch.setattr(commands, "train_again", lambda record, name: other)
    here = re.escape(record.environment["processor"])
    with pytest.raises(SystemExit, match=rf"loss of {task} at step (.|\n)*Made on {here}, .* again on another one"):
        commands.rerun("tiny", records.key(record))


def test_one_digit_is_a_difference(kept):
    record = next(record for record in records.records("tiny") if record.spec.seed == 100)
    task = record.tasks[0].name
    changed = [*record.test.metrics[task][:-1], record.test.metrics[task][-1] * (1 + 1e-15)]
    other = replace(record, test=replace(record.test, metrics={**record.test.metrics, task: changed}))
    (found,) = records.differences(record, other)
    assert found.startswith(f"metric of {task} at step 60")


def test_a_missing_run_is_named(kept):
    with pytest.raises(ValueError, match="records: found none of toy, equal, seed 0"):
        records.replay_study(records.study("tiny"), [])
