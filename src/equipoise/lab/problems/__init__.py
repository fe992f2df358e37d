"""The problems of the lab, by the name that the command line knows them by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from equipoise.lab.problem import Problem

_CLASSES = {
    "toy": "Toy",
    "groups": "TaskGroups",
    "hierarchy": "TaskTree",
    "conflict": "Conflict",
    "unequal": "UnequalTasks",
    "pinn": "Helmholtz",
    "yeast": "Yeast",
    "multimnist": "MultiMNIST",
    "tox21": "Tox21",
    "toxcast": "ToxCast",
    "molecules": "MoleculeTargets",
    "rooms": "Rooms",
    "nyuv2": "NYUv2",
}
"""The class of each problem. It is in the module of the problem's name, which is imported when it is asked for."""


class _Problems(Mapping[str, type[Problem]]):
    def __getitem__(self, name: str) -> type[Problem]:
        cls = _CLASSES[name]
        found: type[Problem] = getattr(import_module(f"{__name__}.{name}"), cls)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES


PROBLEMS: Mapping[str, type[Problem]] = _Problems()
"""Every problem that comes with the library, by name."""
