"""The paper's toy at its full size, two tasks, Adam: does the order of the methods hold that the fifth of the size shows?

Budget: 19 methods with 7 learning rates each, 1 tuning seed and 10 final seeds, 2000 steps: 316 runs, of which all but those of
PCGrad are trained together; about 25 minutes on one core. `toy_full_long` goes on to 8000 steps.
"""

from equipoise.lab import Range, Study, load_problem
from equipoise.lab.studies.baselines import toy_methods

study = Study(
    title="The toy at its full size: two tasks, Adam",
    expectation=(
        "As at a fifth of the size: 1 / L(0) and uncertainty weighting from log L(0) have the smallest task-normalised loss, "
        "GradNorm as published and uncertainty weighting from 0 are behind equal weights."
    ),
    problems=[load_problem("toy", {"num_tasks": 2, "schedule": "cosine", "steps": 2000})],
    methods=toy_methods((1, 100), decades=5),
    space={"learning_rate": Range(2e-4, 1e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 110),
    sampler="sobol",
    vectorized=True,
)
