"""Tox21 and ToxCast, on the files of MoleculeNet where they lie beside the repository, and on small ones."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from equipoise.lab import Method, run, specify
from equipoise.lab.problems import assays
from equipoise.lab.problems.assays import AUROC, AveragePrecision
from equipoise.lab.problems.tox21 import Tox21
from equipoise.lab.problems.toxcast import ToxCast

DATA = Path(__file__).parents[4] / "shared" / "data"
TOX21, TOXCAST = DATA / "tox21" / "tox21.csv.gz", DATA / "toxcast" / "toxcast_data.csv.gz"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the files of MoleculeNet are not beside the repository")


def parts(splits):
    return [splits.train, splits.validation, splits.test]


def written(path, assays, rows):
    """A file of MoleculeNet's form."""
    lines = [
        ",".join([*assays, "mol_id", "smiles"]),
        *(",".join([*labels, f"M{i}", s]) for i, (*labels, s) in enumerate(rows)),
    ]
    path.write_text("\n".join(lines))
    return str(path)


NAMES = [task.name for task in Tox21().tasks]
CHAIN = ["C" * n + end for n in range(1, 26) for end in ("O", "N")]


def small(path):
    """Fifty molecules, active in every assay where they are alcohols."""
    return written(path, NAMES, [(*(["1" if s.endswith("O") else "0"] * 12), s) for s in CHAIN])


@needs_data
def test_tox21_is_split_into_distinct_molecules():
    problem = Tox21(path=str(TOX21))
    splits = problem.splits()
    assert [len(part) for part in parts(splits)] == [6258, 782, 783]
    assert len(problem.molecules().smiles) == len(set(problem.molecules().smiles)) == 7823
    for part in parts(splits):
        assert set(part.inputs.unique().tolist()) == {0, 1}
        for name in NAMES:
            there = part.labelled[name]
            assert 0.65 < there.float().mean() < 0.97
            assert set(part.targets[name][there].tolist()) == {0, 1}
    known = sum(int(part.labelled["NR-AR"].sum()) for part in parts(splits))
    active = sum(int(part.targets["NR-AR"][part.labelled["NR-AR"]].sum()) for part in parts(splits))
    assert 0.03 < active / known < 0.06


@needs_data
def test_toxcast_has_the_assays_that_every_split_can_say_something_about():
    problem = ToxCast(path=str(TOXCAST), platforms=("OT", "CEETOX", "NVS"), least_labels=4)
    names = [task.name for task in problem.tasks]
    groups = problem.groups
    assert list(groups) == ["CEETOX", "NVS", "OT"]
    assert sorted(names) == sorted(name for group in groups.values() for name in group)
    assert all(name.startswith(f"{platform}_") for platform, group in groups.items() for name in group)
    splits = problem.splits()
    for part in parts(splits):
        for name in names:
            labels = part.targets[name][part.labelled[name]]
            assert min((labels == 0).sum(), (labels == 1).sum()) >= 4
    fewer = ToxCast(path=str(TOXCAST), platforms=("OT", "CEETOX", "NVS"), least_labels=10)
    assert 0 < len(fewer.tasks) < len(names)
    missing = 1 - sum(int(there.sum()) for there in splits.train.labelled.values()) / (len(names) * len(splits.train))
    assert 0.5 < missing < 0.95


@needs_data
def test_toxcast_has_all_platforms_by_default():
    problem = ToxCast(path=str(TOXCAST), platforms=None, least_labels=1)
    assert len(problem.groups) == 12
    assert 600 < len(problem.tasks) <= 617


@needs_data
@pytest.mark.parametrize(
    ("method", "capacity"),
    [*itertools.product(("equal", "gradnorm", "uncertainty"), ("small", "large")), ("nested", "small")],
)
@pytest.mark.parametrize("problem", [Tox21, ToxCast])
def test_they_train(problem, method, capacity):
    chosen = {} if problem is Tox21 else {"platforms": ("OT",)}
    data = TOX21 if problem is Tox21 else TOXCAST
    built = problem(path=str(data), capacity=capacity, **chosen)
    record = run(built, specify(built, Method(method), 0, steps=2))
    assert len(record.tasks) >= 12
    for task in record.tasks:
        assert all(0 <= value <= 1 for value in record.test.metrics[task.name])
        assert all(0 <= value <= 1 for value in record.test.more_metrics[task.name]["average precision"])


@needs_data
def test_tox21_learns():
    problem = Tox21(path=str(TOX21))
    record = run(problem, specify(problem, Method("inverse_initial_loss"), 0, steps=120))
    areas = torch.tensor([record.test.metrics[task.name][-1] for task in record.tasks])
    assert areas.mean() > 0.65


