"""The paper's toy at a fifth of its size, two tasks, Adam: how much of a difference is left when runs are at rest?

Every method with its own learning rate at each length, as the best one depends on it.

Budget: 3 lengths, 6 methods with 3 learning rates each, 1 tuning seed and 5 final seeds: 48 runs of 2000, of 8000 and of 32,000
steps, trained together; about 17 minutes on one core. A larger machine would add lengths, ten tasks and the full size.
"""

from equipoise.lab import Candidate, Range, Study, load_problem

study = Study(
    title="The toy at a fifth of its size: two tasks, ever longer runs",
    expectation=(
        "With 2000 steps GradNorm and uncertainty weighting from 0 are behind 1 / L(0) by more than 0.1. The longer the "
        "runs, the smaller the gap: with 32,000 steps that of GradNorm is a third of what it is with 2000 or less, and "
        "1 / L(0) is still ahead of it."
    ),
    problems=[
        load_problem("toy", {"size": "fifth", "num_tasks": 2, "schedule": "cosine", "steps": steps})
        for steps in (2000, 8000, 32_000)
    ],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("uncertainty"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
    ],
    space={"learning_rate": Range(1.5e-3, 5e-2, log=True)},
    trials=3,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    vectorized=True,
)
