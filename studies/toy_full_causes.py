"""The paper's toy at its full size, two tasks, Adam: why is GradNorm behind 1 / L(0) in long runs? By intervention.

The norms of the two gradients lie ten-thousandfold apart, so that at balance the weight of the task of scale 100 is about
2e-4: below GradNorm's floor of 1e-3, and far below a step of 0.025. In the runs of `toy_full_long` that weight was at the floor
in two steps of three.

Budget: 7 methods with 3 learning rates each, 1 tuning seed and 5 final seeds, 8000 steps: 56 runs, trained together; about 15
minutes on one core. A larger machine would add seeds and beta2.
"""

from equipoise.lab import Candidate, Range, Study, load_problem

BALANCED = {"initial_weights": "balanced"}

study = Study(
    title="The toy at its full size: the causes of the differences",
    expectation=(
        "The floor is a cause: with a floor of 1e-5 the gap of GradNorm to 1 / L(0) is half of what it is or less, and so it "
        "is in log space, which has no floor. Weights that are right from the first batch on add to that: in log space, "
        "GradNorm balanced from the first batch is ahead of GradNorm from equal weights. The pull of slow tasks does not pay "
        "here: the closed form with alpha 0 is ahead of that with alpha 1.5."
    ),
    problems=[load_problem("toy", {"num_tasks": 2, "schedule": "cosine", "steps": 8000})],
    methods=[
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm", {"floor": 1e-5}, label="GradNorm, floor 1e-5"),
        Candidate("gradnorm_log_space", label="log space"),
        Candidate("gradnorm_log_space", BALANCED, label="log space, balanced"),
        Candidate("gradnorm_closed_form", BALANCED, label="closed form, balanced"),
        Candidate("gradnorm_closed_form", {"alpha": 0.0, **BALANCED}, label="closed form, alpha 0, balanced"),
    ],
    space={"learning_rate": Range(1e-3, 1.6e-2, log=True)},
    trials=3,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    reference="1 / L(0)",
    vectorized=True,
)
