"""Little data and much of it: does balancing make tasks overfit, and is its gain only less overfitting?

The toy at a fifth of its size with 1/16, 1/4 and all of its 10,000 training samples, as it is and with noise on the
targets of the first task, as large as the signal.

Budget: 5 problems, 8 methods with 7 learning rates each, 1 tuning seed and 5 final seeds, 2000 steps: 540 runs, trained
together; about 6 minutes on one core. A larger machine would add real data.
"""

from equipoise.lab import Candidate, Range, Simplex, Study, load_problem

TOY = {"size": "fifth", "num_tasks": 2, "schedule": "cosine", "steps": 2000}

study = Study(
    title="Train and test with 1/16, 1/4 and all of the data",
    expectation=(
        "With 1/16 of the data all methods overfit, GradNorm no more than equal weights: the gap between train and test "
        "depends on the data, not on the method. Rates from validation losses change little. Where methods differ with all of "
        "the data, they differ on the training data too, so that the difference is not less overfitting."
    ),
    problems=[
        load_problem("toy", {**TOY, "train_samples": samples, "perturbation": noise})
        for samples, noise in [
            (625, ()),
            (2500, ()),
            (10_000, ()),
            (625, ("noise(f0_sigma_1, 1)",)),
            (10_000, ("noise(f0_sigma_1, 1)",)),
        ]
    ],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm_validation", label="GradNorm, validation rates"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=5)}),
        Candidate("single_task", label="single task"),
    ],
    space={"learning_rate": Range(5e-4, 2e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    vectorized=True,
)
