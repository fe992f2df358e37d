"""Affinities to thirty proteins in a tree of families: flat against nested balancing on biological data.

Budget: 108 runs of 250 steps at 8 s, 15 minutes on one core. A larger machine would add single-task training, more trials and
steps, and the five baselines that `tox21` has beside these.
"""

from equipoise.lab import Range, Study, load_problem
from equipoise.lab.studies.baselines import baselines, nested

BASELINES = ("equal", "1 / L(0)", "uncertainty from log L(0)", "GradNorm", "closed form, balanced", "tuned static")

study = Study(
    title="Affinities of molecules to thirty proteins in a tree of families",
    expectation=(
        "All losses are in the same unit and within a factor of five; nine labels in ten are missing. No method is "
        "ahead of equal weights by more than 3 % of the task-normalised test loss; flat and nested balancing are level; "
        "static weights from seven trials are no better than equal ones. Written before the first runs, which had twelve "
        "of the proteins."
    ),
    problems=[load_problem("molecules", {"batch_size": 256})],
    methods=[*(each for each in baselines(epoch_steps=80, decades=1) if each.label in BASELINES), *nested()],
    space={"learning_rate": Range(3e-4, 3e-2, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103, 104],
    steps=250,
    sampler="sobol",
)
