"""Affinities to thirty targets, from the files of the package MoleculeACE, and from small ones."""

import itertools
from importlib import metadata

import pytest
import torch
from torch.testing import assert_close

from equipoise.lab import Method, run, specify
from equipoise.lab.groups import tasks_by_group
from equipoise.lab.problems import molecules
from equipoise.lab.problems.molecules import MoleculeTargets

KINASES = ("ABL1_Ki", "JAK1_Ki", "JAK2_Ki", "CLK4_Ki")


def installed():
    try:
        return bool(metadata.distribution("MoleculeACE"))
    except metadata.PackageNotFoundError:
        return False


needs_files = pytest.mark.skipif(not installed(), reason="the package MoleculeACE is not installed")


def write(folder, name, rows):
    lines = ["smiles,exp_mean [nM],y,cliff_mol,split", *(f"{smiles},1,{y},0,{part}" for smiles, y, part in rows)]
    (folder / f"{name}.csv").write_text("\n".join(lines))


def two_targets(folder):
    """JAK1 and JAK2 with a molecule that is a test molecule of JAK2 alone, and one that is written in two ways."""
    chain = [("C" * n + "O", float(n), "train") for n in range(1, 31)]
    write(folder, "CHEMBL2835_Ki", [*chain, ("CCN", -1.0, "train"), ("NCC", -3.0, "train"), ("CCCN", 5.0, "test")])
    write(folder, "CHEMBL2971_Ki", [("OC", 2.0, "test"), ("CCCCCN", 4.0, "test"), ("CCCCCCN", 4.0, "train")])
    return MoleculeTargets(path=str(folder), targets=("JAK1_Ki", "JAK2_Ki"), batch_size=8, bits=256)


def test_a_molecule_with_a_test_label_is_in_the_test_split_with_all_its_labels(tmp_path):
    problem = two_targets(tmp_path)
    splits, found = problem.splits(), problem.molecules()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [28, 3, 3]
    tested = {found.smiles.index(smiles) for smiles in ("CO", "CCCN", "CCCCCN")}
    wanted = {tuple(found.fingerprints[i].tolist()) for i in tested}
    assert {tuple(row.tolist()) for row in splits.test.inputs} == wanted
    assert splits.test.labelled["JAK1_Ki"].sum() == 2
    assert splits.test.labelled["JAK2_Ki"].sum() == 2


def test_rows_of_one_molecule_are_averaged(tmp_path):
    found = two_targets(tmp_path).molecules()
    assert found.labels[found.smiles.index("CCN")].tolist()[0] == -2
    assert found.labels[found.smiles.index("CO")].tolist() == [1, 2]


def test_labels_are_centred_by_the_training_molecules(tmp_path):
    problem = two_targets(tmp_path)
    splits, found = problem.splits(), problem.molecules()
    labels = splits.train.targets["JAK1_Ki"][splits.train.labelled["JAK1_Ki"]]
    assert_close(labels.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    tested = splits.test.targets["JAK1_Ki"][splits.test.labelled["JAK1_Ki"]]
    wanted = [found.labels[found.smiles.index(smiles), 0] for smiles in ("CCCN", "CO")]
    assert_close(tested.max() - tested.min(), wanted[0] - wanted[1])


@needs_files
def test_the_tree_holds_every_target_once():
    problem = MoleculeTargets()
    names = [task.name for task in problem.tasks]
    assert len(set(names)) == 30
    assert len(set(molecules._FILES.values())) == 30
    groups = tasks_by_group(problem.groups, names)
    assert sorted(name for path, group in groups.items() if "/" not in path for name in group) == sorted(names)
    assert problem._folder().is_dir()
    assert {path.stem for path in problem._folder().glob("*.csv")} == set(molecules._FILES.values())
    assert MoleculeTargets(targets=KINASES).groups == {"kinases": {"tyrosine": KINASES[:3], "others": KINASES[3:]}}


@needs_files
def test_targets_have_labels_in_every_split_and_no_molecule_is_in_two():
    problem = MoleculeTargets(targets=KINASES)
    splits, found = problem.splits(), problem.molecules()
    assert len(set(found.smiles)) == len(found.smiles) == sum(map(len, (splits.train, splits.validation, splits.test)))
    for part in (splits.train, splits.validation, splits.test):
        assert all(there.sum() > 20 for there in part.labelled.values())
    rows = sum(
        int(there.sum()) for part in (splits.train, splits.validation, splits.test) for there in part.labelled.values()
    )
    assert rows == 794 + 615 + 976 + 731


@needs_files
@pytest.mark.parametrize(
    ("method", "capacity"),
    [*itertools.product(("equal", "gradnorm", "uncertainty"), ("small", "large")), ("nested", "small")],
)
def test_it_trains(method, capacity):
    problem = MoleculeTargets(targets=KINASES, capacity=capacity)
    record = run(problem, specify(problem, Method(method), 0, steps=2))
    assert [task.name for task in record.tasks] == [task.name for task in problem.tasks]
    assert all(record.test.more_metrics[name]["RMSE"][-1] > 0 for name in KINASES)


@needs_files
def test_it_learns_more_than_a_constant():
    problem = MoleculeTargets(targets=KINASES)
    record = run(problem, specify(problem, Method("equal"), 0, steps=150))
    assert all(max(record.test.metrics[name]) > 0.1 for name in ("ABL1_Ki", "JAK1_Ki", "JAK2_Ki"))


def test_files_that_are_missing_are_named_with_the_remedy(tmp_path, monkeypatch):
    remedy = r"pip install --no-deps MoleculeACE==3\.0\.0"
    with pytest.raises(FileNotFoundError, match=rf"task 'HTR1A_Ki': there is no file CHEMBL214_Ki.csv in .*{remedy}"):
        MoleculeTargets(path=str(tmp_path)).splits()

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(molecules.metadata, "distribution", nothing)
    with pytest.raises(FileNotFoundError, match=rf"the files of the package MoleculeACE are missing: {remedy}"):
        MoleculeTargets().splits()


def test_a_file_of_another_form_and_an_unknown_target_are_refused(tmp_path):
    (tmp_path / "CHEMBL2835_Ki.csv").write_text("smiles,value\nCCO,1\n")
    with pytest.raises(
        ValueError, match=r"CHEMBL2835_Ki.csv: wanted the columns smiles, y and split; missing y, split"
    ):
        MoleculeTargets(path=str(tmp_path), targets=("JAK1_Ki",)).splits()
    with pytest.raises(ValueError, match="targets: unknown target 'JAK3_Ki'; known: HTR1A_Ki"):
        MoleculeTargets(targets=("JAK3_Ki",))
