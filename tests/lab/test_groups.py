"""Groups of tasks: described by the problem, kept in the record, shown beside the tasks."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from equipoise.lab import Method, Store, load_problem, run, specify
from equipoise.lab.groups import tasks_by_group
from equipoise.lab.results.comparison import group
from equipoise.lab.results.markdown import to_markdown
from equipoise.lab.results.report import write_report
from equipoise.lab.results.rows import summarise
from equipoise.lab.store.codec import _digest

Tiny = type(load_problem(Path(__file__).with_name("tiny.py")))
TASKS = ("a", "b", "c", "d")
TREE = {"x": ("a", "b"), "y": {"p": ("c",), "q": ["d"]}}
PATHS = {"x": ("a", "b"), "y": ("c", "d"), "y/p": ("c",), "y/q": ("d",)}


@dataclass(frozen=True, kw_only=True)
class Grouped(Tiny):
    """Three regressions, two of them in a group, or what else is asked for."""

    scales: tuple[float, ...] = (1.0, 10.0, 100.0)
    grouped: str = "scale_100"

    @property
    def groups(self):
        return {"large": ("scale_10", self.grouped)}


def test_a_tree_is_its_paths():
    assert tasks_by_group(TREE, TASKS) == PATHS
    assert tasks_by_group({}, TASKS) == {}
    assert list(tasks_by_group(TREE, TASKS)) == list(PATHS)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"x": ("a", "e")}, "groups: 'x' has the unknown task 'e'; the tasks are a, b, c, d"),
        ({"x": ("a",), "y": {"p": ("a",)}}, "groups: task 'a' must be in one group; found it more than once, in 'x'"),
        ({"x": ("a", "a")}, "task 'a' must be in one group"),
        ({"x": {"p": ()}}, "groups: 'x' must have at least one task; found none"),
        ({"x": {"p": (), "q": ("a",)}}, "groups: 'p' must have at least one task; found none"),
    ],
)
def test_what_is_no_tree_of_the_tasks_is_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        tasks_by_group(groups, TASKS)


def test_a_problem_with_wrong_groups_is_refused_before_it_runs():
    with pytest.raises(ValueError, match="groups: 'large' has the unknown task 'scale_7'"):
        specify(Grouped(grouped="scale_7"), Method("equal"), 0)


def test_a_run_keeps_its_groups(tmp_path):
    problem = Grouped()
    record = run(problem, specify(problem, Method("gradnorm"), 0, steps=3))
    assert record.groups == {"large": ("scale_10", "scale_100")}
    store = Store(tmp_path)
    store.save(record)
    assert Store(tmp_path).load_all() == [record]


def test_a_record_from_before_groups_is_read(tmp_path, make_record):
    store = Store(tmp_path)
    path = store.save(make_record())
    file = json.loads(path.read_text())
    assert file["record"].pop("groups") == {}
    digest = _digest(file["record"])
    path.write_text(json.dumps(file | {"digest": digest}))
    (record,) = Store(tmp_path).load_all()
    assert record.groups == {}


@pytest.fixture(name="records")
def _records(make_record):
    """Four tasks with losses of 1 under equal weights; under the other method, changes that are known."""
    records = []
    for seed in range(3):
        flat = {task: [1.0, 1.0] for task in TASKS}
        changes = dict(zip(TASKS, (0.1, 0.3, -0.2, -0.4 + 0.01 * seed), strict=True))
        changed = {task: [1.0, 1.0 + change] for task, change in changes.items()}
        falling = {task: [1.0, 0.5] for task in TASKS}
        common = {"steps": 10, "validation": falling, "tasks": TASKS, "test": flat}
        records.append(make_record("equal", seed, metrics=flat, **common))
        records.append(make_record("gradnorm", seed, metrics=changed, **common))
    return [replace(record, groups=PATHS) for record in records]


def test_every_group_has_a_row_with_the_mean_change_of_its_tasks(records):
    rows = {row.label: row.cells for row in summarise(group(records)[0])}
    labels = list(rows)
    start = labels.index("change against equal")
    assert labels[start + 1 : start + 5] == [f"change against equal, group {path}" for path in PATHS]
    means = [rows[f"change against equal, group {path}"][1] for path in PATHS]
    assert [cell.value.mean for cell in means] == pytest.approx([20.0, -29.5, -20.0, -39.0])
    assert [cell.verdict for cell in means] == ["worse", "better", "better", "better"]
    assert rows["change against equal"][1].value.mean == pytest.approx(-4.75)
    assert rows["change against equal, worst task"][1].note == "b"


def test_table_and_report_show_them(records, tmp_path):
    text = to_markdown(group(records)[0], tasks=False)
    assert "| change against equal, group y/q | % ↓ | reference | -39.0 ± 2.5 ✓ |" in text
    write_report(records, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"change against equal, group {path}" in page for path in PATHS)


def test_without_groups_nothing_is_shown(records):
    bare = [replace(record, groups={}) for record in records]
    assert "group" not in to_markdown(group(bare)[0])
    with pytest.raises(ValueError, match="has other groups than the first record"):
        group([*records[:1], *bare[1:]])
