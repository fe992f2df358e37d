"""The audit of a task's first step: what the source measures against one ``autograd.grad`` of the task's loss, by value.

The reference is taken before the backward pass, from the loss alone. Afterwards the two are compared. So whatever makes them
differ is found by one comparison, and refused with its likely cause: a loss that reads another task's features, or W past the
fork; a term of the total loss that is no task; a layer that does not compute what its rule says.

Later steps are audited now and then, by what each loss reads: a term that is no task, or a way past the fork, may begin at any
time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equipoise.arguments import SMALLEST
from equipoise.engine.autograd_rule import flat, is_sharded
from equipoise.engine.source import GradientSource

_SCALES = (2.0**16, 1.0)
"""A loss is multiplied with this, so that no gradient vanishes in float16; with the second if the first overflows."""


@dataclass(frozen=True)
class Reference:
    """Gradients of the unweighted losses, by one ``autograd.grad`` each.

    Attributes:
        tasks: The numbers of the tasks.
        rows: Their gradients at W, flat ``(len(tasks), P)``; where there is no W, at their own aliases of the features, and
            behind these the gradients that reach the features otherwise.
        at_alias: The norms of their gradients at their own aliases ``(len(tasks),)``; NaN where there are none.
        reads: For every task the numbers of the other tasks whose features its loss reads.
        depends: For every task whether its loss depends on W.
        left_out: Why there is no reference, where there is none; then all else is empty.
    """

    tasks: tuple[int, ...] = ()
    rows: Tensor | None = None
    at_alias: Tensor | None = None
    reads: tuple[tuple[int, ...], ...] = ()
    depends: tuple[bool, ...] = ()
    left_out: str = ""

    @property
    def norms(self) -> Tensor:
        """The norms of the gradients at W ``(len(tasks),)``."""
        assert self.rows is not None
        norms: Tensor = torch.linalg.vector_norm(self.rows, dim=1)
        return norms


def reference(source: GradientSource, losses: Mapping[str, Tensor]) -> Reference:
    """Differentiate every loss from its value down to W, and no further.

    Args:
        source: What measures; its aliases are those of the forward pass that the losses come from.
        losses: The unweighted losses by task name.
    """
    parameters = [*source.measured_parameters.values()]
    wrapped = wrapper_of(losses.values(), parameters)
    if wrapped:
        return Reference(left_out=wrapped)
    wanted = parameters or [*source.features]  # a checkpoint may call the fork again meanwhile
    aliases = [(i, alias) for i, of_task in source.aliases.items() for alias in of_task]
    targets = [*wanted, *(alias for _, alias in aliases)]
    if not targets:
        return Reference(left_out="the model was compiled as a whole, and there is no W")
    tasks, rows, norms, reads, depends = [], [], [], [], []
    for task, loss in losses.items():
        retained = [(target, target.grad) for target in targets if target.retains_grad]
        try:
            with source.pause():
                found = _gradients(loss, targets)
        except RuntimeError as error:
            return Reference(left_out=str(error).splitlines()[0])
        finally:
            for target, gradient in retained:  # autograd.grad fills it too
                target.grad = gradient
        own: list[Tensor | None] = []
        number = source.tasks.index(task)
        others = set()
        for (i, _), gradient in zip(aliases, found[len(wanted) :], strict=True):
            if i == number:
                own.append(gradient)
            elif gradient is not None and gradient.any():
                others.add(i)
        at_w = found[: len(wanted)]
        tasks.append(number)
        rows.append(flat(wanted, at_w) if parameters else _at_features(source, number, own, wanted, at_w))
        norms.append(_norm(own, loss))
        reads.append(tuple(sorted(others)))
        depends.append(any(g is not None for g in at_w))
    return Reference(tuple(tasks), torch.stack(rows), torch.stack(norms), tuple(reads), tuple(depends))


def reference_at_aliases(source: GradientSource, losses: Mapping[str, Tensor]) -> Reference:
    """Differentiate every loss from its value down to the task's own alias, and no further; ``rows`` is None."""
    aliases = source.aliases
    tasks = tuple(source.tasks.index(task) for task in losses)
    norms = []
    for number, loss in zip(tasks, losses.values(), strict=True):
        own = aliases.get(number, [])
        with source.pause():
            found = _gradients(loss, own) if own else []
        norms.append(_norm(found, loss))
    return Reference(tasks, None, torch.stack(norms), ((),) * len(tasks), (True,) * len(tasks))


