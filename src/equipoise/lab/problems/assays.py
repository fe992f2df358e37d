"""The common part of Tox21 and ToxCast: binary assays in a file of MoleculeNet's form."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.utilities.data import dim_zero_cat

from equipoise.lab.extra import require
from equipoise.lab.problem import Splits, Task
from equipoise.lab.problems.data_folder import VARIABLE, data_folder
from equipoise.lab.problems.molecular import MolecularProblem, Molecules, distinct, split_of

_REPOSITORY = "https://raw.githubusercontent.com/deepchem/deepchem/fbe3b911a94a6eb8c84c1a9e7ac67a472c49ea80/"
_SHARES = (0.8, 0.1)


@dataclass(frozen=True, kw_only=True)
class Assays(MolecularProblem, ABC):
    """Is a molecule active in an assay? Binary cross entropy; area under the ROC curve, and average precision.

    Attributes:
        path: A csv or csv.gz file with the columns ``smiles`` and one per assay, 1 for active, 0 for inactive, empty for not
            measured. None: the file of the same name in the folder that the environment variable ``EQUIPOISE_DATA`` names,
            or in the user's cache, where it is fetched to once, with its digest checked.
    """

    path: str | None = None
    file: ClassVar[str]
    sha256: ClassVar[str]
    source: ClassVar[str]

    def splits(self) -> Splits:
        """Split the molecules at random: 80 % for training, 10 % for validation, 10 % for test.

        Raises:
            ValueError: A split has only one kind of label for an assay.
        """
        molecules = self.molecules()
        order = self.permutation(len(molecules.smiles))
        parts = parts_of(order)
        for name, column in zip(molecules.names, molecules.labels.unbind(1), strict=True):
            if fewest(column, parts) == 0:
                raise ValueError(f"split_seed={self.split_seed}: a split has only one kind of label for task {name!r}")
        return Splits(*(split_of(molecules, part, torch.long) for part in parts))

    def located(self) -> Path:
        """The file.

        Raises:
            FileNotFoundError: There is none, and it could not be fetched.
        """
        if self.path is None:
            return _fetched(self.file, _REPOSITORY + self.source, self.sha256)
        path = Path(self.path)
        if not path.is_file():
            raise FileNotFoundError(f"path: there is no file {str(path)!r}")
        return path


class AUROC(BinaryAUROC):
    """Area under the ROC curve; NaN where all labels are of one kind, as in a part of the training molecules."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(validate_args=False, **kwargs)

    def compute(self) -> Tensor:  # type: ignore[override]
        """The area, without unit."""
        return super().compute() if _both_kinds(self.target) else torch.tensor(torch.nan)


class AveragePrecision(BinaryAveragePrecision):
    """Average precision; NaN where all labels are of one kind."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(validate_args=False, **kwargs)

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean precision, without unit."""
        return super().compute() if _both_kinds(self.target) else torch.tensor(torch.nan)


def parts_of(order: Tensor) -> list[Tensor]:
    """The molecules of the three splits, from all in their order."""
    first, second = (round(share * len(order)) for share in _SHARES)
    return list(torch.split(order, [first, second, len(order) - first - second]))


def fewest(labels: Tensor, parts: Sequence[Tensor]) -> int:
    """The number of labels of the rarer kind in the split that has the fewest."""
    return min(int((labels[part] == kind).sum()) for part in parts for kind in (0, 1))


def assay(name: str) -> Task:
    """The task of an assay."""
    return Task(
        name,
        _cross_entropy,
        AUROC,
        "classification",
        more_metrics={"average precision": AveragePrecision},
    )


def _both_kinds(labels: Tensor | list[Tensor]) -> bool:
    joined = dim_zero_cat(labels)
    return bool(joined.min() != joined.max())


@cache
def read(path: Path, assays: tuple[str, ...] | None, radius: int, bits: int) -> Molecules:
    """The molecules of a file of MoleculeNet's form, with the labels of some assays.

    Args:
        path: The file.
        assays: Names of columns; None: all but ``smiles`` and ``mol_id``.
        radius: Radius of the Morgan fingerprint.
        bits: Its length.

    Raises:
        ValueError: A column is missing, or a label is neither 0 nor 1.
    """
    table = require("pandas", extra="data").read_csv(path)
    names = tuple(name for name in table.columns if name not in ("smiles", "mol_id")) if assays is None else assays
    missing = [name for name in ("smiles", *names) if name not in table.columns]
    if missing or not names:
        raise ValueError(
            f"{path}: wanted the columns smiles and one per assay; missing {', '.join(missing) or 'assays'}"
        )
    try:
        labels = table[list(names)].to_numpy(dtype=float)
    except ValueError as error:
        raise ValueError(f"{path}: wanted labels 0, 1 or nothing; {error}") from None
    wrong = ~((labels == 0) | (labels == 1) | (labels != labels))
    if wrong.any():
        raise ValueError(f"{path}: wanted labels 0, 1 or nothing; found {labels[wrong][0]:g}")
    return distinct(str(path), names, table["smiles"].tolist(), labels, radius=radius, bits=bits, merge="agree")


def _fetched(file: str, source: str, sha256: str) -> Path:
    pooch, folder = require("pooch", extra="data"), data_folder()
    try:
        return Path(pooch.retrieve(source, f"sha256:{sha256}", fname=file, path=folder))
    except OSError as error:
        raise FileNotFoundError(
            f"{file} is not in {folder} and could not be fetched ({type(error).__name__}). Get it from {source} and put it "
            f"there, or name it with the setting path, or name its folder with the environment variable {VARIABLE}"
        ) from error


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
