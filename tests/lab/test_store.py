"""Records on disk: whole, found by content, and never mixed up."""

import errno
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from helpers.bad_records import make_bad_records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from equipoise.cli import app
from equipoise.lab import Curves, Evaluation, MetricInfo, Record, RunSpec, Store, TaskInfo
from equipoise.lab.store.host import this_process

SPEC = RunSpec(
    problem="tiny",
    problem_settings={"steps": 20, "scales": (1.0, 10.0), "name": None},
    method="gradnorm",
    method_settings={"alpha": 0.5, "priors": {"a": 1.0}},
    seed=3,
    steps=20,
    evaluate_every=1,
    device="cpu",
    precision="32-true",
    code="c0de",
)


def record_of(spec=SPEC, value=0.1):
    series = {"a": (value, 2.0)}
    evaluation = Evaluation(losses=series, metrics=series)
    return Record(
        spec=spec,
        tasks=(TaskInfo("a", "regression", MetricInfo("MeanSquaredError", False)),),
        curves=Curves((0, 1), series, series, series, {}, series),
        evaluated_at=(0, 20),
        train=evaluation,
        validation=evaluation,
        test=evaluation,
        train_seconds=1.5,
        skipped_steps=0,
        floor_hits={"a": 1},
        cap_hits={"a": 0},
        environment={"torch": "2.13.0", "commit": None, "threads": 1},
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs" / "first")


def files(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_a_record_comes_back_as_it_was(store):
    record = record_of()
    path = store.save(record)
    assert path.name.startswith("tiny-gradnorm-s3-")
    assert Store(store.folder).find(SPEC) == record
    assert Store(store.folder).load_all() == [record]
    assert files(store) == [path.name]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(value=st.floats())
def test_every_float_comes_back_and_the_file_is_plain_json(value, tmp_path):
    store = Store(tmp_path / str(value))
    path = store.save(record_of(value=value))
    found = Store(store.folder).find(SPEC).curves.losses["a"][0]
    assert found == value or (math.isnan(found) and math.isnan(value))
    json.loads(path.read_text(), parse_constant=pytest.fail)
    path.unlink()


def test_an_empty_or_missing_folder_has_no_records(store):
    assert store.find(SPEC) is None
    assert store.load_all() == []


@pytest.mark.parametrize(
    "change",
    [
        {"problem": "other"},
        {"problem_settings": {**SPEC.problem_settings, "scales": (1.0, 11.0)}},
        {"problem_settings": {**SPEC.problem_settings, "more": 1}},
        {"method": "equal"},
        {"method_settings": {}},
        {"seed": 4},
        {"steps": 21},
        {"evaluate_every": 2},
        {"device": "cuda"},
        {"precision": "bf16-mixed"},
        {"code": "changed"},
        {"vectorized": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_run_with_anything_changed_is_another_run(change, store):
    store.save(record_of())
    other = replace(SPEC, **change)
    assert store.find(other) is None
    store.save(record_of(other))
    assert store.find(other).spec == other
    assert store.find(SPEC).spec == SPEC
    assert len(store.load_all()) == 2


def test_every_field_of_the_specification_is_tested():
    assert {field.name for field in fields(RunSpec)} == {
        "problem", "problem_settings", "method", "method_settings", "seed", "steps", "evaluate_every", "device",
        "precision", "code", "vectorized",
    }  # fmt: skip


def test_a_record_under_the_name_of_another_run_is_not_taken_for_it(store):
    path = store.save(record_of())
    other = replace(SPEC, seed=4)
    path.rename(store.save(record_of(other)))
    assert store.find(other) is None
    assert not store.corrupt


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_digit(path):
    path.write_text(path.read_text().replace("2.0", "2.5", 1))


def empty(path):
    path.write_bytes(b"")


def make_binary(path):
    path.write_bytes(b"\xff\xfe\x00")


def make_a_list(path):
    path.write_text("[]")


def make_nan(path):
    path.write_text(path.read_text().replace("2.0", "NaN", 1))


def change_schema(path):
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 99'))


DAMAGE = {
    truncate: "it is not JSON; it may have been cut off",
    empty: "it is not JSON; it may have been cut off",
    make_binary: "it is not text",
    make_a_list: "it is not a record",
    flip_a_digit: "its content does not match its digest",
    make_nan: "it is not JSON, which has no NaN",
    change_schema: "it is a record of schema 99; this version reads schema 2",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_record_is_named_left_alone_and_done_again_beside_it(damage, store):
    path = store.save(record_of())
    other = store.save(record_of(replace(SPEC, seed=4)))
    damage(path)
    content = path.read_bytes()

    assert store.find(SPEC) is None
    assert list(store.corrupt) == [path]
    assert store.corrupt[path].startswith(DAMAGE[damage])

    again = store.save(record_of())
    assert again == path.with_name(f"{path.stem}-2.json")
    assert path.read_bytes() == content
    fresh = Store(store.folder)
    assert fresh.find(SPEC) == record_of()
    assert len(fresh.load_all()) == 2
    assert list(fresh.corrupt) == [path]
    assert files(store) == sorted([path.name, again.name, other.name])


def test_a_record_with_parts_missing_is_damaged(store, monkeypatch):
    path = store.save(record_of())
    monkeypatch.setattr("equipoise.lab.store.codec._digest", lambda body: json.loads(path.read_text())["digest"])
    for part in ("spec", "curves", "environment"):
        whole = path.read_text()
        body = json.loads(whole)
        del body["record"][part]
        path.write_text(json.dumps(body))
        assert store.load_all() == []
        assert part in store.corrupt[path]
        path.write_text(whole)


def test_nothing_is_ever_replaced(store):
    first = store.save(record_of(value=0.1))
    second = store.save(record_of(value=0.2))
    assert first != second
    assert store.find(SPEC) == record_of(value=0.1)
    assert store.load_all() == [record_of(value=0.1)]


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_record_that_is_not_whole_is_not_there(call, store, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, call, killed)
        with pytest.raises(KeyboardInterrupt):
            store.save(record_of())
    assert len(files(store)) == 1  # what was left of it
    assert store.find(SPEC) is None
    assert store.load_all() == []
    assert not store.corrupt
    assert store.save(record_of()).exists()
    assert store.find(SPEC) == record_of()


def test_the_file_is_on_disk_before_it_gets_its_name(store, monkeypatch):
    calls = []
    for name in ("fsync", "link"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: (calls.append(name), real(*args)))
    store.save(record_of())
    assert calls == ["fsync", "link"]


def test_a_file_system_without_links_does_too(store, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    paths = [store.save(record_of(value=value)) for value in (0.1, 0.2)]
    assert files(store) == sorted(path.name for path in paths)
    assert store.load_all() == [record_of(value=0.1)]


@pytest.fixture
def beside_bad_ones(store, make_record):
    """Two sound records, whose texts bad ones are made of that stand in front of them in the folder."""
    records = [make_record(), make_record("gradnorm")]
    (first, _) = [store.save(record) for record in records]
    return records, make_bad_records(store.folder, first.read_text(), "bad")


def test_97_bad_records_are_named_with_the_reason_and_left_out(store, beside_bad_ones):
    records, reasons = beside_bad_ones
    assert len(reasons) == 97
    assert sorted(map(run_key_of, store.load_all())) == sorted(map(run_key_of, records))
    assert store.corrupt.keys() == reasons.keys()
    assert [path.name for path, reason in reasons.items() if reason not in store.corrupt[path]] == []


def run_key_of(record):
    return record.spec.method, record.spec.seed


def test_a_run_is_found_among_97_bad_records_of_its_own_name(store, make_record):
    record = make_record()
    path = store.save(record)
    reasons = make_bad_records(store.folder, path.read_text(), path.stem)
    path.rename(path.with_name(f"{path.stem}-99.json"))  # behind all of them
    assert run_key_of(store.find(record.spec)) == run_key_of(record)
    assert store.corrupt.keys() == reasons.keys()


def test_the_report_names_97_bad_records_and_is_written(store, beside_bad_ones):
    result = CliRunner().invoke(app, ["report", str(store.folder), "--markdown"])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("left out a corrupt record") == 97
    assert all(path.name in result.stderr for path in beside_bad_ones[1])
    assert "gradnorm" in result.stdout


def test_a_record_with_other_tasks_than_its_fellows_is_named(store, make_record):
    first, second = (store.save(make_record(method, tasks=tasks)) for method, tasks in (("a", "xy"), ("b", "xz")))
    assert [record.spec.method for record in store.load_all()] == ["a"]
    assert store.corrupt == {second: f"its tasks are not those of {first.name}, which has the same settings"}


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Store(tmp_path / "file" / "runs").prepare()


def test_what_a_kill_left_is_removed_once_its_process_is_gone(store):
    store.save(record_of())
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    machine = this_process().split("-")[0]
    names = {
        "ours": f".run.{this_process()}.0.tmp",
        "gone": f".run.{machine}-{ended.stdout.strip()}.0.tmp",
        "elsewhere": f".run.0123-{ended.stdout.strip()}.0.tmp",
        "old": ".run.0123-1.0.tmp",
        "foreign": ".tmp",
    }
    for name in names.values():
        (store.folder / name).write_text("{")
    os.utime(store.folder / names["old"], (0, time.time() - 7200))
    store.prepare()
    kept = {kind for kind, name in names.items() if (store.folder / name).exists()}
    assert kept == {"ours", "elsewhere", "foreign"}
    assert len(store.load_all()) == 1


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), {1: 2}], ids=["set", "path", "number as key"])
def test_a_setting_that_cannot_be_written_is_refused_by_name(value, store):
    spec = replace(SPEC, problem_settings={"odd": value})
    with pytest.raises(TypeError, match="problem_settings.odd"):
        store.save(record_of(spec))


def test_a_disk_that_is_full_keeps_no_unfinished_file(store, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            store.save(record_of())
    assert list(store.folder.iterdir()) == []
    assert store.save(record_of()).is_file()
