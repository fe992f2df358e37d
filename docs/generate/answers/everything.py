"""The problems of all studies that have the shared methods, by their names on the pages."""

from __future__ import annotations

from equipoise.lab.results.comparison import Comparison

from .records import results

EQUAL = "equal"
ONE_LINERS = ("1 / L(0)", "1 / loss variance", "CoV", "DWA", "FAMO", "uncertainty", "uncertainty from log L(0)")
OTHERS = ("GradNorm", "closed form, balanced", "tuned static")
REAL = ("yeast", "tox21", "toxcast", "molecules", "multimnist", "pinn", "rooms")
"""Studies of problems on data, and of the physics-informed network."""
GENERATED = ("groups", "hierarchy")
"""Studies of generated problems that are not the toy."""
NETWORKS = {"segnet": "SegNet", "resnet_fcn": "ResNet FCN", "segformer": "SegFormer"}


def of(*studies: str) -> dict[str, Comparison]:
    """The problems of some studies by their names; dense ones with their network."""
    found = {}
    for study in studies:
        for result in results(study):
            backbone = result.comparison.spec.problem_settings.get("backbone")
            found[f"{study} ({NETWORKS[backbone]})" if backbone else study] = result.comparison
    return found
