"""The paper's toy at a fifth of its size, two tasks, Adam: does any way of balancing beat weights that anybody can choose?

Budget: 20 methods with 7 learning rates each, 1 tuning seed and 10 final seeds, 12,000 steps: 340 runs, of which all but
PCGrad's are trained together; about 30 minutes on one core. A larger machine would add more draws of the matrices; `toy_long`
goes on to 32,000 steps with six methods. The learning rate falls to 0 along a cosine, so that runs come to rest.
"""

from equipoise.lab import Candidate, Range, Study, load_problem
from equipoise.lab.studies.baselines import toy_methods

study = Study(
    title="The toy at a fifth of its size: two tasks, Adam",
    expectation=(
        "1 / L(0), which is trained on the metric that is evaluated, and uncertainty weighting from log L(0) have the smallest "
        "task-normalised loss; tuned static weights and the closed form balanced from the first batch are not told apart from "
        "equal weights; uncertainty weighting from 0 is behind equal weights. With 4000 steps GradNorm as published was behind "
        "equal weights by 0.15, but runs were not at rest; three seeds of three methods with 16,000 steps, seen beforehand, "
        "bring it level with equal weights and 0.04 behind 1 / L(0). So with 12,000 steps GradNorm is within 0.05 of equal "
        "weights at every alpha."
    ),
    problems=[load_problem("toy", {"size": "fifth", "num_tasks": 2, "schedule": "cosine", "steps": 12_000})],
    methods=[*toy_methods((1, 100), decades=5), Candidate("single_task", label="single task")],
    space={"learning_rate": Range(5e-4, 2e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 110),
    sampler="sobol",
    vectorized=True,
)
