"""Affinities of molecules to thirty targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanSquaredError, R2Score

from equipoise.lab.extra import require
from equipoise.lab.groups import Groups
from equipoise.lab.problem import Splits, Task
from equipoise.lab.problems.molecular import MolecularProblem, Molecules, distinct, split_of

_FAMILIES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "GPCR": {
        "aminergic": {
            "HTR1A_Ki": "CHEMBL214_Ki",
            "DRD3_Ki": "CHEMBL234_Ki",
            "DRD4_Ki": "CHEMBL219_Ki",
            "HRH1_Ki": "CHEMBL231_Ki",
            "HRH3_Ki": "CHEMBL264_Ki",
        },
        "opioid": {
            "OPRD1_Ki": "CHEMBL236_Ki",
            "OPRK1_Ki": "CHEMBL237_Ki",
            "OPRK1_EC50": "CHEMBL237_EC50",
            "OPRM1_Ki": "CHEMBL233_Ki",
        },
        "others": {
            "CNR1_EC50": "CHEMBL218_EC50",
            "GHSR_EC50": "CHEMBL4616_EC50",
            "HCRTR2_Ki": "CHEMBL4792_Ki",
        },
    },
    "nuclear receptors": {
        "PPAR": {
            "PPARA_EC50": "CHEMBL239_EC50",
            "PPARD_EC50": "CHEMBL3979_EC50",
            "PPARG_EC50": "CHEMBL235_EC50",
        },
        "others": {"AR_Ki": "CHEMBL1871_Ki", "NR3C1_Ki": "CHEMBL2034_Ki", "NR1H4_EC50": "CHEMBL2047_EC50"},
    },
    "kinases": {
        "tyrosine": {"ABL1_Ki": "CHEMBL1862_Ki", "JAK1_Ki": "CHEMBL2835_Ki", "JAK2_Ki": "CHEMBL2971_Ki"},
        "others": {
            "PIM1_Ki": "CHEMBL2147_Ki",
            "GSK3B_Ki": "CHEMBL262_Ki",
            "CLK4_Ki": "CHEMBL4203_Ki",
            "PIK3CA_Ki": "CHEMBL4005_Ki",
        },
    },
    "others": {
        "proteases": {"F2_Ki": "CHEMBL204_Ki", "F10_Ki": "CHEMBL244_Ki"},
        "transporters and sigma-1": {
            "SLC6A3_Ki": "CHEMBL238_Ki",
            "SLC6A4_Ki": "CHEMBL228_Ki",
            "SIGMAR1_Ki": "CHEMBL287_Ki",
        },
    },
}
_FILES = {
    task: file for families in _FAMILIES.values() for targets in families.values() for task, file in targets.items()
}
_INSTALL = "pip install --no-deps MoleculeACE==3.0.0"


@dataclass(frozen=True, kw_only=True)
class MoleculeTargets(MolecularProblem):
    """How strongly does a molecule act on thirty protein targets? Regressions in a tree of protein families.

    The files are those of the benchmark MoleculeACE (MIT licence), curated from ChEMBL (CC BY-SA 3.0): 48,707 affinities
    (Ki) or potencies (EC50) of some 35,600 molecules, so that 95 % of the labels are missing. A task is the gene of the
    target and the quantity, such as ``DRD3_Ki``; the tree is ChEMBL's classification of targets, with targets alone in their
    branch under "others".

    The label is the negative decimal logarithm of the concentration, less its mean over the task's training molecules. A
    molecule that MoleculeACE has in the test part of any target is in the test split with all its labels; a tenth of the
    others, at random, are for validation.

    Attributes:
        path: The folder with the files, such as ``CHEMBL214_Ki.csv``. None: that inside the installed package MoleculeACE,
            which is not imported: ``pip install --no-deps MoleculeACE==3.0.0``.
        targets: The tasks. None: all.

    Units:
        Loss in squares of decimal logarithms of a concentration; R2 has no unit and is 0 for a constant at the mean.

    References:
        van Tilborg, Alenicheva and Grisoni 2022, "Exposing the limitations of molecular machine learning with activity
        cliffs", Journal of Chemical Information and Modeling 62:5938. Families: Mendez et al. 2019, "ChEMBL: towards direct
        deposition of bioassay data", Nucleic Acids Research 47:D930, and its protein target classification.
    """

    evaluations: ClassVar[int] = 8

    steps: int = 1500
    batch_size: int = 256
    path: str | None = None
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in self.targets or ():
            if name not in _FILES:
                raise ValueError(f"targets: unknown target {name!r}; known: {', '.join(_FILES)}")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One regression per target."""
        return tuple(_task(name) for name in _FILES if self.targets is None or name in self.targets)

    @property
    def groups(self) -> Groups:
        """The families of the targets, without those of which no target is a task."""
        chosen = {task.name for task in self.tasks}
        tree = {
            family: {branch: tuple(name for name in names if name in chosen) for branch, names in branches.items()}
            for family, branches in _FAMILIES.items()
        }
        kept = {family: {name: leaves for name, leaves in branch.items() if leaves} for family, branch in tree.items()}
        return {family: branch for family, branch in kept.items() if branch}

    def splits(self) -> Splits:
        """MoleculeACE's test molecules, and the others at random."""
        molecules, tested = _read(self._folder(), tuple(task.name for task in self.tasks), self.radius, self.bits)
        order = self.permutation(len(tested))
        rest = order[~tested[order]]
        parts = [*rest.split([len(rest) - len(rest) // 10, len(rest) // 10]), order[tested[order]]]
        means = molecules.labels[parts[0]].nanmean(0)
        centred = replace(molecules, labels=molecules.labels - means)
        return Splits(*(split_of(centred, part, torch.float32) for part in parts))

    def molecules(self) -> Molecules:
        """The molecules with their labels."""
        return _read(self._folder(), tuple(task.name for task in self.tasks), self.radius, self.bits)[0]

    def _folder(self) -> Path:
        folder = Path(self.path) if self.path is not None else _installed()
        for task in self.tasks:
            if not (folder / f"{_FILES[task.name]}.csv").is_file():
                raise FileNotFoundError(
                    f"task {task.name!r}: there is no file {_FILES[task.name]}.csv in {folder}; get it with {_INSTALL}, or "
                    "name its folder with the setting path"
                )
        return folder


def _task(name: str) -> Task:
    return Task(name, functional.mse_loss, R2Score, "regression", more_metrics={"RMSE": _root_mean_squared_error})


def _root_mean_squared_error() -> MeanSquaredError:
    return MeanSquaredError(squared=False)


def _installed() -> Path:
    """The folder with the files inside the installed package."""
    try:
        package = metadata.distribution("MoleculeACE")
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"the files of the package MoleculeACE are missing: {_INSTALL}, or name their folder with the setting path"
        ) from None
    return Path(str(package.locate_file("MoleculeACE/Data/benchmark_data")))


@cache
def _read(folder: Path, names: tuple[str, ...], radius: int, bits: int) -> tuple[Molecules, Tensor]:
    """The molecules with the labels of some tasks, and which are in the test part of any ``(N,)``."""
    rows = list(_rows(folder, names))
    labels = np.full((len(rows), len(names) + 1), np.nan)
    for i, (_, column, label, tested) in enumerate(rows):
        labels[i, column] = label
        labels[i, -1] = tested
    smiles = [row[0] for row in rows]
    found = distinct(str(folder), (*names, ""), smiles, labels, radius=radius, bits=bits, merge="mean")
    return replace(found, names=names, labels=found.labels[:, :-1].contiguous()), found.labels[:, -1] > 0


def _rows(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, int, float, bool]]:
    """SMILES, number of the task, label, and whether it is in the test part, of every row of the files."""
    for column, name in enumerate(names):
        path = folder / f"{_FILES[name]}.csv"
        table = require("pandas", extra="data").read_csv(path)
        missing = [wanted for wanted in ("smiles", "y", "split") if wanted not in table.columns]
        if missing:
            raise ValueError(f"{path}: wanted the columns smiles, y and split; missing {', '.join(missing)}")
        for smiles, label, part in zip(table["smiles"], table["y"], table["split"], strict=True):
            yield str(smiles), column, float(label), part == "test"