def test_rows_of_one_molecule_are_one_and_contradictions_are_no_label(tmp_path):
    rows = [
        ("1", "0", "", "CCO"),
        ("1", "1", "1", "OCC"),
        ("", "", "0", "C(O)C"),
        ("0", "", "", "CCN"),
    ]
    path = written(tmp_path / "a.csv", ["A_x", "A_y", "B_z"], rows)
    molecules = assays.read(Path(path), ("A_x", "A_y", "B_z"), 2, 64)
    nan = float("nan")
    assert molecules.smiles == ("CCO", "CCN")
    assert_close(molecules.labels, torch.tensor([[1, nan, nan], [0, nan, nan]]), equal_nan=True)
    assert molecules.fingerprints.shape == (2, 64)
    assert not torch.equal(*molecules.fingerprints)


def test_a_row_that_cannot_be_read_is_left_out_and_many_are_refused(tmp_path):
    good = [("1", "C" * n) for n in range(1, 121)]
    path = written(tmp_path / "few.csv", ["A_x"], [*good[:60], ("0", "not a molecule"), *good[60:]])
    molecules = assays.read(Path(path), None, 2, 64)
    assert molecules.names == ("A_x",)
    assert_close(molecules.labels, torch.ones(120, 1))
    path = written(tmp_path / "many.csv", ["A_x"], [*good, ("0", "nonsense"), ("0", "")])
    with pytest.raises(ValueError, match=r"many.csv: RDKit cannot read 2 of 122 SMILES, the first of them 'nonsense'"):
        assays.read(Path(path), None, 2, 64)


@pytest.mark.parametrize(
    ("columns", "label", "message"),
    [
        (NAMES[:-1], "0", "missing SR-p53"),
        (NAMES, "2", "wanted labels 0, 1 or nothing; found 2"),
        (NAMES, "yes", "wanted labels 0, 1 or nothing; .*yes"),
    ],
)
def test_a_file_of_another_form_is_refused(columns, label, message, tmp_path):
    path = written(tmp_path / "a.csv", columns, [(*([label] * len(columns)), "CCO")])
    with pytest.raises(ValueError, match=message):
        Tox21(path=path).splits()


def test_a_split_without_both_kinds_is_refused_by_the_assay(tmp_path):
    path = written(tmp_path / "a.csv", NAMES, [(*(["0"] * 12), s) for s in CHAIN])
    with pytest.raises(ValueError, match="split_seed=0: a split has only one kind of label for task 'NR-AR'"):
        Tox21(path=path).splits()


def test_the_file_is_where_the_setting_or_the_environment_says(tmp_path, monkeypatch):
    assert len(Tox21(path=small(tmp_path / "mine.csv")).splits().train) == 40
    with pytest.raises(FileNotFoundError, match=r"path: there is no file .*nowhere.csv"):
        Tox21(path=str(tmp_path / "nowhere.csv")).splits()
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    small(tmp_path / "tox21.csv.gz")  # not the known file: it is fetched again, from a place that does not answer
    monkeypatch.setattr(assays, "_REPOSITORY", "http://127.0.0.1:9/")
    wanted = r"tox21.csv.gz is not in .* and could not be fetched \(ConnectionError\). Get it from http://127.0.0.1:9/datasets.*path"
    with pytest.raises(FileNotFoundError, match=wanted):
        Tox21().splits()


@needs_data
def test_the_file_in_the_folder_of_the_environment_is_used_where_its_digest_is_right(monkeypatch):
    monkeypatch.setenv("EQUIPOISE_DATA", str(TOX21.parent))
    monkeypatch.setattr(assays, "_REPOSITORY", "http://127.0.0.1:9/")
    assert Tox21().located().samefile(TOX21)


def test_settings_are_refused_by_name(tmp_path):
    path = small(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="platforms: unknown platform 'OTT'.*Known: NR-AR"):
        _ = ToxCast(path=path, platforms=("OTT",)).tasks
    with pytest.raises(ValueError, match="no assay has least_labels=30 of both kinds in every split"):
        _ = ToxCast(path=path, least_labels=30).tasks
    with pytest.raises(ValueError, match="least_labels: wanted at least 1, found 0"):
        ToxCast(least_labels=0)


def test_an_area_needs_labels_of_both_kinds():
    for metric in (AUROC(), AveragePrecision()):
        metric.update(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0, 0, 1]))
        assert metric.compute() == 1
        metric.reset()
        metric.update(torch.tensor([0.5, -1.0]), torch.tensor([0, 0]))
        assert metric.compute().isnan()
