"""The paper's toy at its full size, ten tasks of scales 3 to 81, Adam.

Budget: 8 methods with 7 learning rates each, 1 tuning seed and 10 final seeds, 1500 steps: 129 runs, trained together; about
18 minutes on one core. A larger machine would add the other methods, and steps until all runs are at rest.
"""

from equipoise.lab import Range, Study, load_problem
from equipoise.lab.studies.baselines import toy_methods

SIGMAS = (48, 3, 54, 16, 9, 30, 52, 26, 47, 81)
METHODS = (
    "equal",
    "1 / L(0)",
    "uncertainty",
    "uncertainty from log L(0)",
    "GradNorm",
    "closed form, balanced",
    "tuned static",
    "GradNorm static",
)

study = Study(
    title="The toy at its full size: ten tasks, Adam",
    expectation=(
        "As at a fifth of the size: uncertainty weighting from 0 has the largest task-normalised loss, 1 / L(0) and "
        "uncertainty weighting from log L(0) the smallest, and GradNorm is not told apart from equal weights."
    ),
    problems=[load_problem("toy", {"num_tasks": 10, "schedule": "cosine", "steps": 1500})],
    methods=[each for each in toy_methods(SIGMAS, decades=3) if each.label in METHODS],
    space={"learning_rate": Range(2e-4, 1e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 110),
    sampler="sobol",
    vectorized=True,
)
