"""When does GradNorm help? A map over 216 generated problems with two tasks each.

Every combination of three ratios of the scales, three of the difficulty, three kinds of noise, two widths, two sizes of the
training data and two optimisers is a problem with its own draw of functions and data. The second task has the larger scale. A
task of frequency 2 is harder than one of 1; noise of 1 is as large as the signal.

A method is ahead on a problem if its task-normalised test loss is smaller by more than 2 %, and the 95 % interval of the
paired logarithmic differences over the seeds leaves out zero; behind likewise; else there is no difference. Rules of thumb on
what `equipoise.check` measures in the first batch are fitted on one half of the problems and judged on the other: a rule holds
up if the lower end of the 95 % interval of its hit rate there is above the hit rate of the same answer everywhere.

Budget: 10,800 runs of 1000 steps, those of nine problems trained together at 0.07 ms a step, 20 minutes on one core. A pilot
with constant weights, on another draw, chose the frequencies, the sizes, the steps and the range of learning rates. A larger
machine would add seeds, and trials for the static weights, which have two settings to be searched in as many trials as the one
of the others.
"""

from itertools import product

from equipoise.lab import Candidate, Range, Simplex, Study, load_problem

SPLIT_SEED = 13
"""Decides on which half of the problems rules are fitted."""

FACTORS = {
    "scales": [(1.0, 1.0), (1.0, 10.0), (1.0, 100.0)],
    "frequencies": [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0)],
    "noises": [(0.1, 0.1), (1.0, 0.1), (0.1, 1.0)],
    "width": [8, 20],
    "train_samples": [256, 4096],
    "optimizer": ["adam", "sgd"],
}

study = Study(
    title="When does GradNorm help?",
    expectation=(
        "GradNorm, in either form, is ahead of equal weights on some of the problems, most of them trained by SGD or with "
        "scales that differ, ahead of 1 / L(0) on few, and ahead of tuned static weights on none. A rule of thumb about the "
        "gradient norms of the first batch holds up against equal weights."
    ),
    problems=[
        load_problem("unequal", {**dict(zip(FACTORS, levels, strict=True)), "data_seed": number})
        for number, levels in enumerate(product(*FACTORS.values()))
    ],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=4)}),
    ],
    space={"learning_rate": Range(1e-4, 1.0, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=[100, 101, 102],
    steps=1000,
    sampler="sobol",
    vectorized=True,
)
