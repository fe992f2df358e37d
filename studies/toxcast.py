"""Twenty-one assays of three platforms: flat against nested balancing, with groups of unequal size.

Budget: 108 runs of 200 steps at 5 s, 9 minutes on one core. Three of twelve platforms, with 2, 4 and 15 assays; a larger
machine would add the others, single-task training, more trials and steps, and the five baselines that `tox21` has beside these.
"""

from equipoise.lab import Range, Study, load_problem
from equipoise.lab.studies.baselines import baselines, nested

BASELINES = ("equal", "1 / L(0)", "uncertainty from log L(0)", "GradNorm", "closed form, balanced", "tuned static")

study = Study(
    title="ToxCast: twenty-one assays of three platforms",
    expectation=(
        "Losses are of one size, and most labels are missing. No method is ahead of equal weights by more than 2 % of "
        "the task-normalised test loss. Nested balancing gives the two small groups the weight of the large one, and is "
        "no better than flat: it is level or a little behind, since the mean is over assays and not over platforms."
    ),
    problems=[load_problem("toxcast", {"platforms": ("ACEA", "NCCT", "OT")})],
    methods=[*(each for each in baselines(epoch_steps=54, decades=1) if each.label in BASELINES), *nested()],
    space={"learning_rate": Range(3e-4, 3e-2, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103, 104],
    steps=200,
    sampler="sobol",
)
