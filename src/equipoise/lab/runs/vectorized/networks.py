"""The networks of all runs as one, with a dimension K in front of every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from equipoise.lab.networks.network import Network
from equipoise.lab.problem import Task


class StackedNetworks:
    """K networks of one form, each with parameters of its own.

    Args:
        networks: The networks. They are only read.

    Attributes:
        parameters: All parameters, changed in place by the optimiser ``(K, P)``.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._form = networks[0]
        self.parameters = torch.stack([nn.utils.parameters_to_vector(n.parameters()).detach() for n in networks])
        self._by_name: dict[str, Tensor] = {}
        begin = 0
        for name, parameter in self._form.named_parameters():
            part = self.parameters[:, begin : begin + parameter.numel()]
            self._by_name[name] = part.view(len(networks), *parameter.shape).requires_grad_()
            begin += parameter.numel()
        paths = self._form.branches_of
        self._branches = {task: [f"branches.{i}" for i in paths.get(task, [])] for task in self._form.tasks}

    def outputs(self, inputs: Tensor, runs: slice) -> dict[str, Tensor]:
        """The outputs of some of the networks.

        Shape:
            ``inputs`` is ``(len(runs), N, *)``, and so is each output.
        """
        with torch.no_grad():
            before = self._called("trunk", inputs, runs)
            features = self._called("fork.shared_layer", before, runs)
            return {task: self._head(i, task, features, runs) for i, task in enumerate(self._form.tasks)}

    def losses(
        self, inputs: Tensor, targets: Mapping[str, Tensor], tasks: Sequence[Task]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Losses with their graph, and where gradient norms are taken.

        Args:
            inputs: A batch for each network ``(K, B, *)``.
            targets: Those of every task ``(K, B, *)``.
            tasks: The tasks.

        Returns:
            The unweighted losses ``(K, T)``, the input of the last shared layer ``(K, B, H)``, and for each task the output
            of that layer ``(K, B, O)``.
        """
        before = self._called("trunk", inputs)
        shared = self._called("fork.shared_layer", before)
        features = [shared.view_as(shared) for _ in tasks]
        each = [
            torch.vmap(task.loss)(self._head(i, task.name, features[i]), targets[task.name])
            for i, task in enumerate(tasks)
        ]
        return torch.stack(each, dim=1), before, features

    def gradients(
        self, losses: Tensor, weights: Tensor, features: Sequence[Tensor], *, keep: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The gradients of the weighted losses.

        Args:
            losses: From `losses` ``(K, T)``.
            weights: The weights ``(K, T)``.
            features: From `losses`.
            keep: Whether there will be another such call for these losses.

        Returns:
            The gradient by all parameters ``(K, P)``, and for each task that by its features ``(K, B, O)``.
        """
        total = (losses * weights).sum()
        parameters = list(self._by_name.values())
        found = torch.autograd.grad(total, [*features, *parameters], retain_graph=keep)
        number = len(features)
        return torch.cat([gradient.flatten(1) for gradient in found[number:]], dim=1), list(found[:number])

    @staticmethod
    def norms(before: Tensor, at_features: Sequence[Tensor]) -> Tensor:
        """The norms of the gradients at the weight of the last shared layer ``(K, T)``, as `gradients` has weighted them."""
        each = [torch.linalg.matrix_norm(gradient.transpose(1, 2) @ before) for gradient in at_features]
        return torch.stack(each, dim=1)

    def _head(self, number: int, task: str, features: Tensor, runs: slice = slice(None)) -> Tensor:
        for branch in self._branches[task]:
            features = self._called(branch, features, runs)
        return self._called(f"heads.{number}", features, runs)

    def _called(self, name: str, inputs: Tensor, runs: slice = slice(None)) -> Tensor:
        module, prefix = self._form.get_submodule(name), f"{name}."
        own = {key.removeprefix(prefix): p[runs] for key, p in self._by_name.items() if key.startswith(prefix)}

        def call(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
            found: Tensor = functional_call(module, parameters, (one,))
            return found

        result: Tensor = torch.vmap(call)(own, inputs)
        return result
