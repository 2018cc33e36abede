"""What a head's vertices carry beside their places: normal, region, and what they are on the template."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from model.carried_template import CarriedTemplate
from model.head_fields import BoundBackward, BoundForward, HeadFields
from model.head_model import CANONICAL, HeadModel
from model.root_finding import safe_inverse
from model.units import to_units
from registration.mesh import Mesh

_POINTS_AT_ONCE = 1 << 14


def with_columns(
    head: HeadModel,
    mesh: Mesh,
    identity: str | ArrayLike,
    expression: str | ArrayLike,
    carried: CarriedTemplate | None = None,
    canonical_mm: NDArray[np.float32] | None = None,
) -> Mesh:
    """Give the vertices of a head's mesh their columns.

    Args:
        head: the model that the mesh is of.
        mesh: what ``head.mesh`` made of the same codes, mm, head frame.
        identity: subject id or code (D,).
        expression: SUBJECT/EXPRESSION, "canonical" or a code (F,).
        carried: the template on the same person; without it there are no columns of it, and a region only where the
            model has a region field.
        canonical_mm: (n, 3) where the vertices come from, if that is known; it is found otherwise.

    Returns:
        The mesh with columns ``nx``, ``ny``, ``nz``, ``region``, and those of ``CarriedTemplate.columns``.
    """
    normals, canonical_mm = _normals(head, mesh.vertices, identity, expression, canonical_mm)
    columns: dict[str, NDArray] = {name: normals[:, axis] for axis, name in enumerate(("nx", "ny", "nz"))}
    if carried is not None:
        columns |= carried.columns(canonical_mm)
    if head.region_field is not None:
        columns["region"] = head.regions(canonical_mm, identity)
    return replace(mesh, attributes={**mesh.attributes, **columns})


def _normals(
    head: HeadModel,
    posed_mm: NDArray[np.float32],
    identity: str | ArrayLike,
    expression: str | ArrayLike,
    canonical_mm: NDArray[np.float32] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit gradients (n, 3) of the distance at posed points, and where these lie in canonical space, mm."""
    z_id = torch.as_tensor(head.identity_code(identity)).to(head.device)[None]
    if isinstance(expression, str) and expression == CANONICAL:
        posed = to_units(torch.as_tensor(posed_mm).to(head.device))
        _, gradient = head.identity_field.sdf_and_gradient(head.identity_field.prepare(z_id), posed)
        return _unit(gradient), posed_mm
    z_ex = torch.as_tensor(head.expression_code(expression)).to(head.device)[None]
    bound = HeadFields(head.identity_field, head.deformation_field).bind(z_id, z_ex)
    if canonical_mm is None:
        canonical_mm = head.unpose(posed_mm, identity, expression)
    normals = [np.zeros((0, 3), np.float32)]
    for start in range(0, len(posed_mm), _POINTS_AT_ONCE):
        posed, canonical = (
            to_units(torch.as_tensor(points[start : start + _POINTS_AT_ONCE]).to(head.device))
            for points in (posed_mm, canonical_mm)
        )
        normals.append(_unit(_posed_gradient(bound, posed, canonical)))
    return np.concatenate(normals), canonical_mm


def _posed_gradient(bound: BoundForward | BoundBackward, posed: Tensor, canonical: Tensor) -> Tensor:
    """Gradient (n, 3) of the distance in posed space; of a forward deformation by the inverse of its Jacobian."""
    if isinstance(bound, BoundForward):
        _, gradient = bound.identity.sdf_and_gradient(bound.prepared_identity, canonical)
        return (safe_inverse(bound.jacobian(canonical)).transpose(1, 2) @ gradient[:, :, None])[:, :, 0]
    given = posed.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(bound.distance(given, canonical).sum(), given)
    return gradient


def _unit(gradient: Tensor) -> NDArray[np.float32]:
    return np.asarray(torch.nn.functional.normalize(gradient, dim=1).cpu().numpy(), np.float32)
