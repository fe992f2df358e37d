"""What the page on cost says is what the records say."""

import re

import pytest
from generate import cost, pages

from equipoise.bench.methods import METHODS
from equipoise.bench.workloads import workloads


@pytest.mark.parametrize("name", cost.TABLES)
def test_its_tables_are_generated(name):
    assert pages.parts(cost.PAGE, name)[1] == cost.TABLES[name]()


def test_it_was_measured_as_it_says():
    """From a clean commit, and at least nine rounds."""
    for record in cost.records():
        assert "dirty" not in record.environment["commit"]
        assert all(len(found.seconds) >= 9 for found in record.costs.values())
    phases = cost.load(cost.MEASURED)
    assert [one.workload for one in phases] == list(cost.TIMED)
    assert all(one.first is not None for one in phases)
    assert all("dirty" not in one.environment["commit"] for one in phases)


def test_its_figure_is_generated():
    assert cost.FIGURE.read_text(encoding="utf-8") == cost.figure()
    assert f"({cost.FIGURE.name})" in cost.PAGE.read_text(encoding="utf-8")


def test_every_method_is_spoken_of_on_every_workload():
    """Nothing is left out in silence: a method that was not run has its reason."""
    for record in cost.records():
        assert set(METHODS) <= {*record.costs, *record.not_run}, record.workload
        assert record.workload in workloads(record.device)


def test_the_bytes_at_a_thousand_gpus_are_those_of_segnet():
    parts = workloads("cpu")["segnet"].parts()
    numbers = sum(p.numel() for part in parts for p in part.parameters())
    in_w = parts.shared_layer.weight.numel()
    sent, own = 4 * 3 * in_w + 16 * 3, 4 * numbers
    said = " ".join(cost.PAGE.read_text(encoding="utf-8").split())
    assert f"W has {in_w // 1000} {in_w % 1000} numbers" in said
    assert (
        f"{sent / 1e3:.0f} kB beside the {own / 1e6:.0f} MB of the network's own gradients, {sent / own:.1%}"
        in said.replace(" %", "%")
    )


def test_its_commands_are_there():
    text = cost.PAGE.read_text(encoding="utf-8")
    makefile = (pages.ROOT / "Makefile").read_text(encoding="utf-8")
    assert "`make bench`" in text
    assert re.search(r"^bench: ", makefile, re.MULTILINE)
