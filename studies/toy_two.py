"""The paper's toy at a fifth of its size, two tasks, Adam: does any way of balancing beat weights that anybody can choose?

Budget: 19 methods with 7 learning rates each, 1 tuning seed and 10 final seeds, 4000 steps: 340 runs, of which all but PCGrad's
are trained together; about 10 minutes on one core. A larger machine would add more draws of the matrices and longer runs.
The learning rate falls to 0 along a cosine, so that runs come to rest.
"""

from equipoise.lab import Candidate, Range, Simplex, Study, load_problem

study = Study(
    title="The toy at a fifth of its size: two tasks, Adam",
    expectation=(
        "1 / L(0), which is trained on the metric that is evaluated, and uncertainty weighting from log L(0) have the smallest "
        "task-normalised loss; tuned static weights and the closed form balanced from the first batch are not told apart from "
        "equal weights; GradNorm as published and uncertainty weighting from 0 are behind equal weights, at every alpha."
    ),
    problems=[load_problem("toy", {"size": "fifth", "num_tasks": 2, "schedule": "cosine", "steps": 4000})],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("static", {"weights": (1.0, 1e-4)}, label="1 / target variance"),
        Candidate("inverse_loss_variance", label="1 / loss variance"),
        Candidate("cov", label="CoV"),
        Candidate("dwa", {"epoch_steps": 100}, label="DWA"),
        Candidate("famo", label="FAMO"),
        Candidate("uncertainty"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("pcgrad", label="PCGrad"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm", {"alpha": 0.0}, label="GradNorm, alpha 0"),
        Candidate("gradnorm", {"alpha": 0.12}, label="GradNorm, alpha 0.12"),
        Candidate("gradnorm", {"alpha": 0.5}, label="GradNorm, alpha 0.5"),
        Candidate("gradnorm", {"alpha": 3.0}, label="GradNorm, alpha 3"),
        Candidate("gradnorm_closed_form", label="closed form"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=5)}),
        Candidate("static", averaged_from="GradNorm", label="GradNorm static"),
        Candidate("single_task", label="single task"),
    ],
    space={"learning_rate": Range(5e-4, 2e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 110),
    sampler="sobol",
    vectorized=True,
)
