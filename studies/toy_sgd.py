"""The paper's toy at a fifth of its size, two tasks, plain SGD, which does not hide the size of a loss.

Budget: 20 methods with 15 learning rates each over 6 decades, 1 tuning seed and 10 final seeds, 4000 steps: 500 runs, of which
all but PCGrad's are trained together; about 14 minutes on one core. A larger machine would add more draws of the matrices and
longer runs. The learning rate falls to 0 along a cosine, so that runs come to rest.
"""

from equipoise.lab import Candidate, Range, Study, load_problem
from equipoise.lab.studies.baselines import toy_methods

study = Study(
    title="The toy at a fifth of its size: two tasks, SGD",
    expectation=(
        "1 / L(0) and 1 / target variance have the smallest task-normalised loss, tuned static weights are level with "
        "them, equal weights are far behind, as the task of scale 100 leaves the other no rate; GradNorm is between "
        "the two, since its weights follow the gradients too late for large rates."
    ),
    problems=[
        load_problem("toy", {"size": "fifth", "num_tasks": 2, "optimizer": "sgd", "schedule": "cosine", "steps": 4000})
    ],
    methods=[*toy_methods((1, 100), decades=5), Candidate("single_task", label="single task")],
    space={"learning_rate": Range(1e-5, 1e1, log=True)},
    trials=15,
    tuning_seeds=[0],
    seeds=range(100, 110),
    sampler="sobol",
    vectorized=True,
)
