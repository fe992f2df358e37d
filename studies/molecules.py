"""Affinities to twelve proteins of three families: flat against nested balancing on biological data.

Budget: 81 runs of 300 steps at 6 s, 8 minutes on one core. Twelve of the thirty targets, two from each of six branches of
the tree; a larger machine would add the other eighteen, single-task training, more trials and steps, and the five baselines
that `tox21` has beside these.
"""

from equipoise.lab import Range, Study, load_problem
from equipoise.lab.studies.baselines import baselines, nested

BASELINES = ("equal", "1 / L(0)", "uncertainty from log L(0)", "GradNorm", "closed form, balanced", "tuned static")
TARGETS = (
    "HTR1A_Ki",
    "DRD3_Ki",
    "OPRM1_Ki",
    "OPRD1_Ki",
    "PPARA_EC50",
    "PPARG_EC50",
    "AR_Ki",
    "NR3C1_Ki",
    "ABL1_Ki",
    "JAK2_Ki",
    "PIM1_Ki",
    "CLK4_Ki",
)

study = Study(
    title="Affinities of molecules to twelve proteins in three families",
    expectation=(
        "All losses are in the same unit and within a factor of five; nine labels in ten are missing. No method is "
        "ahead of equal weights by more than 3 % of the task-normalised test loss; flat and nested balancing are level; "
        "static weights from four trials are no better than equal ones."
    ),
    problems=[load_problem("molecules", {"targets": TARGETS, "batch_size": 128})],
    methods=[*(each for each in baselines(epoch_steps=95, decades=1) if each.label in BASELINES), *nested()],
    space={"learning_rate": Range(3e-4, 3e-2, log=True)},
    trials=4,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103, 104],
    steps=300,
    search_seed=7,
)
