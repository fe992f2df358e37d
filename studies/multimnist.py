"""Two overlaid digits: two tasks that are alike.

Budget: 101 runs of 300 steps at 8 s, 13 minutes on one core. Runs end before they converge; a larger machine would add 2000
steps, more trials and single-task training.
"""

from equipoise.lab import Range, Study, load_problem
from equipoise.lab.studies.baselines import baselines

study = Study(
    title="MultiMNIST: two digits",
    expectation=(
        "The two tasks have losses of the same size that fall at about the same speed: all methods are level, with "
        "differences below 0.01 of the mean accuracy."
    ),
    problems=[load_problem("multimnist", {})],
    methods=baselines(epoch_steps=78, decades=1),
    space={"learning_rate": Range(5e-4, 2e-2, log=True)},
    trials=4,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103, 104],
    steps=300,
    search_seed=7,
)
