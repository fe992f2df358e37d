"""Numbers that a source measures, read as a user reads them: by a balancer that leaves the weights at 1."""

from __future__ import annotations

import torch

import equipoise as eq


def norms_of(source, forward):
    """The norms in the log after one step with the losses that ``forward()`` returns, in the form of squared norms."""
    balancer = eq.Equal(source, every=1)
    balancer(forward()).backward()
    balancer.step()
    return balancer.log()["gradient_norms"]


def rows_of(source, forward):
    """The gradient of every task at W ``(T, P)`` after one step with the losses that ``forward()`` returns; the log "
    "is the same."""
    balancer = eq.Equal(source, every=1, accumulate=True)
    balancer(forward()).backward()
    rows = source.measured().clone()
    balancer.step()
    torch.testing.assert_close(balancer.log()["gradient_norms"], rows.norm(dim=1).to(balancer.weights.dtype))
    return rows


def autograd_rows(losses, parameters):
    """The same by one call of autograd per task, without the library."""
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        dense = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, found, strict=True)]
        real = [torch.view_as_real(g) if g.is_complex() else g for g in dense]
        rows.append(torch.cat([g.flatten() for g in real]))
    return torch.stack(rows)
