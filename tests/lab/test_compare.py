"""A comparison: the whole grid, each run once, and none lost with another."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.bad_records import make_bad_records

import equipoise
from equipoise.lab import ComparisonError, Method, Store, compare, load_problem, parse_methods
from equipoise.lab.runs import digest
from equipoise.lab.runs.digest import code_digest

TINY = Path(__file__).with_name("tiny.py")
METHODS = parse_methods("equal,gradnorm")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


class Log(list):
    """The events of a comparison, without the progress of runs."""

    def __init__(self):
        self.steps = {}

    def __call__(self, event):
        if event.kind == "progressed":
            self.steps[event.spec.method, event.spec.seed] = event.step
        else:
            self.append((event.kind, event.spec.problem, event.spec.method, event.spec.seed))


def content(record):
    return replace(record, train_seconds=0, environment={})


def saved(store):
    return {path: path.stat().st_mtime_ns for path in store.folder.glob("*.json")}


def test_the_grid_is_run_seed_by_seed_and_kept(store):
    log = Log()
    problem = load_problem(TINY)
    records = compare([problem], METHODS, range(2), 10, store=store, jobs=1, on_event=log)
    assert [(r.spec.method, r.spec.seed) for r in records] == [
        ("equal", 0), ("gradnorm", 0), ("equal", 1), ("gradnorm", 1),
    ]  # fmt: skip
    assert all(record.spec.steps == 10 for record in records)
    assert [event[0] for event in log] == ["started", "finished"] * 4
    assert set(log.steps.values()) == {10}
    assert len(log.steps) == 4
    assert len(saved(store)) == 4

    before, log = saved(store), Log()
    assert compare([problem], METHODS, range(3), 10, store=store, jobs=1, on_event=log)[:4] == records
    assert [event[0] for event in log] == ["reused"] * 4 + ["started", "finished"] * 2
    assert before.items() < saved(store).items()


def test_problems_keep_their_own_number_of_steps(store):
    problems = [load_problem(TINY), load_problem(TINY, {"steps": 5})]
    records = compare(problems, METHODS[:1], [0], store=store, jobs=1)
    assert [record.spec.steps for record in records] == [20, 5]


def test_changed_settings_and_a_changed_file_are_run_again(store, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TINY.read_text())

    def kinds(methods="equal", **settings):
        log = Log()
        compare([load_problem(path, settings)], parse_methods(methods), [0], 5, store=store, jobs=1, on_event=log)
        return {event[0] for event in log}

    assert kinds() == {"started", "finished"}
    assert kinds() == {"reused"}
    assert kinds(batch_size=9) == {"started", "finished"}
    assert kinds("gradnorm") == {"started", "finished"}
    assert kinds("gradnorm(alpha=0.1)") == {"started", "finished"}
    path.write_text(TINY.read_text() + "\n# a comment\n")
    assert kinds() == {"reused"}
    path.write_text(TINY.read_text() + "\nchanged = 1\n")
    assert kinds() == {"started", "finished"}
    path.write_text(TINY.read_text())
    assert kinds() == {"reused"}


def test_the_digest_covers_all_source_that_computes_a_run(tmp_path, monkeypatch):
    package = tmp_path / "equipoise"
    shutil.copytree(Path(equipoise.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(digest, "_PACKAGE", package)
    monkeypatch.setattr(digest, "_closure", digest._closure.__wrapped__)
    before = code_digest("toy")
    assert code_digest("multimnist") != before
    assert code_digest(str(TINY)) != before

    def after(name, text):
        path = package / name
        source = path.read_text()
        path.write_text(source + text)
        found = code_digest("toy")
        path.write_text(source)
        return found

    for name in (
        "lab/results/report.py",
        "lab/results/statistics.py",
        "lab/problems/yeast.py",
        "bench/run.py",
        "cli/compare.py",
    ):
        assert after(name, "\nchanged = 1\n") == before
    for name in ("engine/fork.py", "methods/gradnorm.py", "lab/runs/train.py", "lab/problems/toy.py", "arguments.py"):
        assert after(name, "\nchanged = 1\n") != before
        assert after(name, "\n# a comment\n") == before
    assert code_digest("toy") == before


def test_a_damaged_record_is_reported_and_run_again(store):
    problem = load_problem(TINY)
    (record,) = compare([problem], METHODS[:1], [0], 5, store=store, jobs=1)
    (path,) = saved(store)
    path.write_text(path.read_text()[:100])
    events = []
    again = Store(store.folder)
    (fresh,) = compare([problem], METHODS[:1], [0], 5, store=again, jobs=1, on_event=events.append)
    assert content(fresh) == content(record)
    assert [event.kind for event in events if event.kind != "progressed"] == ["corrupt", "started", "finished"]
    assert events[0].message == f"{path}: it is not JSON; it may have been cut off"
    assert len(saved(store)) == 2
    assert path.stat().st_size == 100


def test_97_bad_records_under_the_name_of_a_run_are_reported_and_it_is_done(store, make_record, tmp_path):
    problem = load_problem(TINY)
    (record,) = compare([problem], METHODS[:1], [0], 5, store=Store(tmp_path / "first"), jobs=1)
    (first,) = (tmp_path / "first").glob("*.json")
    store.folder.mkdir()
    make_bad_records(store.folder, Store(tmp_path / "other").save(make_record()).read_text(), first.stem)
    events = []
    (again,) = compare([problem], METHODS[:1], [0], 5, store=store, jobs=1, on_event=events.append)
    assert content(again) == content(record)
    assert [event.kind for event in events if event.kind != "progressed"] == ["corrupt"] * 97 + ["started", "finished"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"problems": []}, "problems: wanted at least one, found none"),
        ({"methods": []}, "methods: wanted at least one, found none"),
        ({"seeds": []}, "seeds: wanted at least one, found none"),
        ({"seeds": [0, 1, 0]}, "tiny, equal, seed 0: the comparison has this run twice"),
        ({"steps": 0}, "steps: wanted at least 1, found 0"),
        ({"jobs": 0}, "jobs: wanted at least 1, found 0"),
        ({"methods": parse_methods("equal,static(weights=(1, 2, 3))")}, "weights: wanted one for each of the tasks"),
        ({"device": "abacus"}, "abacus"),
        ({"precision": "wooden"}, "wooden"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_before_the_first_run(given, message, store):
    wanted = {"problems": [load_problem(TINY)], "methods": METHODS, "seeds": [0], "steps": 5, "jobs": 1, **given}
    with pytest.raises(ValueError, match=message):
        compare(**wanted, store=store)
    assert not store.folder.exists()


def test_the_same_problem_twice_is_refused(store):
    with pytest.raises(ValueError, match="tiny, equal, seed 0: the comparison has this run twice"):
        compare([load_problem(TINY), load_problem(TINY)], METHODS, [0], 5, store=store, jobs=1)


@pytest.fixture
def namesakes(tmp_path):
    """Two problem files of one name, in folders of their own, that train different networks."""
    found = []
    for folder, width in (("first", 6), ("second", 7)):
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir()
        path.write_text(
            TINY.read_text().replace("nn.Linear(6, 5)", f"nn.Linear({width}, 5)").replace("(4, 6)", f"(4, {width})")
        )
        found.append(path)
    return found


def test_of_two_files_of_one_name_each_problem_keeps_its_own(namesakes, store):
    problems = [load_problem(path) for path in namesakes]
    records = [compare([one], METHODS[:1], [0], 5, store=store, jobs=1)[0] for one in problems]
    assert [record.spec.code for record in records] == [code_digest(str(path)) for path in namesakes]
    assert records[0].test != records[1].test


def test_two_files_of_one_name_in_one_comparison_are_refused(namesakes, store):
    problems = [load_problem(path) for path in namesakes]
    with pytest.raises(
        ValueError, match=r"problems: wanted one file of the name 'mine', found .*first/mine.py and .*second/m"
    ):
        compare(problems, METHODS[:1], [0], 5, store=store, jobs=1)
    assert not store.folder.exists()


def breaks(what):
    return load_problem(TINY, {"on_training": what})


def test_a_run_that_fails_is_reported_and_the_others_are_done(store):
    log = Log()
    problems = [breaks("1 / 0"), load_problem(TINY)]
    with pytest.raises(ComparisonError) as caught:
        compare(problems, METHODS[:1], [0, 1], 5, store=store, jobs=1, on_event=log)
    message = str(caught.value)
    assert message.splitlines()[0] == "2 of 4 runs failed"
    assert "tiny, equal, seed 1: ZeroDivisionError: division by zero" in message
    assert [spec.seed for spec, _ in caught.value.failures] == [0, 1]
    assert sorted(event[0] for event in log) == ["failed"] * 2 + ["finished"] * 2 + ["started"] * 4
    assert [record.spec.seed for record in store.load_all()] == [0, 1]


def test_a_file_that_changes_meanwhile_is_refused(store, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TINY.read_text())

    def change(event):
        path.write_text(TINY.read_text() + "\nchanged = 1\n")

    problem = load_problem(path)
    with pytest.raises(ComparisonError, match="the problem or the source is not the one that was specified"):
        compare([problem], METHODS[:1], [0], 5, store=store, jobs=1, on_event=change)
    assert store.load_all() == []


KILLED_ALWAYS = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
KILLED_ONCE = """
import os, pathlib, signal
mark = pathlib.Path({mark!r})
if not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A comparison in two workers: one run kills its worker each time, one does so once, one fails, two are sound."""
    folder = tmp_path_factory.mktemp("apart")
    problems = [
        breaks(KILLED_ALWAYS),
        breaks(KILLED_ONCE.format(mark=str(folder / "mark"))),
        breaks("1 / 0"),
        load_problem(TINY, {"dropout": 0.5}),
        load_problem(TINY),
    ]
    store, log = Store(folder / "runs"), Log()
    with pytest.raises(ComparisonError) as caught:
        compare(problems, METHODS[1:], [1], 10, store=store, jobs=2, on_event=log)
    return problems, store, log, caught.value


def test_workers_that_are_killed_cost_their_own_runs_only(apart):
    _, store, log, error = apart
    assert str(error).startswith("2 of 5 runs failed\ntiny, gradnorm, seed 1: its worker process was lost 2 times")
    assert [spec.problem_settings["on_training"] for spec, _ in error.failures] == [KILLED_ALWAYS, "1 / 0"]
    assert sorted(event[0] for event in log) == ["failed"] * 2 + ["finished"] * 3 + ["started"] * 7
    assert len(store.load_all()) == 3


def test_a_run_that_fails_in_a_worker_says_how(apart):
    _, failed = apart[3].failures[1]
    assert str(failed).startswith("ZeroDivisionError: division by zero (tiny.py, line ")
    assert "in forward" in str(failed.__cause__)


def test_workers_give_the_same_records_as_this_process(apart, tmp_path):
    problems, store, _, _ = apart
    sound = [problems[1], *problems[3:]]
    here = compare(sound, METHODS[1:], [1], 10, store=Store(tmp_path), jobs=1)
    there = compare(sound, METHODS[1:], [1], 10, store=store, jobs=1)
    assert list(map(content, here)) == list(map(content, there))
    assert here != there  # times differ: the workers' records were found again
    assert all(record.environment["threads"] == 1 for record in there)


def test_methods_can_be_given_as_objects(store):
    (record,) = compare([load_problem(TINY)], [Method("gradnorm", {"alpha": 1})], [5], 3, store=store, jobs=1)
    assert record.spec.method_settings == {"alpha": 1.0}
    assert record.spec.seed == 5
