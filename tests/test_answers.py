"""The answers to the reviewers are what the committed records say, and no method's search was larger than another's."""

import pytest
from generate import answers
from generate.pages import ROOT

from equipoise.lab import Store
from equipoise.lab.studies.run import replay_study
from equipoise.lab.studies.source import load_study


def test_the_pages_are_generated():
    for path, text in answers.pages().items():
        assert path.read_text(encoding="utf-8") == text, path.name


@pytest.mark.parametrize("name", answers.ANSWERS)
def test_every_method_was_searched_as_long_as_every_other(name):
    study = load_study(ROOT / "studies" / f"{name}.py")
    results = replay_study(study, Store(answers.RECORDS / name).load_all())
    for result in results:
        assert {len(search.trials) for search in result.searches.values()} == {study.trials}
        assert all(len(runs) == len(study.seeds) for runs in result.comparison.runs.values())


def test_a_missing_run_is_named():
    study = load_study(ROOT / "studies" / "toy_fifth.py")
    with pytest.raises(ValueError, match="records: found none of toy, equal, seed 0"):
        replay_study(study, [])


def test_no_record_was_made_from_changed_files():
    for name in answers.ANSWERS:
        for record in Store(answers.RECORDS / name).load_all():
            assert record.environment["commit"]
            assert not record.environment["commit"].endswith("dirty")
