"""The paper's toy at a fifth of its size, two tasks, plain SGD, which does not hide the size of a loss.

Budget: 18 methods with 15 learning rates each over 6 decades, 1 tuning seed and 5 final seeds, 4000 steps: 400 runs, trained
together; about 8 minutes on one core. A larger machine would add PCGrad, more draws of the matrices and longer runs.
The learning rate falls to 0 along a cosine, so that runs come to rest.
"""

from equipoise.lab import Candidate, Range, Simplex, Study, load_problem

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
    space={"learning_rate": Range(1e-5, 1e1, log=True)},
    trials=15,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    vectorized=True,
)
