"""Hundreds of assays of toxicity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch

from equipoise.lab.groups import Groups
from equipoise.lab.problem import Task
from equipoise.lab.problems.assays import Assays, assay, fewest, parts_of, read
from equipoise.lab.problems.molecular import Molecules
from equipoise.lab.settings import unknown


@dataclass(frozen=True, kw_only=True)
class ToxCast(Assays):
    """Is a molecule active in one of hundreds of assays? One head each; 71 % of the labels are missing.

    The file is that of MoleculeNet in DeepChem's repository, which is under the MIT licence, with 8615 rows and 617 assays;
    the measurements are those of the US EPA's ToxCast programme, which are public. Molecules are merged and split as in
    `Tox21`. An assay of which a split has fewer than ``least_labels`` active or inactive molecules is left out: nothing
    can be said about it.

    The first part of an assay's name is the platform that measured it: ACEA, APR, ATG, BSK, CEETOX, CLD, NCCT, NHEERL, NVS, OT,
    TOX21 or Tanguay. Platforms are the groups.

    Attributes:
        platforms: The platforms whose assays are the tasks. None: all.
        least_labels: Molecules of either kind that each split must have for an assay.

    References:
        Richard et al. 2016, "ToxCast chemical landscape", Chemical Research in Toxicology 29:1225. Wu et al. 2018,
        "MoleculeNet", Chemical Science 9:513.
    """

    evaluations: ClassVar[int] = 4

    steps: int = 300
    platforms: tuple[str, ...] | None = None
    least_labels: int = 3
    tasks_from_data: ClassVar[bool] = True
    file: ClassVar[str] = "toxcast_data.csv.gz"
    sha256: ClassVar[str] = "56041515e0bb63c1787a26ecdbeb2bd7ae1f538681caa1b03f768853cf81b1a7"
    source: ClassVar[str] = "examples/toxcast/processing/toxcast_data.csv.gz"

    def __post_init__(self) -> None:
        if self.least_labels < 1:
            raise ValueError(f"least_labels: wanted at least 1, found {self.least_labels}")

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One binary task per assay that every split has labels of both kinds for."""
        return tuple(assay(name) for name in self.molecules().names)

    @property
    def groups(self) -> Groups:
        """The assays of each platform."""
        names = self.molecules().names
        return {
            platform: tuple(name for name in names if _platform(name) == platform)
            for platform in sorted({_platform(name) for name in names})
        }

    def molecules(self) -> Molecules:
        """The molecules with the labels of the chosen assays.

        Raises:
            ValueError: A platform is unknown, or no assay has enough labels.
        """
        return _chosen(self.located(), self.radius, self.bits, self.platforms, self.least_labels, self.split_seed)


@cache
def _chosen(
    path: Path, radius: int, bits: int, platforms: Sequence[str] | None, least_labels: int, split_seed: int
) -> Molecules:
    """The molecules with the labels of the assays of some platforms that have enough of them in every split."""
    molecules = read(path, None, radius, bits)
    known = sorted({_platform(name) for name in molecules.names})
    for platform in platforms or ():
        if platform not in known:
            raise ValueError(f"platforms: {unknown('platform', platform, known)}")
    order = torch.randperm(len(molecules.smiles), generator=torch.Generator().manual_seed(split_seed))
    parts = parts_of(order)
    columns = [
        i
        for i, name in enumerate(molecules.names)
        if (platforms is None or _platform(name) in platforms) and fewest(molecules.labels[:, i], parts) >= least_labels
    ]
    if not columns:
        raise ValueError(
            f"platforms={platforms}: no assay has least_labels={least_labels} of both kinds in every split"
        )
    return replace(
        molecules, names=tuple(molecules.names[i] for i in columns), labels=molecules.labels[:, columns].contiguous()
    )


def _platform(name: str) -> str:
    return name.split("_")[0]
