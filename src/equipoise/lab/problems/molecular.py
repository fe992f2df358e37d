"""The common part of the problems on molecules: distinct molecules, fingerprints, splits, the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.lab.extra import require
from equipoise.lab.problem import Problem, Split, Task

_WIDTHS = {"small": (256, 64), "large": (1024, 512)}
_UNREADABLE = 0.01


@dataclass(frozen=True)
class Molecules:
    """Distinct molecules with the labels of several tasks.

    Attributes:
        names: The names of the tasks.
        fingerprints: Bits ``(N, bits)``.
        labels: Labels ``(N, T)``, NaN where there is none.
        smiles: The canonical SMILES of every molecule.
    """

    names: tuple[str, ...]
    fingerprints: Tensor
    labels: Tensor
    smiles: tuple[str, ...]


def distinct(
    source: str,
    names: Sequence[str],
    smiles: Sequence[str],
    labels: NDArray[np.floating[Any]],
    *,
    radius: int,
    bits: int,
    merge: Literal["agree", "mean"],
) -> Molecules:
    """Fingerprints of the distinct molecules among some rows.

    Rows with one canonical SMILES are one molecule. Rows that RDKit cannot read are left out.

    Args:
        source: Where the rows are from, for messages.
        names: The names of the tasks.
        smiles: The SMILES of every row.
        labels: Labels ``(rows, T)``, NaN where there is none.
        radius: Radius of the Morgan fingerprint in bonds.
        bits: Its length.
        merge: A molecule's label is the one that its rows agree on (none if they do not), or the mean of its rows'.

    Raises:
        ValueError: RDKit cannot read more than one row in a hundred.
    """
    chem, rdbase = require("rdkit.Chem", extra="data"), require("rdkit.rdBase", extra="data")
    generators = require("rdkit.Chem.rdFingerprintGenerator", extra="data")
    generator = generators.GetMorganGenerator(radius=radius, fpSize=bits)
    number: dict[str, int] = {}
    rows: list[int] = []
    prints: list[NDArray[np.uint8]] = []
    unreadable: list[str] = []
    with rdbase.BlockLogs():
        for text in smiles:
            molecule = chem.MolFromSmiles(str(text))
            if molecule is None or molecule.GetNumAtoms() == 0:
                unreadable.append(str(text))
                rows.append(-1)
                continue
            canonical = chem.MolToSmiles(molecule)
            if canonical not in number:
                number[canonical] = len(number)
                prints.append(generator.GetFingerprintAsNumPy(molecule))
            rows.append(number[canonical])
    if len(unreadable) > _UNREADABLE * len(smiles):
        raise ValueError(
            f"{source}: RDKit cannot read {len(unreadable)} of {len(smiles)} SMILES, the first of them {unreadable[0]!r}"
        )
    merged = _merged(np.array(rows), labels, len(number), merge)
    bitwise = torch.from_numpy(np.stack(prints)).float()
    return Molecules(tuple(names), bitwise, torch.from_numpy(merged).float(), tuple(number))


def _merged(
    rows: NDArray[np.intp], labels: NDArray[np.floating[Any]], count: int, merge: Literal["agree", "mean"]
) -> NDArray[np.floating[Any]]:
    """The labels ``(count, T)`` of molecules from those of their rows."""
    known = (~np.isnan(labels)) & (rows >= 0)[:, None]
    sums, counts = np.zeros((count, labels.shape[1])), np.zeros((count, labels.shape[1]))
    readable = rows >= 0
    np.add.at(sums, rows[readable], np.where(known, labels, 0)[readable])
    np.add.at(counts, rows[readable], known[readable])
    with np.errstate(invalid="ignore"):
        means = sums / counts  # NaN where there is no label
    return means if merge == "mean" else np.where(np.isin(means, (0, 1)), means, np.nan)


@dataclass(frozen=True, kw_only=True)
class MolecularProblem(Problem, ABC):
    """Tasks on molecules, which are given as Morgan fingerprints. Every group of tasks has a layer of its own.

    Attributes:
        radius: Radius of the fingerprint in bonds.
        bits: Length of the fingerprint.
        capacity: Widths of the trunk's only layer and of the last shared layer: 256 and 64, or 1024 and 512.
        dropout: Share of the trunk's outputs that are set to 0 in training.
        split_seed: Seed of the permutation that splits the molecules.
    """

    radius: int = 2
    bits: int = 1024
    capacity: Literal["small", "large"] = "small"
    dropout: float = 0.2
    split_seed: int = 0

    @abstractmethod
    def molecules(self) -> Molecules:
        """All molecules, read once in a process."""

    def trunk(self) -> nn.Module:
        """A linear layer with ReLU and dropout."""
        return nn.Sequential(nn.Linear(self.bits, _WIDTHS[self.capacity][0]), nn.ReLU(), nn.Dropout(self.dropout))

    def shared_layer(self) -> nn.Module:
        """A linear layer."""
        return nn.Linear(*_WIDTHS[self.capacity])

    def branch(self, group: str) -> nn.Module:
        """ReLU and a linear layer."""
        return nn.Sequential(nn.ReLU(), nn.Linear(_WIDTHS[self.capacity][1], _WIDTHS[self.capacity][1]))

    def head(self, task: Task) -> nn.Module:
        """ReLU and a linear layer with one output ``(B,)``."""
        return nn.Sequential(nn.ReLU(), nn.Linear(_WIDTHS[self.capacity][1], 1), nn.Flatten(0))

    def permutation(self, count: int) -> Tensor:
        """The order ``(count,)`` in which molecules are split."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.split_seed))


def split_of(molecules: Molecules, rows: Tensor, dtype: torch.dtype) -> Split:
    """Some molecules with the labels that they have.

    Args:
        molecules: All molecules.
        rows: The numbers ``(B,)`` of some.
        dtype: Type of the targets.
    """
    labels = molecules.labels[rows].T.contiguous()
    there = ~labels.isnan()
    targets = torch.where(there, labels, 0).to(dtype)
    return Split(
        molecules.fingerprints[rows],
        dict(zip(molecules.names, targets, strict=True)),
        dict(zip(molecules.names, there, strict=True)),
    )
