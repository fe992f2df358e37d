"""Every problem has a committed record of a run that has learnt something."""

import statistics

import pytest
from generate import problems

from equipoise.lab import PROBLEMS, Store

RECORDS = {record.spec.problem: record for record in Store(problems.RECORDS).load_all()}


def test_every_problem_has_a_record_but_the_one_whose_data_cannot_be_passed_on():
    assert set(PROBLEMS) - set(RECORDS) == {"nyuv2"}
    assert not set(RECORDS) - set(PROBLEMS)


def test_the_page_is_generated():
    assert problems.PAGE.read_text(encoding="utf-8") == problems.page()


@pytest.mark.parametrize("name", RECORDS)
def test_its_metrics_beat_a_constant_prediction(name):
    won = problems.better(RECORDS[name], problems.constants()[name])
    assert statistics.fmean(won.values()) > 0.8
    assert RECORDS[name].diverged is None
    assert RECORDS[name].environment["commit"]
    assert not RECORDS[name].environment["commit"].endswith("dirty")
