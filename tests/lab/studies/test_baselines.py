"""The methods that all studies have in common can train a problem with groups."""

import pytest

from equipoise.lab import Method, Study, load_problem
from equipoise.lab.runs.checks import check_problem
from equipoise.lab.studies.baselines import baselines, nested


@pytest.fixture
def methods():
    return [*baselines(epoch_steps=40, decades=1), *nested()]


def test_all_methods_can_be_built(methods):
    fixed = [Method(each.method, each.settings) for each in methods if not each.space]
    check_problem(load_problem("groups", {}), fixed)


def test_a_study_takes_them_all(methods):
    study = Study(
        title="all",
        expectation="level",
        problems=[load_problem("groups", {})],
        methods=methods,
        space={},
        trials=1,
        tuning_seeds=[0],
        seeds=[1],
    )
    assert study.reference == "equal"
    assert [each.label for each in methods if each.space] == ["tuned static"]
