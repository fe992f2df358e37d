"""What the page on cost says is what the records say."""

import re

import cost

from equipoise.bench._methods import METHODS
from equipoise.bench.workloads import workloads


def test_its_table_is_generated():
    assert cost.parts()[1] == cost.table()


def test_its_figure_is_generated():
    assert cost.FIGURE.read_text(encoding="utf-8") == cost.figure()
    assert f"({cost.FIGURE.name})" in cost.PAGE.read_text(encoding="utf-8")


def test_every_method_is_spoken_of_on_every_workload():
    """Nothing is left out in silence: what was not run has its reason."""
    for record in cost.records():
        assert {*record.costs, *record.not_run} == set(METHODS), record.workload
        assert record.workload in workloads(record.device)


def test_its_commands_are_there():
    text = cost.PAGE.read_text(encoding="utf-8")
    makefile = (cost.ROOT / "Makefile").read_text(encoding="utf-8")
    assert "`make bench`" in text
    assert re.search(r"^bench: ", makefile, re.MULTILINE)
