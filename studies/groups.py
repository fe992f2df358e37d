"""Groups of tasks, correlated within and not between: flat against nested balancing.

Budget: 180 runs of 800 steps at 5 s, 15 minutes on one core. Runs end before they converge; a larger machine would add 4000
steps, groups of unequal size, and more trials.
"""

from equipoise.lab import Candidate, Range, Study, load_problem
from equipoise.lab.studies.baselines import baselines, nested

study = Study(
    title="Nine regressions in three groups, with scales from 1 to 10 in each group",
    expectation=(
        "Losses lie a hundredfold apart within each group, and all groups are alike. Methods that take the scale off (1 "
        "/ L(0), uncertainty weighting from log L(0), GradNorm) are ahead of equal weights in the task-normalised test "
        "loss. The closed form is level whether it is flat or nested; nested with equal weights inside the groups is "
        "behind both, and level with equal weights."
    ),
    problems=[load_problem("groups", {})],
    methods=[
        *baselines(epoch_steps=40, decades=3),
        *nested(),
        Candidate("nested", {"root": "gradnorm", "groups": "gradnorm"}, label="nested: GradNorm at both"),
    ],
    space={"learning_rate": Range(1e-3, 1e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103, 104],
    steps=800,
    sampler="sobol",
)
