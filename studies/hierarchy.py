"""A tree of tasks of depth three: flat against nested balancing.

Budget: 180 runs of 600 steps at 6 s, 18 minutes on one core. Runs end before they converge; a larger machine would add 4000
steps, deeper trees and more trials.
"""

from equipoise.lab import Candidate, Range, Study, load_problem
from equipoise.lab.studies.baselines import baselines, nested

study = Study(
    title="Eight regressions at the leaves of a tree, with scales 1 and 10 for each pair",
    expectation=(
        "As with groups: methods that take the scale off are ahead of equal weights in the task-normalised test loss. "
        "The closed form is level whether it is flat or nested at all levels; nested with equal weights below the root "
        "is level with equal weights, as the scales differ at the lowest level alone."
    ),
    problems=[load_problem("hierarchy", {})],
    methods=[
        *baselines(epoch_steps=40, decades=3),
        *nested(),
        Candidate("nested", {"root": "gradnorm", "groups": "gradnorm"}, label="nested: GradNorm at both"),
    ],
    space={"learning_rate": Range(1e-3, 1e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103, 104],
    steps=600,
    sampler="sobol",
)
