"""The paper's fit as it stands: first-order steps on codes, roots by Broyden's method, gradients by autograd.

One observation here, no pose. Left out is the extra weight on three codes at the back of the head, which names anchors
of the authors' own template.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.codes import IdentityLayout
from model.root_finding import find_canonical

POINTS = 1000
RATE = 0.01
RATE_HALVES_AT = (200, 400, 600, 800)
STEPS = 1000
SURFACE = 2.0
WEIGHTS: dict[str, tuple[float, dict[int, float]]] = {
    "expression": (0.01, {600: 10}),
    "global": (0.25, {200: 3, 600: 10}),
    "local": (0.05, {500: 3, 600: 10}),
    "symmetry": (5.0, {200: 10, 500: 9999}),
}
"""Weight at the start, and what it is divided by from which step on."""
TRUNCATION = ((500, 0.0075), (250, 0.05), (0, 0.1))
"""From a step on, distances above this, in model units, count for nothing."""
ROOT_STEPS, ROOT_TOLERANCE, ROOT_LIMIT = 15, 1e-6, 0.2


class PlainFit:
    """A fit under way.

    Args:
        identity, deformation: fields; either the plain ones or ours, which have the same methods.
        layout: of the identity code.
        expression_dim: entries of the expression code.
        points: (n, 3) observed, head frame, model units.
        quick: with our fields, roots start where each point came from last, and Jacobians need no autograd: the same
            answers sooner, for counting steps.
    """

    def __init__(
        self,
        identity: Any,
        deformation: Any,
        layout: IdentityLayout,
        expression_dim: int,
        points: Tensor,
        quick: bool = False,
    ) -> None:
        self.identity, self.deformation, self.layout, self.points = identity, deformation, layout, points
        self.places = points.clone() if quick else None
        self.z_id = torch.zeros(1, layout.size, requires_grad=True)
        self.z_ex = torch.zeros(1, expression_dim, requires_grad=True)
        self.optimisers = [torch.optim.Adam([code], lr=RATE) for code in (self.z_id, self.z_ex)]
        self.rng = torch.Generator().manual_seed(0)
        self.done = 0

    def step(self) -> None:
        """One step of both codes."""
        pick = torch.randint(len(self.points), (POINTS,), generator=self.rng)
        posed = self.points[pick]
        index = torch.zeros(len(posed), dtype=torch.int64)
        of_identity = self.identity.prepare(self.z_id)
        of_motion = self.deformation.prepare(self.z_id, of_identity.anchors, self.z_ex)

        def move(points: Tensor) -> Tensor:
            return points + self.deformation.displacement(of_motion, points, index)

        if self.places is None:
            canonical, found = _roots(move, posed)
            inverse = _inverse_jacobian(move, canonical)
        else:
            canonical, found, inverse = self._quick_roots(of_motion, posed, pick)
        reposed = move(canonical)
        canonical = canonical - (inverse @ (reposed - reposed.detach())[:, :, None])[:, :, 0]
        distance = self.identity.sdf(of_identity, canonical, index).abs()
        limit = next(limit for start, limit in TRUNCATION if self.done >= start)
        counted = distance[found & (distance < limit)]
        loss = SURFACE * counted.mean() if len(counted) else distance.new_zeros(())
        loss = loss + sum(self._weight(name) * term for name, term in self._priors().items())
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = RATE * 0.5 ** sum(self.done >= at for at in RATE_HALVES_AT)
            optimiser.zero_grad()
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()
        self.done += 1

    def _quick_roots(self, of_motion: Any, posed: Tensor, pick: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.places is not None

        def shift(points: Tensor) -> Tensor:
            return self.deformation.displacement(of_motion, points, torch.zeros(len(points), dtype=torch.int64))

        def jacobian(points: Tensor) -> Tensor:
            index = torch.zeros(len(points), dtype=torch.int64)
            return self.deformation.displacement_and_jacobian(of_motion, points, index)[1] + torch.eye(3)

        with torch.no_grad():
            roots = find_canonical(
                shift, posed, self.places[pick], 10 * ROOT_TOLERANCE, ROOT_LIMIT, ROOT_STEPS, jacobian
            )
            self.places[pick[roots.converged]] = roots.canonical[roots.converged]
            return roots.canonical, roots.converged, torch.linalg.inv(jacobian(roots.canonical))

    def state(self) -> dict[str, Tensor]:
        """All that a fit which goes on needs."""
        told = {"z_id": self.z_id.detach(), "z_ex": self.z_ex.detach(), "rng": self.rng.get_state()}
        told["done"] = torch.tensor(self.done)
        if self.places is not None:
            told["places"] = self.places
        for name, optimiser in zip(("id", "ex"), self.optimisers, strict=True):
            for moment, value in next(iter(optimiser.state.values()), {}).items():
                told[f"{name}.{moment}"] = value
        return told

    def restore(self, told: dict[str, Tensor]) -> None:
        """Go on where another fit was."""
        self.done = int(told["done"])
        self.rng.set_state(told["rng"])
        if self.places is not None:
            self.places = told["places"].clone()
        for name, code, optimiser in zip(("id", "ex"), (self.z_id, self.z_ex), self.optimisers, strict=True):
            with torch.no_grad():
                code.copy_(told[f"z_{name}"])
            moments = {key.partition(".")[2]: value for key, value in told.items() if key.startswith(f"{name}.")}
            optimiser.state[code] = {moment: value.clone() for moment, value in moments.items()}

    def _priors(self) -> dict[str, Tensor]:
        z_global, z_local = self.layout.split(self.z_id)
        pairs = z_local[0, : 2 * self.layout.pairs].reshape(self.layout.pairs, 2, -1)
        return {
            "expression": self.z_ex.square().sum(),
            "global": z_global.square().sum(),
            "local": z_local.square().sum(),
            # the root has no slope where both sides are alike, as they are at the start
            "symmetry": ((pairs[:, 0] - pairs[:, 1]).square().sum(1) + 1e-12).sqrt().mean(),
        }

    def _weight(self, name: str) -> float:
        weight, divided = WEIGHTS[name]
        for start, by in divided.items():
            weight /= by if self.done >= start else 1
        return weight


def _roots(move: Any, posed: Tensor) -> tuple[Tensor, Tensor]:
    """Canonical places (n, 3), and which were found (n,); all points take part in every step."""
    inverse = _inverse_jacobian(move, posed)
    with torch.no_grad():
        x, g = posed.clone(), move(posed) - posed
        for _ in range(ROOT_STEPS):
            dx = -(inverse @ g[:, :, None])[:, :, 0]
            x = x + dx
            after = move(x) - posed
            dg, g = after - g, after
            row = (dx[:, None] @ inverse)[:, 0]
            below = (row * dg).sum(1, keepdim=True)
            column = (dx - (inverse @ dg[:, :, None])[:, :, 0]) / torch.where(below.abs() < 1e-12, 1e-12, below)
            inverse = inverse + column[:, :, None] * row[:, None]
            error = g.norm(dim=1)
            if bool(((error < ROOT_TOLERANCE) | (error > ROOT_LIMIT)).all()):
                break
    # single precision seldom reaches the tolerance told: what lies within ten times of it is kept
    return x, error < 10 * ROOT_TOLERANCE


def _inverse_jacobian(move: Any, points: Tensor) -> Tensor:
    """Inverse (n, 3, 3) of the Jacobian of the moved points, by autograd."""
    with torch.enable_grad():
        given = points.detach().clone().requires_grad_(True)
        moved = move(given)
        rows = [torch.autograd.grad(moved[:, axis].sum(), given, retain_graph=axis < 2)[0] for axis in range(3)]
    return torch.linalg.pinv(torch.stack(rows, 1))
