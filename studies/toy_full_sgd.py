"""The paper's toy at its full size, two tasks, SGD with momentum, which does not hide the size of a loss.

Without momentum, and with 2000 steps, no method came below 0.96 of its initial losses, so that those runs decided nothing.

Budget: 9 methods with 9 learning rates each over 4 decades, 1 tuning seed and 10 final seeds, 6000 steps: 161 runs, of which
all but those of PCGrad are trained together; about 34 minutes on one core. A larger machine would add the other methods, ten
tasks, and steps until all runs are at rest.
"""

from equipoise.lab import Range, Study, load_problem
from equipoise.lab.studies.baselines import toy_methods

METHODS = (
    "equal",
    "1 / L(0)",
    "1 / target variance",
    "uncertainty from log L(0)",
    "PCGrad",
    "GradNorm",
    "closed form, balanced",
    "tuned static",
    "GradNorm static",
)

study = Study(
    title="The toy at its full size: two tasks, SGD with momentum",
    expectation=(
        "As at a fifth of the size: 1 / target variance and uncertainty weighting from log L(0) have smaller task-normalised "
        "losses than 1 / L(0), and 1 / target variance is ahead of equal weights; GradNorm, its closed form and PCGrad are not "
        "told apart from equal weights. Written before runs without momentum, which decided nothing."
    ),
    problems=[
        load_problem("toy", {"num_tasks": 2, "optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "steps": 6000})
    ],
    methods=[each for each in toy_methods((1, 100), decades=5) if each.label in METHODS],
    space={"learning_rate": Range(3e-4, 3e0, log=True)},
    trials=9,
    tuning_seeds=[0],
    seeds=range(100, 110),
    sampler="sobol",
    vectorized=True,
)