def measure(source: GradientSource, total: Tensor) -> Tensor:
    """The norms ``(T,)`` that the source measures of the losses that ``total`` sums; no parameter's ``.grad`` is written."""
    for scale in _SCALES:
        source.clear()
        if total.requires_grad:
            total.backward(torch.full_like(total, scale), inputs=[p.leaf for p in source._probes], retain_graph=True)
        norms = source.norms(source.measured()).double() / scale
        if norms.isfinite().all():
            break
    return norms


def past_the_fork(source: GradientSource, loss: Tensor, number: int, limit: float) -> str:
    """Which of W the loss of this task reaches otherwise than through its own alias, for a message; empty for none."""
    parameters, own = source.measured_parameters, source.aliases.get(number, [])
    wanted = [*parameters.values()] or source.features
    with source.pause():
        whole = differentiate([loss], [*wanted, *own])
        arrived = [(alias, g) for alias, g in zip(own, whole[len(wanted) :], strict=True) if g is not None]
        through = differentiate([alias for alias, _ in arrived], wanted, [g for _, g in arrived])
    past: list[str] = []
    for name, target, *both in zip([*parameters] or ["features"] * len(wanted), wanted, whole, through, strict=False):
        everything, part = (flat([target], [gradient]) for gradient in both)
        if (everything - part).norm() > limit * everything.norm():
            past.append(repr(name))
    if not past:
        return ""
    return (
        f"its loss must reach the last shared layer through {source.reads.format(source.tasks[number])} alone; found that it "
        f"also reaches {', '.join(dict.fromkeys(past))} past the fork. PerLoss measures such a loss"
    )


def differentiate(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], gradients: Sequence[Tensor] | None = None
) -> Sequence[Tensor | None]:
    """The gradients at ``inputs``; None where nothing depends on them. The graph stays."""
    if not inputs or not any(output.requires_grad for output in outputs):
        return [None] * len(inputs)
    return torch.autograd.grad(outputs, inputs, gradients, retain_graph=True, allow_unused=True)


def deviations(norms: Tensor, expected: Tensor) -> Tensor:
    """How far ``norms`` are from those expected, relative to the larger; 0 where both are zero."""
    norms, expected = norms.double(), expected.double()
    larger = torch.maximum(norms, expected)
    return (norms - expected).abs() / torch.where(larger > 0, larger, 1.0)


def precisions(source: GradientSource, values: Tensor) -> set[torch.dtype]:
    """Those that a gradient passes through on its way from the losses to W, also where autocast was on for a part of it."""
    dtypes = {values.dtype, *(t.dtype for t in (*source.measured_parameters.values(), *source.features))}
    for node in _graph([values]):
        dtypes.update(metadata.dtype for metadata in getattr(node, "_input_metadata", ()))
    return {dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex}


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """How far rounding may take the two apart: the cube root of the coarsest precision in use."""
    return float(max(torch.finfo(dtype).eps for dtype in dtypes) ** (1 / 3))


