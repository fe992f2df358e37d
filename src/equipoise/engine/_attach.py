"""The fork on a model whose code is not touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from equipoise.engine._features import split
from equipoise.engine._node import ForkNode
from equipoise.engine._reach import check_reach
from equipoise.engine._source import Source, chosen, named_parameters


def attach(
    model: nn.Module,
    shared_layer: str,
    heads: Mapping[str, str],
    *,
    parameters: Sequence[str] | None = None,
) -> Attached:
    """Measure a model from outside: what a `Fork` does, by hooks on the modules that are there.

    Every head's input is given an alias of its own when the head is called. The gradient that arrives there is carried on to
    the last shared layer along the original graph, whatever lies between, inside the one backward pass. While it is measured, a
    head must not begin with an operation in place, as ``nn.ReLU(inplace=True)``.

    Args:
        model: The model. Its code, its parameters and the keys of its ``state_dict`` stay as they are.
        shared_layer: Path of the last shared layer in the model, for instance ``"backbone.layer4"``.
        heads: Path of the head of every task, by task name. The head is a module that only this task's loss goes through.
        parameters: Names of the parameters of the shared layer that make up W. ``None``: all that are trained.

    Returns:
        What a balancer takes in the place of a fork.

    Raises:
        TypeError: ``parameters`` is a string.
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
        self._model = model
        self._layer = _submodule(model, "shared_layer", shared_layer)
        self._names = chosen("parameters", parameters)
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

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the model is in training mode, even where its shared layer is kept in ``eval()``."""
        return self._model.training

    def remove(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()

    def check_reach(self, losses: Mapping[str, Tensor]) -> None:
        """Check that each of ``losses`` reaches the last shared layer, through its own head only.

        Raises:
            ValueError: One does not; the message names the task and what was found.
        """
        reads = "what the head of task {} is given"
        check_reach(losses, self.tasks, self._id, self.parameters_measured, by_rule=False, reads=reads)
        self._checked |= losses.keys()

    def alias(self, i: int, inputs: Any) -> Any:
        """The inputs of head i, its own alias of each tensor that carries a gradient."""
        if not self._measures():
            return inputs
        tensors, put = split(inputs)
        if not any(tensor.requires_grad for tensor in tensors):
            return inputs
        passage = self._measured(self._from_the_graph(tensors), probe=i)
        aliases = ForkNode.apply(passage, (self._id, i), 1, len(tensors), self._probes[i], *tensors, *tensors)
        if not self._checked:
            aliases = [self._guarded(self.tasks[i], alias) for alias in aliases]
        return put(aliases)

    def _rows(self) -> list[int]:
        return [1] * len(self.tasks)


class _HeadHook:
    """A forward pre-hook that can be copied and pickled."""

    def __init__(self, attached: Attached, i: int) -> None:
        self.attached, self.i = attached, i

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.attached.alias(self.i, (args, kwargs))


def _submodule(model: nn.Module, what: str, path: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if path not in modules:
        near = get_close_matches(path, modules, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(repr, list(modules)[1:6]))}, ..."
        raise ValueError(f"{what}: {type(model).__name__} has no module at {path!r}{hint}")
    return modules[path]
