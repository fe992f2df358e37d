"""The problems of all studies that have the shared methods, by their names on the pages."""

from __future__ import annotations

from equipoise.lab.results.comparison import Comparison

from .records import is_there, results

EQUAL = "equal"
ONE_LINERS = ("1 / L(0)", "1 / loss variance", "CoV", "DWA", "FAMO", "uncertainty", "uncertainty from log L(0)")
OTHERS = ("GradNorm", "closed form, balanced", "tuned static")
REAL = ("yeast", "tox21", "toxcast", "molecules", "multimnist", "pinn", "rooms")
"""Studies of problems on data, and of the physics-informed network."""
GENERATED = ("toy_two", "toy_ten", "toy_sgd", "toy_sgd_ten", "toy_full", "toy_full_sgd", "toy_full_ten")
GENERATED += ("groups", "hierarchy")
"""Studies of generated problems."""
NAMES = {
    "toy_two": "toy (2 tasks)",
    "toy_ten": "toy (10 tasks)",
    "toy_sgd": "toy (2 tasks, SGD)",
    "toy_sgd_ten": "toy (10 tasks, SGD)",
    "toy_full": "toy (2 tasks, full size)",
    "toy_full_sgd": "toy (2 tasks, full size, SGD)",
    "toy_full_ten": "toy (10 tasks, full size)",
}
NETWORKS = {"segnet": "SegNet", "resnet_fcn": "ResNet FCN", "segformer": "SegFormer"}


def of(*studies: str) -> dict[str, Comparison]:
    """The problems of those studies that have records, by their names; dense ones with their network."""
    found = {}
    for study in filter(is_there, studies):
        for result in results(study):
            backbone = result.comparison.spec.problem_settings.get("backbone")
            name = NAMES.get(study, study)
            found[f"{name} ({NETWORKS[backbone]})" if backbone else name] = result.comparison
    return found
