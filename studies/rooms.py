"""Rendered rooms with four dense tasks on three networks: is a gain one network's fluke?

Budget: 105 runs of 250 steps at 25 s, 45 minutes on one core: images of 32 x 64 pixels and a quarter of the paper's channels. A
larger machine would add a fifth seed, the methods that the other studies have, 20,000 steps and images of 288 x 384; `nyuv2` in
the place of `rooms` is the same study for whoever has the data.
"""

from equipoise.lab import Candidate, Range, Study, load_problem

SIZES = {"height": 32, "width": 64, "train_samples": 200, "validation_samples": 24, "test_samples": 40}

study = Study(
    title="Rooms: segmentation, depth, normals and keypoints on three networks",
    expectation=(
        "All losses are of one order. No method is ahead of equal weights on all three networks; the sign of GradNorm's "
        "difference from equal weights is not the same on all of them; 1 / L(0) is level with equal weights. Written before "
        "the first runs, which had 100 steps, one learning rate for all and three seeds, and told nothing apart."
    ),
    problems=[
        load_problem("rooms", {**SIZES, "backbone": backbone, "schedule": "cosine", "batch_size": 4})
        for backbone in ("segnet", "resnet_fcn", "segformer")
    ],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
    ],
    space={"learning_rate": Range(5e-4, 1.6e-2, log=True)},
    trials=3,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103],
    steps=250,
    sampler="sobol",
)
