"""The paper's toy at a fifth of its size, ten tasks of scales 3 to 81, Adam.

Budget: 19 methods with 7 learning rates each, 1 tuning seed and 10 final seeds, 3000 steps: 316 runs, of which all but
PCGrad's are trained together; about 20 minutes on one core. A larger machine would add steps until all runs are at rest.
"""

from equipoise.lab import Range, Study, load_problem
from equipoise.lab.studies.baselines import toy_methods

SIGMAS = (48, 3, 54, 16, 9, 30, 52, 26, 47, 81)

study = Study(
    title="The toy at a fifth of its size: ten tasks, Adam",
    expectation=(
        "1 / L(0), uncertainty weighting from log L(0) and GradNorm are not told apart; uncertainty weighting from 0 is far "
        "behind all others; tuned static weights are no better than equal ones, as seven trials find nothing in ten dimensions."
    ),
    problems=[load_problem("toy", {"size": "fifth", "num_tasks": 10, "schedule": "cosine", "steps": 3000})],
    methods=toy_methods(SIGMAS, decades=3),
    space={"learning_rate": Range(5e-4, 2e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 110),
    sampler="sobol",
    vectorized=True,
)
