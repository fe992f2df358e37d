"""The fork on a model whose code is not changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equipoise.arguments import described, sequence_of_names
from equipoise.engine.autograd_rule import AutogradRule
from equipoise.engine.parameters import shared_parameters
from equipoise.engine.source import GradientSource
from equipoise.engine.structure import split


def attach(
    model: nn.Module,
    shared_layer: str,
    heads: Mapping[str, str],
    *,
    parameters: Sequence[str] | None = None,
) -> Attached:
    """Measure a model from outside: a `Fork` by hooks on its modules.

    Every head's input is given an alias of its own when the head is called. The gradient that arrives there is carried on to
    the last shared layer along the original graph, whatever lies between, inside the one backward pass. While it is measured, a
    head must not begin with an in-place operation, as ``nn.ReLU(inplace=True)``. Attaching the same heads again, as when a
    notebook cell is run again, replaces the first attachment.

    Args:
        model: The model. Its code, its parameters and the keys of its ``state_dict`` stay as they are.
        shared_layer: Path of the last shared layer in the model, for instance ``"backbone.layer4"``. It is looked up in every
            forward pass, so that a layer that replaces it later is measured instead.
        heads: Path of the head of every task, by task name. The head is a module that only this task's loss goes through.
        parameters: Names of the parameters of the shared layer that make up W. ``None``: as for a `Fork`, its ``weight``, or
            all that are trained.

    Returns:
        The source that a balancer takes instead of a fork.

    Raises:
        TypeError: ``model`` is not a module, a path is not a string, or ``parameters`` is no sequence of names.
        ValueError: A path leads nowhere, two tasks have one head, a head is attached for other tasks, or a parameter is unknown
            or frozen.

    Example:
        >>> model = nn.ModuleDict({"trunk": nn.Linear(4, 3), "a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})
        >>> source = attach(model, shared_layer="trunk", heads={"first": "a", "second": "b"})
        >>> source.tasks
        ('first', 'second')
        >>> source.remove()

    References:
        Chen et al. 2018, GradNorm, section 3.1.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module; found {described(model)}")
    if not isinstance(heads, Mapping):
        raise TypeError(f"heads must be a dict of paths by task name; found {described(heads)}")
    return Attached(model, shared_layer, heads, parameters)


class Attached(GradientSource):
    """The hooks of `attach`, and their measurement.

    ``copy.deepcopy`` and ``pickle`` of the model take it along; copy both in one go, ``copy.deepcopy((model, attached))``,
    to have the copy's as well.
    """

    reads: ClassVar[str] = "what the head of task {!r} is given"

    def __init__(
        self, model: nn.Module, shared_layer: str, heads: Mapping[str, str], parameters: Sequence[str] | None
    ) -> None:
        super().__init__(list(heads))
        self._model, self._path, self._heads = model, shared_layer, dict(heads)
        _submodule(model, "shared_layer", shared_layer)
        self._names = None if parameters is None else sequence_of_names("parameters", parameters)
        modules = {task: _submodule(model, f"the head of task {task!r}", path) for task, path in heads.items()}
        for task, module in modules.items():
            same = [other for other in modules if other != task and modules[other] is module]
            if same:
                raise ValueError(f"tasks {task!r} and {same[0]!r} must have heads of their own; found one for both")
        if self._names is not None:
            _ = self.shared_parameters
        self._replace_earlier(list(modules.values()))
        self._handles = [
            module.register_forward_pre_hook(_HeadHook(self, i), with_kwargs=True)
            for i, module in enumerate(modules.values())
        ]

    @property
    def shared_parameters(self) -> dict[str, Tensor]:
        """W, by name."""
        return shared_parameters(self._model.get_submodule(self._path), self._names)

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the model is in training mode, even where its shared layer is kept in ``eval()``."""
        return self._model.training

    def remove(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def why_not(self, task: str) -> str:
        """Why no gradient of a task may have arrived: a head that was replaced, hooks that were removed, or the usual."""
        if not self._handles:
            return "its hooks were removed, or the model was attached anew: make the balancer from that attach"
        _ = self.shared_parameters  # refuses those that were frozen meanwhile
        hooks = self._model.get_submodule(self._heads[task])._forward_pre_hooks.values()
        if not any(isinstance(hook, _HeadHook) and hook.attached is self for hook in hooks):
            return (
                f"the module at {self._heads[task]!r} has replaced the head that was attached: attach the model again"
            )
        return super().why_not(task)

    def alias(self, i: int, inputs: Any) -> Any:
        """The inputs of head i, its own alias of each tensor that carries a gradient."""
        if not self._measures():
            return inputs
        tensors, put = split(inputs, required=False)
        if not any(tensor.requires_grad for tensor in tensors):
            return inputs
        if not torch.compiler.is_compiling():
            self._place()
        rule = AutogradRule([*self.measured_parameters.values()])
        return put(self._fan_out(rule, None, tensors, first=i))

    def _rows(self) -> list[int]:
        return [1] * len(self.tasks)

    def _replace_earlier(self, heads: Sequence[nn.Module]) -> None:
        """Take the place of an earlier `attach` of the same heads.

        Raises:
            ValueError: One of the heads is attached together with others.
        """
        earlier = {
            id(hook.attached): hook.attached
            for module in heads
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, _HeadHook) and hook.attached is not None
        }
        for other in earlier.values():
            if other._heads != self._heads:
                raise ValueError(
                    f"heads: a head is attached already, for the tasks {', '.join(map(repr, other.tasks))}: call "
                    "remove() on the result of that attach"
                )
            other.remove()


class _HeadHook:
    """A forward pre-hook that can be copied and pickled."""

    def __init__(self, attached: Attached, i: int) -> None:
        self.attached, self.i = attached, i

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.attached.alias(self.i, (args, kwargs))


def _submodule(model: nn.Module, what: str, path: Any) -> nn.Module:
    if not isinstance(path, str):
        raise TypeError(f"{what}: its path must be a string; found {described(path)}")
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if path not in modules:
        near = get_close_matches(path, modules, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(repr, list(modules)[1:6]))}, ..."
        raise ValueError(f"{what}: {type(model).__name__} has no module at {path!r}{hint}")
    return modules[path]
