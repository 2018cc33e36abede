"""Canonical correspondences of observed points under a forward deformation, and gradients through them.

The deformation maps canonical to posed: x_p = x_c + delta(x_c). An observed point is posed, so its canonical place is
the root of x_c + delta(x_c) - x_p. Broyden's method finds it; the implicit function theorem gives its gradient without
differentiating through the iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Displacement = Callable[[Tensor], Tensor]
"""Canonical points (m, 3) to their displacements (m, 3), each point by itself; model units."""

Jacobian = Callable[[Tensor], Tensor]
"""Canonical points (m, 3) to the Jacobians (m, 3, 3) of their posed places."""


@dataclass(frozen=True)
class Roots:
    """Where observed points come from.

    Attributes:
        canonical: (n, 3) the best iterate of each point, detached.
        converged: (n,) bool; the others' positions mean nothing and belong in no loss.
        error: (n,) distance between the point posed from there and the observed point, model units.
        steps: evaluations of the displacement after the first.
    """

    canonical: Tensor
    converged: Tensor
    error: Tensor
    steps: int


def find_canonical(
    displacement: Displacement,
    posed: Tensor,
    start: Tensor | None = None,
    tolerance: float = 2e-5,
    largest_step: float = 0.2,
    max_steps: int = 15,
    jacobian: Jacobian | None = None,
) -> Roots:
    """Solve x_c + delta(x_c) = x_p for many points at once; those that have converged leave the batch.

    Broyden's method from the exact inverse Jacobian at the start, as in the paper. Points that do not converge from
    ``start`` are tried once more from the first fixed-point step, x_p - delta(x_p).

    Args:
        displacement: the deformation field with its codes bound.
        posed: (n, 3) observed points, model units.
        start: (n, 3) first guess, such as an earlier solution; ``posed`` by default.
        tolerance: distance at which a point counts as converged; 2e-5 units are 0.005 mm.
        largest_step: a point whose error grows beyond this is given up.
        max_steps: Broyden steps of each try.
        jacobian: of the posed places, where there is a quicker way than ``posed_jacobian``.
    """
    posed = posed.detach()
    first = posed if start is None else start.detach()
    slope = jacobian or (lambda x: posed_jacobian(displacement, x))
    roots = _broyden(displacement, slope, posed, first, tolerance, largest_step, max_steps)
    missed = (~roots.converged).nonzero()[:, 0]
    if len(missed) == 0:
        return roots
    with torch.no_grad():
        second = posed[missed] - displacement(posed[missed])
    again = _broyden(displacement, slope, posed[missed], second, tolerance, largest_step, max_steps)
    better = again.error < roots.error[missed]
    chosen = missed[better]
    roots.canonical[chosen] = again.canonical[better]
    roots.error[chosen] = again.error[better]
    return Roots(roots.canonical, roots.error <= tolerance, roots.error, roots.steps + again.steps)


def _broyden(
    displacement: Displacement,
    jacobian: Jacobian,
    posed: Tensor,
    start: Tensor,
    tolerance: float,
    largest_step: float,
    max_steps: int,
) -> Roots:
    with torch.no_grad():
        g = start + displacement(start) - posed
        best, best_error = start.clone(), g.norm(dim=1)
        active = (best_error > tolerance).nonzero()[:, 0]
    steps = 0
    if len(active) == 0:
        return Roots(best, best_error <= tolerance, best_error, steps)
    x, g = start[active], g[active]
    inverse = safe_inverse(jacobian(x))
    with torch.no_grad():
        while len(active) and steps < max_steps:
            steps += 1
            dx = -(inverse @ g[:, :, None])[:, :, 0]
            # a step across half a head is no step towards the root but a singular Jacobian
            dx = dx * (largest_step / dx.norm(dim=1, keepdim=True).clamp_min(largest_step))
            x = x + dx
            after = x + displacement(x) - posed[active]
            dg, g = after - g, after
            error = g.norm(dim=1)
            improved = error < best_error[active]
            best[active[improved]] = x[improved]
            best_error[active[improved]] = error[improved]
            # Sherman-Morrison: the inverse that maps the seen change of g to the step that caused it
            row = (dx[:, None, :] @ inverse)[:, 0]
            denominator = (row * dg).sum(1)
            denominator = torch.where(denominator.abs() < 1e-12, torch.full_like(denominator, 1e-12), denominator)
            column = dx - (inverse @ dg[:, :, None])[:, :, 0]
            inverse = inverse + (column / denominator[:, None])[:, :, None] * row[:, None, :]
            stay = (error > tolerance) & (error < best_error[active] + largest_step)
            active, x, g, inverse = active[stay], x[stay], g[stay], inverse[stay]
    return Roots(best, best_error <= tolerance, best_error, steps)


def posed_jacobian(displacement: Displacement, canonical: Tensor) -> Tensor:
    """Jacobian (n, 3, 3) of x + delta(x) at canonical points (n, 3), detached; row i belongs to coordinate i."""
    with torch.enable_grad():
        x = canonical.detach().requires_grad_(True)
        delta = displacement(x)
        rows = [
            torch.autograd.grad(delta[:, i].sum(), x, retain_graph=i < 2, materialize_grads=True)[0] for i in range(3)
        ]
    return torch.stack(rows, 1) + torch.eye(3, dtype=canonical.dtype, device=canonical.device)


def safe_inverse(matrices: Tensor, smallest_determinant: float = 1e-3) -> Tensor:
    """Inverse of (n, 3, 3) matrices by cofactors; the identity where the deformation folds or nearly so."""
    a, b, c = matrices.unbind(1)
    cofactors = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 2)
    determinant = (a * cofactors[:, :, 0]).sum(1)
    bad = determinant.abs() < smallest_determinant
    inverse = cofactors / torch.where(bad, torch.ones_like(determinant), determinant)[:, None, None]
    eye = torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    return torch.where(bad[:, None, None], eye, inverse)


def implicit_canonical(canonical: Tensor, reposed: Tensor, observed: Tensor, inverse_jacobian: Tensor) -> Tensor:
    """Canonical points with the gradient of the implicit function theorem; their values stay what they are.

    x = x_c - J^-1 ((x_p - x_p.detach()) - (x_o - x_o.detach())): a code that would push the point's posed place away
    moves its canonical place the other way, and a pose that moves the observed point takes its canonical place along.

    Args:
        canonical: (n, 3) roots.
        reposed: (n, 3) the roots posed again, with gradients to the codes and without any to ``canonical``.
        observed: (n, 3) the observed points, with gradients to a pose where there is one.
        inverse_jacobian: (n, 3, 3) inverse of ``posed_jacobian`` at the roots.
    """
    change = (reposed - reposed.detach()) - (observed - observed.detach())
    return canonical.detach() - (inverse_jacobian.detach() @ change[:, :, None])[:, :, 0]
