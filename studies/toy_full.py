"""The paper's toy at its full size, two tasks, Adam: does the order of the methods hold that the fifth of the size shows?

Budget: 7 methods with 7 learning rates each, 1 tuning seed and 5 final seeds, 2000 steps: 90 runs, trained together; about 8
minutes on one core. A larger machine would add the other methods, ten tasks, SGD, and steps until all runs are at rest.
"""

from equipoise.lab import Candidate, Range, Simplex, Study, load_problem

study = Study(
    title="The toy at its full size: two tasks, Adam",
    expectation=(
        "As at a fifth of the size: 1 / L(0) and uncertainty weighting from log L(0) have the smallest task-normalised loss, "
        "GradNorm as published and uncertainty weighting from 0 are behind equal weights."
    ),
    problems=[load_problem("toy", {"num_tasks": 2, "schedule": "cosine", "steps": 2000})],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("uncertainty"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=5)}),
        Candidate("static", averaged_from="GradNorm", label="GradNorm static"),
    ],
    space={"learning_rate": Range(2e-4, 1e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    vectorized=True,
)
