"""The paper's toy at a fifth of its size, ten tasks of scales 3 to 81, plain SGD.

Budget: 19 methods with 15 learning rates each over 6 decades, 1 tuning seed and 10 final seeds, 3000 steps: 460 runs, of which
all but PCGrad's are trained together; about 25 minutes on one core. A larger machine would add longer runs.
"""

from equipoise.lab import Range, Study, load_problem
from equipoise.lab.studies.baselines import toy_methods

SIGMAS = (48, 3, 54, 16, 9, 30, 52, 26, 47, 81)

study = Study(
    title="The toy at a fifth of its size: ten tasks, SGD",
    expectation=(
        "1 / L(0), 1 / target variance and uncertainty weighting from log L(0) are ahead of equal weights, GradNorm and PCGrad "
        "are not told apart from them, as with two tasks."
    ),
    problems=[
        load_problem("toy", {"size": "fifth", "num_tasks": 10, "optimizer": "sgd", "schedule": "cosine", "steps": 3000})
    ],
    methods=toy_methods(SIGMAS, decades=3),
    space={"learning_rate": Range(1e-4, 1e2, log=True)},
    trials=15,
    tuning_seeds=[0],
    seeds=range(100, 110),
    sampler="sobol",
    vectorized=True,
)
