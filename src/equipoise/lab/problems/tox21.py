"""Twelve assays of toxicity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from equipoise.lab.groups import Groups
from equipoise.lab.problem import Task
from equipoise.lab.problems.assays import Assays, assay, read
from equipoise.lab.problems.molecular import Molecules

_NUCLEAR = {
    "AR": ("NR-AR", "NR-AR-LBD"),
    "ER": ("NR-ER", "NR-ER-LBD"),
    "others": ("NR-AhR", "NR-Aromatase", "NR-PPAR-gamma"),
}
_STRESS = ("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53")


@dataclass(frozen=True, kw_only=True)
class Tox21(Assays):
    """Is a molecule active in one of the twelve assays of the Tox21 challenge? Most are not, and not all were measured.

    The file is that of MoleculeNet in DeepChem's repository, which is under the MIT licence; the measurements are those of US
    agencies (EPA, NIH, FDA), without a licence text. Its 8014 rows are about 7800 molecules; from 7 to 26 % of a task's
    labels are missing. Rows with the same canonical SMILES are one molecule, whose label is missing where they contradict each
    other; the few rows that RDKit cannot read are left out. A random permutation splits the molecules into 80 % for
    training, 10 % for validation and 10 % for test.

    Groups: assays of nuclear receptors (NR), among them the androgen (AR) and the estrogen receptor (ER), each as a whole and
    its ligand binding domain (LBD), and assays of the response to stress (SR).

    References:
        Huang et al. 2016, "Tox21Challenge to build predictive models of nuclear receptor and stress response pathways",
        Frontiers in Environmental Science 3:85. Wu et al. 2018, "MoleculeNet", Chemical Science 9:513.
    """

    evaluations: ClassVar[int] = 8

    steps: int = 600
    file: ClassVar[str] = "tox21.csv.gz"
    sha256: ClassVar[str] = "48b34e4e59a2bae6f95734cd206c1869ab355f50a5e50bb7371a21f861d5e297"
    source: ClassVar[str] = "datasets/tox21.csv.gz"

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One binary task per assay."""
        nuclear = [name for names in _NUCLEAR.values() for name in names]
        return tuple(assay(name) for name in (*sorted(nuclear), *_STRESS))

    @property
    def groups(self) -> Groups:
        """Nuclear receptors and stress response."""
        return {"NR": _NUCLEAR, "SR": _STRESS}

    def molecules(self) -> Molecules:
        """The molecules with their labels."""
        return read(self.located(), tuple(task.name for task in self.tasks), self.radius, self.bits)
