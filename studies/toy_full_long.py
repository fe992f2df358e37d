"""The paper's toy at its full size, two tasks, Adam: is the gap of GradNorm still there after four times as many steps?

Budget: 3 methods with 3 learning rates each, 1 tuning seed and 5 final seeds, 8000 steps: 24 runs, trained together; about 8
minutes on one core. A larger machine would add the other methods, ten tasks and longer runs.
"""

from equipoise.lab import Candidate, Range, Study, load_problem

study = Study(
    title="The toy at its full size: two tasks, four times as many steps",
    expectation="As at a fifth of the size: the gap of GradNorm to 1 / L(0) is half of what it is with 2000 steps or less.",
    problems=[load_problem("toy", {"num_tasks": 2, "schedule": "cosine", "steps": 8000})],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("gradnorm", label="GradNorm"),
    ],
    space={"learning_rate": Range(1e-3, 1.6e-2, log=True)},
    trials=3,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    vectorized=True,
)
