"""Learn a jaw from registrations: how far it turned in each scan, about where, and how far each vertex goes along."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from model.linear_head import Jaw
from registration.mesh import edges
from registration.template import REGIONS, Template

_HINGE = [0, 16]
"""Landmarks before the ears, near the joints."""
_CHIN = [6, 7, 8, 9, 10]
_MOUTH_CORNERS = [48, 54]
_CHIN_VERTICES = 60
_JOINT_SPREAD_MM, _CHIN_NOISE_MM = 15.0, 0.3
"""How far the joint may lie from the landmarks' middle, and a chin, which is soft, from where the bone is."""
_WEIGHT_NOISE_MM = 3.0
"""Motion by the jaw that tells as much of a vertex's weight as its place does."""
_BORDER_DEG = 8.0
_SMOOTHINGS = 3
_LEAST_SPREAD_RAD = np.radians(1.0)


def learn_jaw(
    template: Template,
    canonical_mm: NDArray[np.floating],
    posed_mm: NDArray[np.floating],
    subject: NDArray[np.integer],
) -> tuple[Jaw, NDArray[np.float64]]:
    """Find the jaw that explains most of the posed heads' motion, and take it out of them.

    The jaw's turn in each scan is the rotation about the joint that brings the chin nearest to where it is; the joint
    is where these turns explain the chins best, not far from the ears. A vertex's weight is the share of the turn that
    it takes part in, drawn towards 1 below and 0 above the line from the joints to the mouth's corners where the scans
    tell little.

    Args:
        template: of the registrations, n vertices.
        canonical_mm: (S, n, 3).
        posed_mm: (T, n, 3).
        subject: (T,) into the S.

    Returns:
        The jaw, and the posed heads (T, n, 3) with the jaw turned back.
    """
    canonical, posed = np.asarray(canonical_mm, np.float64)[subject], np.asarray(posed_mm, np.float64)
    hinge = template.landmarks[_HINGE].astype(np.int64)
    chin = _near(template, template.landmarks[_CHIN])
    offset = _joint_offset(canonical[:, hinge].mean(1), canonical[:, chin], posed[:, chin])
    joints = canonical[:, hinge].mean(1) + offset
    turns = _turns(canonical[:, chin] - joints[:, None], posed[:, chin] - joints[:, None])
    arms = (canonical - joints[:, None]) @ (turns - np.eye(3)).transpose(0, 2, 1)
    weights = _weights(template, arms, posed - canonical, offset)
    vectors = Rotation.from_matrix(turns).as_rotvec() if len(turns) else np.zeros((0, 3))
    # the canonical heads, whose jaws have not turned, are as likely as the others
    told = np.concatenate([vectors, np.zeros((len(canonical_mm), 3))])
    jaw = Jaw(weights, hinge, offset, told.mean(0), np.maximum(told.std(0), _LEAST_SPREAD_RAD))
    closed = [_turned_back(*one, weights) for one in zip(posed, turns, joints, strict=True)]
    return jaw, np.asarray(closed).reshape(posed.shape)


def _near(template: Template, landmarks: NDArray[np.integer]) -> NDArray[np.int64]:
    """The vertices nearest to some landmarks on the template."""
    vertices = template.mesh.vertices.astype(np.float64)
    away = np.min([np.linalg.norm(vertices - vertices[one], axis=1) for one in landmarks], axis=0)
    return np.sort(np.argsort(away, kind="stable")[:_CHIN_VERTICES])


def _turns(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotations (T, 3, 3) about the origin that best bring points (T, k, 3) to others (Kabsch)."""
    u, _, v = np.linalg.svd(np.einsum("tka,tkb->tab", after, before))
    u[:, :, 2] *= np.linalg.det(u @ v)[:, None]
    return np.asarray(u @ v)


def _joint_offset(
    middle: NDArray[np.float64], before: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where the joint lies from the hinges' middles (T, 3), so that turns about it best explain the chins (T, k, 3).

    All scans together count as one chin: what is soft in it is so in each of them alike.
    """
    if len(before) == 0:
        return np.zeros(3)

    def residuals(offset: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b = (chin - (middle + offset)[:, None] for chin in (before, after))
        missed = np.einsum("tab,tkb->tka", _turns(a, b), a) - b
        told = missed.ravel() / (_CHIN_NOISE_MM * np.sqrt(missed.size / 3))
        return np.concatenate([told, offset / _JOINT_SPREAD_MM])

    return np.asarray(least_squares(residuals, np.zeros(3)).x, np.float64)


def _weights(
    template: Template, arms: NDArray[np.float64], moved: NDArray[np.float64], offset: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) from how far vertices move (T, n, 3) and how far they would with the whole turn (T, n, 3)."""
    expected = _expected_weights(template, offset)
    along, whole = np.einsum("tnc,tnc->n", arms, moved), np.einsum("tnc,tnc->n", arms, arms)
    trust = _WEIGHT_NOISE_MM**2
    weights = (along + trust * expected) / (whole + trust)
    weights = 0.5 * (weights + weights[template.mirror])
    n, (a, b) = len(weights), edges(template.mesh.faces).T
    link = sp.coo_matrix((np.ones(2 * len(a)), (np.concatenate([a, b]), np.concatenate([b, a]))), (n, n)).tocsr()
    degree = np.maximum(np.asarray(link.sum(1)).ravel(), 1.0)
    for _ in range(_SMOOTHINGS):
        weights = 0.5 * (weights + link @ weights / degree)
    return np.asarray(np.clip(weights, 0, 1))


def _expected_weights(template: Template, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) 1 on the face below the line from joints to mouth corners, 0 above it, behind it and on the neck."""
    vertices = template.mesh.vertices.astype(np.float64)
    joint = vertices[template.landmarks[_HINGE]].mean(0) + offset
    arm, corner = vertices - joint, vertices[template.landmarks[_MOUTH_CORNERS]].mean(0) - joint
    below = np.degrees(np.arctan2(corner[1], corner[2]) - np.arctan2(arm[:, 1], arm[:, 2]))
    share = np.clip(0.5 + below / (2 * _BORDER_DEG), 0, 1)
    neck = template.regions == REGIONS.index("neck")
    return np.where((arm[:, 2] > 0) & ~neck, share, 0.0)


def _turned_back(
    posed: NDArray[np.float64], turn: NDArray[np.float64], joint: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The shape s (n, 3) whose vertices s + w (R - I) (s - joint) are the posed ones."""
    bend = weights[:, None, None] * (turn - np.eye(3))
    goal = posed + np.einsum("nij,j->ni", bend, joint)
    return np.asarray(np.linalg.solve(np.eye(3) + bend, goal[:, :, None])[:, :, 0])
