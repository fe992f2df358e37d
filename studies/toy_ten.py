"""The paper's toy at a fifth of its size, ten tasks of scales 3 to 81, Adam.

Budget: 17 methods with 7 learning rates each, 1 tuning seed and 5 final seeds, 3000 steps: 210 runs, trained together;
about 8 minutes on one core. A larger machine would add seeds, PCGrad, and steps until all runs are at rest.
"""

from equipoise.lab import Candidate, Range, Simplex, Study, load_problem

SIGMAS = (48, 3, 54, 16, 9, 30, 52, 26, 47, 81)

study = Study(
    title="The toy at a fifth of its size: ten tasks, Adam",
    expectation=(
        "1 / L(0), uncertainty weighting from log L(0) and GradNorm are not told apart; uncertainty weighting from 0 is far "
        "behind all others; tuned static weights are no better than equal ones, as seven trials find nothing in ten dimensions."
    ),
    problems=[load_problem("toy", {"size": "fifth", "num_tasks": 10, "schedule": "cosine", "steps": 3000})],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("static", {"weights": tuple(1 / sigma**2 for sigma in SIGMAS)}, label="1 / target variance"),
        Candidate("inverse_loss_variance", label="1 / loss variance"),
        Candidate("cov", label="CoV"),
        Candidate("dwa", {"epoch_steps": 100}, label="DWA"),
        Candidate("famo", label="FAMO"),
        Candidate("uncertainty"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm", {"alpha": 0.0}, label="GradNorm, alpha 0"),
        Candidate("gradnorm", {"alpha": 0.12}, label="GradNorm, alpha 0.12"),
        Candidate("gradnorm", {"alpha": 0.5}, label="GradNorm, alpha 0.5"),
        Candidate("gradnorm", {"alpha": 3.0}, label="GradNorm, alpha 3"),
        Candidate("gradnorm_closed_form", label="closed form"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=3)}),
        Candidate("static", averaged_from="GradNorm", label="GradNorm static"),
    ],
    space={"learning_rate": Range(5e-4, 2e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    vectorized=True,
)
