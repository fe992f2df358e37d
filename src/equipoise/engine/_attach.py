"""The fork on a model whose code is not touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.engine._features import split
from equipoise.engine._fork import named_alias
from equipoise.engine._node import ForkNode
from equipoise.engine._reach import check_reach
from equipoise.engine._rules import general
from equipoise.engine._source import Source, named_parameters


def attach(
    model: nn.Module,
    shared_layer: str,
    heads: Mapping[str, str],
    *,
    parameters: Sequence[str] | None = None,
) -> Attached:
    """Measure a model from outside: what a `Fork` does, by hooks on the modules that are there.

    Every head's input is given an alias of its own when the head is called. The gradient that arrives there is carried on to
    the last shared layer along the original graph, whatever lies between, inside the one backward pass.

    Args:
        model: The model. Its code, its parameters and the keys of its ``state_dict`` stay as they are.
        shared_layer: Path of the last shared layer in the model, for instance ``"backbone.layer4"``.
        heads: Path of the head of every task, by task name. The head is a module that only this task's loss goes through.
        parameters: Names of the parameters of the shared layer that make up W. ``None``: all that are trained.

    Returns:
        What a balancer takes in the place of a fork.

    Raises:
        ValueError: A path leads nowhere, two tasks have one head, or a parameter is unknown or frozen.

    Differs from the paper:
        W is, where ``parameters`` does not say otherwise, all trained parameters of the shared layer, its bias among them.

    Example:
        >>> model = nn.ModuleDict({"trunk": nn.Linear(4, 3), "a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})
        >>> source = attach(model, shared_layer="trunk", heads={"first": "a", "second": "b"})
        >>> source.tasks
        ('first', 'second')
        >>> source.remove()

    References:
        Chen et al. 2018, GradNorm, section 3.1.
    """
    return Attached(model, shared_layer, heads, parameters)


class Attached(Source):
    """The hooks of `attach`, and what they measure.

    ``copy.deepcopy`` and ``pickle`` of the model take it along; copy both in one go, ``copy.deepcopy((model, attached))``,
    to have the copy's as well.
    """

    def __init__(
        self, model: nn.Module, shared_layer: str, heads: Mapping[str, str], parameters: Sequence[str] | None
    ) -> None:
        super().__init__(list(heads))
        self._layer = _submodule(model, "shared_layer", shared_layer)
        self._names = None if parameters is None else tuple(parameters)
        self._checked = False
        modules = {task: _submodule(model, f"the head of task {task!r}", path) for task, path in heads.items()}
        for task, module in modules.items():
            same = [other for other in modules if other != task and modules[other] is module]
            if same:
                raise ValueError(f"tasks {task!r} and {same[0]!r} must have heads of their own; found one for both")
        self._place_probes()
        self._handles = [
            module.register_forward_pre_hook(_HeadHook(self, i), with_kwargs=True)
            for i, module in enumerate(modules.values())
        ]

    @property
    def parameters_measured(self) -> dict[str, Tensor]:  # type: ignore[override]
        """W, by name."""
        return named_parameters(self._layer, self._names)

    def remove(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()

    def check_reach(self, losses: Mapping[str, Tensor]) -> None:
        """Check that each of ``losses`` reaches the last shared layer, through its own head only.

        Raises:
            ValueError: One does not; the message names the task and what was found.
        """
        check_reach(losses, self.tasks, self._id, self.parameters_measured, by_rule=False)
        self._checked = True

    def alias(self, i: int, inputs: Any) -> Any:
        """The inputs of head i, its own alias of each tensor that carries a gradient."""
        if not (self._measuring and self._layer.training and torch.is_grad_enabled()) or torch.compiler.is_exporting():
            return inputs
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "attach measures from the original graph, which a compiled model does not have: compile the parts below the "
                "heads' inputs only, or put an equipoise.Fork behind a Linear or Conv layer into the model"
            )
        tensors, put = split(inputs)
        carrying = [tensor for tensor in tensors if tensor.requires_grad]
        if not carrying:
            return inputs
        statistic = general(list(self.parameters_measured.values()))
        aliases = ForkNode.apply(statistic, (self._id, i), len(carrying), self._probes[i], *carrying, *carrying)
        if not self._checked:
            aliases = [named_alias(self.tasks[i], alias) for alias in aliases]
        by_tensor = dict(zip(map(id, carrying), aliases, strict=True))
        return put([by_tensor.get(id(tensor), tensor) for tensor in tensors])

    def _rows(self) -> list[int]:
        return [1] * len(self.tasks)


class _HeadHook:
    """A forward pre-hook that can be copied and pickled."""

    def __init__(self, attached: Attached, i: int) -> None:
        self.attached, self.i = attached, i

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.attached.alias(self.i, (args, kwargs))


def _submodule(model: nn.Module, what: str, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"{what}: {type(model).__name__} has no module at {path!r}") from None
