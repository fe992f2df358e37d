"""The cost of a search for static weights against that of one method that needs none.

Static weights get 63 pairs of learning rate and weights, all other methods 7 learning rates. The search is larger on
purpose: the question is after how many trials it pays.

Budget: 2 problems, 4 methods with 7 trials, 1 with 63, 1 tuning seed and 5 final seeds, 12,000 steps with two tasks and 3000
with ten, after which most runs are at rest: 232 runs, trained together; about 12 minutes on one core. A larger machine would
add searches: one draw of the trials is one sample of their order.
"""

from equipoise.lab import Candidate, Range, Simplex, Study, load_problem

study = Study(
    title="The cost of a search for static weights",
    expectation=(
        "With two tasks, static weights pass GradNorm after about ten trials and 1 / L(0) not at all or after some "
        "thirty; with ten tasks, 63 trials do not find weights as good as those of GradNorm or of 1 / L(0)."
    ),
    problems=[
        load_problem("toy", {"size": "fifth", "num_tasks": tasks, "schedule": "cosine", "steps": steps})
        for tasks, steps in ((2, 12_000), (10, 3000))
    ],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=4)}, trials=63),
    ],
    space={"learning_rate": Range(5e-4, 2e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    vectorized=True,
)
