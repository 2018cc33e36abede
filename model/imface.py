"""ImFace as a baseline: three fields of sine networks, face only, trained and fitted as the head model is.

An expression's warp takes posed points to the person's canonical face, the person's warp takes them on to a template,
and a correction is added to the template's distance. Each is five small networks at five keypoints, their weights from
a hyper network of the code, blended by a softmax (``model.imface_fields``). It deviates from its authors' in this:

- It learns from our samples and registrations: distances of canonical faces, dense correspondences of posed ones.
  Theirs has distances in every expression and correspondences at keypoints alone. This helps it.
- The shape is learnt first and then the expressions, as in NPHM, not both at once.
- The ball that is learnt has a radius of 130 mm in place of 100, so that it holds the whole face that is scored; the
  centre lies behind the mean tip of the nose in place of each one's own.
- Losses count in its own proportions, over a common factor, but codes are held to 0 as loosely as ours; normals cost
  the length of the difference in place of one minus the cosine; far distances are limited as ours are.
- It is fitted with our Gauss-Newton method to points alone, one identity for all of a person's scans. Theirs takes
  1,500 steps with distances, normals and keypoints, and gives each scan an identity of its own.
- The warps are translations; the blending network has one hidden layer, its size is not published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import DeformationConfig, FieldConfig, ImFaceConfig, TrainingConfig
from model.head_fitter import NphmFitter
from model.head_model import HeadModel
from model.imface_fields import FaceBall, ImFaceShape
from model.observation import FittedHead, Observation
from model.training_data import BatchSource, TrainingData
from model.units import to_mm
from registration.mesh import transform_points
from storage.errors import ConfigError, one_line

_COLUMNS = {
    "surface": ("surface", "normal", "region", "face", "observed"),
    "near": ("near", "near_sdf", "near_observed"),
    "space": ("space", "space_sdf", "space_observed"),
    "posed": ("posed", "canonical", "pair_region", "weight"),
}
"""Columns of a batch that go together, by the one that tells the places."""


def imface_field(sizes: ImFaceConfig) -> FieldConfig:
    """The architecture."""
    motion = DeformationConfig(direction="backward", expression_dim=sizes.code_dim, compressed_dim=1)
    return FieldConfig(deformation=motion, imface=sizes)


def imface_losses(config: TrainingConfig) -> TrainingConfig:
    """Its losses in its proportions (in its units: distances 3,000, normals 100, eikonal 50, correction 100, keypoints
    1,000, warped keypoints 100), those of distances being 1 in ours.
    """
    identity = config.identity_losses.model_copy(
        update={
            "surf_sdf": 1.0,
            "near_sdf": 1.0,
            "space_sdf_direct": 1.0,
            "normals": 0.0133,
            "grad": 0.0067,
            "correction": 0.033,
            "anchors": 0.83,
            "refer": 0.083,
            "symm_dist": 0.0,
        }
    )
    deformation = config.deformation_losses.model_copy(update={"keypoints": 0.83})
    return config.model_copy(update={"identity_losses": identity, "deformation_losses": deformation})


def imface_data(data: TrainingData, sizes: ImFaceConfig) -> TrainingData:
    """The batches' part within the ball about the face.

    Args:
        data: whose anchors are the five keypoints, and whose batches of expressions have ``keypoints`` too.
        sizes: tell the ball.
    """
    centre_mm = np.asarray(data.mean_anchors_mm, np.float64)[2] - [0.0, 0.0, sizes.behind_nose_mm]

    def within(batches: BatchSource) -> BatchSource:
        return FaceBatches(batches, centre_mm, sizes.crop_mm)

    motion = None if data.deformation is None else within(data.deformation)
    return replace(data, identity=within(data.identity), deformation=motion, anchor_pairs=0)


@dataclass(frozen=True)
class FaceBatches:
    """Batches without the points outside a ball; satisfies ``model.training_data.BatchSource``.

    Each line keeps as many points of a kind as the line that has the fewest inside.

    Attributes:
        batches: of whole heads.
        centre_mm: (3,) head frame.
        radius_mm: of the ball.
    """

    batches: BatchSource
    centre_mm: NDArray[np.float64]
    radius_mm: float

    def __next__(self) -> dict[str, NDArray]:
        """The next batch.

        Raises:
            ConfigError: a line has no point of a kind in the ball.
        """
        batch: Mapping[str, NDArray] = next(self.batches)
        cut = dict(batch)
        for place, columns in _COLUMNS.items():
            if place not in batch:
                continue
            outside = np.linalg.norm(batch[place] - self.centre_mm, axis=2) > self.radius_mm
            count = int((~outside).sum(1).min())
            if count == 0:
                why, remedy = "none lies in the ball about the face", "ask for more points a batch"
                raise ConfigError(one_line(f"no {place} points to learn from", "ImFace", why, remedy))
            chosen = np.argsort(outside, axis=1, kind="stable")[:, :count]
            for name in set(columns) & set(batch):
                rows = chosen.reshape(*chosen.shape, *[1] * (batch[name].ndim - 2))
                cut[name] = np.take_along_axis(batch[name], rows, 1)
        return cut

    def state(self) -> dict[str, Any]:
        """Where the iteration stands."""
        return self.batches.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.batches.restore(state)


@dataclass(frozen=True)
class ImFaceFitter(NphmFitter):
    """Fits ImFace with the head model's own method; satisfies ``model.observation.HeadFitter``."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return "imface"

    def fit(self, observations: Sequence[Observation], seed: int) -> tuple[FittedHead, ...]:
        """Fit, and mesh each face as far as the ball goes that was learnt."""
        return tuple(self._within(fitted) for fitted in super().fit(observations, seed))

    def _within(self, fitted: FittedHead) -> FittedHead:
        field = self.head.identity_field
        assert isinstance(field, ImFaceShape)
        centre_mm, radius_mm = learnt_ball_mm(field.ball, field)
        T_head_from_told = np.linalg.inv(fitted.T_told_from_head)
        away = transform_points(T_head_from_told, fitted.mesh.vertices.astype(np.float64)) - centre_mm
        inside = np.linalg.norm(away, axis=1) <= radius_mm
        return replace(fitted, mesh=fitted.mesh.select_vertices(inside), regions=("face",))


def learnt_ball_mm(ball: FaceBall, field: ImFaceShape) -> tuple[NDArray[np.float64], float]:
    """Centre (3,) and radius of what was learnt, head frame, mm."""
    centre = ball.centre(field.anchors_head.mean)
    return to_mm(centre).cpu().double().numpy(), float(to_mm(ball.radius))


def imface_box_mm(head: HeadModel) -> HeadModel:
    """The model with a box no larger than the ball about the face."""
    field = head.identity_field
    assert isinstance(field, ImFaceShape)
    centre, radius = learnt_ball_mm(field.ball, field)
    low, high = np.maximum(head.box_mm[0], centre - radius), np.minimum(head.box_mm[1], centre + radius)
    return replace(head, box_mm=np.stack([low, high]))
