"""The answers to the reviewers are what the committed records say, and no method's search was larger than another's."""

import subprocess

import pytest
from generate.answers import records, site
from generate.pages import ROOT

STUDIES = site.studies()
SEARCHES = ("savings", "static_weights")
"""The studies that ask what a longer search for static weights finds: no comparison on other pages rests on it."""


def test_the_pages_are_generated():
    texts = site.pages()
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text, path.name
    assert {path for path in site.PAGES.rglob("*") if path.is_file()} == set(texts)


def test_every_answer_has_its_prediction_picture_and_table():
    for name, answer in site.shown().items():
        page = answer.page()
        assert any(page.predictions) or name == "baselines", name  # it has no study of its own
        assert all(text.strip() for text in (page.line, page.for_user, page.limits, page.table)), name
        assert page.picture.startswith("<svg"), name


@pytest.mark.parametrize("name", STUDIES)
def test_no_method_was_searched_longer_than_another(name):
    for result in records.results(name):
        spent = {label: len(search.trials) for label, search in result.searches.items() if search.is_searched}
        if name in SEARCHES:
            spent.pop("tuned static")
        assert set(spent.values()) <= {result.study.trials}, spent
        assert all(runs.keys() == set(result.study.seeds) for runs in result.comparison.runs.values())


@pytest.mark.parametrize("name", STUDIES)
def test_no_record_was_made_from_changed_files(name):
    for record in records.records(name):
        assert record.environment["commit"]
        assert not record.environment["commit"].endswith("dirty")


@pytest.mark.parametrize("name", STUDIES)
def test_the_expectation_was_written_before_the_runs(name):
    """At the commit that the records name, the study's file says the same."""
    for commit in {record.environment["commit"] for record in records.records(name)}:
        command = ["git", "-C", str(ROOT), "show", f"{commit}:studies/{name}.py"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        if shown.returncode and "studies/" not in shown.stderr:
            pytest.skip("there is no git history here that goes back so far")
        assert not shown.returncode, shown.stderr
        before = {}
        exec(compile(shown.stdout, name, "exec"), before)
        assert before["study"].expectation == records.study(name).expectation