def cause(
    source: GradientSource, expected: Reference, place: int, measured_at_alias: Tensor | None, limit: float
) -> str:
    """Why the measurement of a task is not its gradient, for a message.

    Args:
        source: What measured.
        expected: The reference.
        place: Which of its tasks.
        measured_at_alias: The norm of what arrived at the task's alias, of the unweighted loss; None where it is not known.
        limit: The tolerance.
    """
    number = expected.tasks[place]
    own = source.reads.format(source.tasks[number])
    if expected.reads[place]:
        wrong = ", ".join(source.reads.format(source.tasks[i]) for i in expected.reads[place])
        return f"its loss must depend on {own} alone; found that it reads {wrong}: every head must read its own{ON_ONE_HEAD}"
    assert expected.at_alias is not None
    at_alias = expected.at_alias[place]
    readers = [source.tasks[i] for i, read in zip(expected.tasks, expected.reads, strict=True) if number in read]
    if readers:
        wrong = ", ".join(map(repr, readers))
        return f"{own} is for its loss alone; found that {wrong} reads it: every head must read its own{ON_ONE_HEAD}"
    if not source.taps and not expected.depends[place] and at_alias.isnan():
        return f"its loss must depend on {own}; found that it does not reach the fork"
    if measured_at_alias is not None and bool(deviations(measured_at_alias, at_alias) > limit):
        return (
            f"besides its loss, something else that was differentiated together with the total loss reads {own}: a term of the "
            "total loss that is no task, or two losses on one head. Give a term an alias of its own, Fork(..., "
            "others=('penalty',)), and add losses on one head up, or measure with PerLoss"
        )
    return (
        f"its loss must reach the last shared layer through {own} alone; found that it also reaches it past the fork, or that "
        "the layer's weight is used a second time, or that the layer does not compute what its class says. PerLoss measures "
        "such a loss; for a layer, name the parameters, parameters=('weight',), so that they are measured from the graph"
    )


def wrapper_of(losses: Iterable[Tensor], parameters: Iterable[Tensor]) -> str:
    """Which wrapper for several processes would take a gradient that is asked for for the backward pass; empty for none."""
    if any(map(is_sharded, parameters)):
        return "W is sharded, and fully_shard takes the first pass for the backward pass"
    for node in _graph(losses):
        name = node.name()
        if name == "RegisterPostBackwardFunctionBackward":
            return "fully_shard takes the first pass for the backward pass"
        if name == "_DDPSinkBackward" and node.ddp_weakref().static_graph:
            return STATIC_GRAPH
    return ""


def _graph(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes that the outputs come from."""
    seen: set[Any] = set()
    stack = [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(below for below, _ in node.next_functions)


ON_ONE_HEAD = ". Losses on one head are one task, their sum, or are measured with PerLoss"

STATIC_GRAPH = "DistributedDataParallel(static_graph=True) takes the first pass for the backward pass"


def _gradients(loss: Tensor, targets: Sequence[Tensor]) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    if not loss.requires_grad:
        return [None] * len(targets)
    for scale in _SCALES:
        seed = torch.full_like(loss, scale)
        raw = torch.autograd.grad(loss, targets, seed, retain_graph=True, allow_unused=True)
        found = [None if g is None else g.float() / scale if g.dtype == torch.float16 else g / scale for g in raw]
        if all(g is None or bool(g.isfinite().all()) for g in found):
            break
    return found


def _at_features(
    source: GradientSource,
    number: int,
    own: Sequence[Tensor | None],
    features: Sequence[Tensor],
    whole: Sequence[Tensor | None],
) -> Tensor:
    """The gradients that reach the features by a task's own aliases, and the rest. One feature may depend on another."""
    direct: list[Tensor | None] = [None] * len(features)
    rest = list(whole)
    for i, (alias, g) in enumerate(zip(source.aliases.get(number, []), own, strict=True)):
        if g is None:
            continue
        unit = g.abs().amax().nan_to_num(1.0).clamp(min=SMALLEST) if g.numel() else 1.0  # else it may vanish in float16
        with source.pause():
            found = differentiate([alias], features, [(g / unit).to(alias.dtype)])
        through = [None if t is None else t.to(g.dtype) * unit for t in found]
        direct[i] = through[i]
        rest = [w if w is None or t is None else w - t for w, t in zip(rest, through, strict=True)]
    return flat([*features, *features], [*direct, *rest])


def _norm(gradients: Sequence[Tensor | None], loss: Tensor) -> Tensor:
    """The norm of all of them; NaN where there is none."""
    norms = [torch.linalg.vector_norm(g.detach(), dtype=_real(g)).double() for g in gradients if g is not None]
    return torch.stack(norms).norm() if norms else torch.full((), torch.nan, dtype=torch.float64, device=loss.device)


def _real(gradient: Tensor) -> torch.dtype | None:
    return torch.float32 if gradient.dtype in (torch.float16, torch.bfloat16) else None
