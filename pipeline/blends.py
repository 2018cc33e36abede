"""Blends of registered people and of their expressions, as training batches (see ``model.blend_shares``)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.blend_shares import draw_expression_shares, draw_shares, part_root, part_weights
from model.config import IdentityConfig
from pipeline.batches import Batch, NumberedBatches, Prepare
from pipeline.compared import read_registration, spread
from pipeline.deformation_samples import vertex_confidence
from pipeline.training_scans import TrainingScans, mean_plane
from registration.mesh import face_areas, unit, vertex_normals
from registration.template import Template
from storage.digest import digest_bytes, digest_json
from storage.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pipeline.train_config import TrainConfig
    from pipeline.workspace import Workspace

_LEAST_CONFIDENCE = 1e-3
"""What a vertex that nothing speaks for counts: confidences are multiplied, so it can't be nothing."""


@dataclass(frozen=True)
class RegisteredPeople:
    """Registrations of S people and T of their scans in one topology of n vertices and f faces, head frame.

    Attributes:
        faces: (f, 3).
        anchors: (K,) vertices.
        anchor_pairs: number of mirrored pairs.
        density: (f,) how densely each face is to be sampled.
        throat_plane: (4,) the people's mean, mm; what has n.x + d >= 0 belongs to the head.
        canonical_mm: (S, n, 3) float32.
        doubt: (S, n) float32, minus the logarithm of each vertex's confidence.
        scan: (T,) int64 place of each motion's scan among all scans.
        motion_mm: (T, n, 3) float32 from the canonical to the posed registration.
        motion_doubt: (T, n) float32, the larger one of both registrations.
    """

    faces: NDArray[np.integer]
    anchors: NDArray[np.integer]
    anchor_pairs: int
    density: NDArray[np.float64]
    throat_plane: NDArray[np.float64]
    canonical_mm: NDArray[np.float32]
    doubt: NDArray[np.float32]
    scan: NDArray[np.int64]
    motion_mm: NDArray[np.float32]
    motion_doubt: NDArray[np.float32]

    @classmethod
    def read(
        cls, workspace: Workspace, scans: TrainingScans, most_motions: int, template: Template | None = None
    ) -> RegisteredPeople:
        """The registrations of the training subjects, trusted as far as the sample step trusts them.

        Args:
            workspace: with accepted registrations.
            scans: whose they are.
            most_motions: so many scans at most, spread evenly over all.
            template: theirs, perhaps with other anchors; the workspace's by default.
        """
        config = workspace.config.sample.deformation
        template = template or workspace.template()

        def read(key: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            mesh, _ = read_registration(workspace, key)
            confidence = np.maximum(vertex_confidence(mesh, config), _LEAST_CONFIDENCE)
            return mesh.vertices.astype(np.float32), -np.log(confidence).astype(np.float32)

        people = [read(str(workspace.canonical_key(subject))) for subject in scans.subjects]
        subject = scans.subject_of_scan()
        chosen = spread(range(len(scans.scans)), most_motions)
        shape = len(chosen), len(template.mesh.vertices)
        motion_mm, motion_doubt = np.empty((*shape, 3), np.float32), np.empty(shape, np.float32)
        for row, place in enumerate(chosen):
            vertices, doubt = read(scans.scans[place])
            start, start_doubt = people[subject[place]]
            motion_mm[row], motion_doubt[row] = vertices - start, np.maximum(doubt, start_doubt)
        return cls(
            template.mesh.faces,
            template.anchors,
            template.anchor_pairs,
            config.density.by_code()[template.regions[template.mesh.faces]].mean(1),
            mean_plane(scans.throat_planes),
            np.stack([vertices for vertices, _ in people]),
            np.stack([doubt for _, doubt in people]),
            np.array(chosen, np.int64),
            motion_mm,
            motion_doubt,
        )

    def digest(self) -> str:
        """Of all of it."""
        arrays = [np.ascontiguousarray(getattr(self, one.name)) for one in fields(self)]
        return digest_json([digest_bytes(array.tobytes()) for array in arrays])


@dataclass(frozen=True)
class BlendCounts:
    """Blends a batch, points a blend, and how many people, or expressions, are mixed; all where there are fewer."""

    blends: int = 8
    points: int = 300
    parents: int = 6


def blend_batches(
    config: TrainConfig, people: RegisteredPeople, seed: int, prepare: Prepare | None = None
) -> tuple[BlendedShapes, BlendedMotions]:
    """Blends as a config asks for them.

    Args:
        config: of the training.
        people: the training subjects and scans, in the order of their codes.
        seed: of the draws.
        prepare: turns each batch into what is handed out, in the thread that reads ahead.

    Raises:
        ConfigError: there are no two people, or nothing of them lies above the throat.
    """
    counts = BlendCounts(config.blends_per_step, config.blend_points, config.blend_parents)
    ground = _Ground.of(people, config.training.field.identity)
    return BlendedShapes(ground, counts, seed, prepare), BlendedMotions(ground, counts, seed, prepare)


@dataclass(frozen=True)
class _Ground:
    """What all blends of some people have in common.

    Attributes:
        people: two or more.
        root: of the correlation between parts, see ``model.blend_shares.part_root``.
        listens: (n, K + 2) how much the field listens to each part at each vertex.
        cumulative: (f,) of the faces' weights: places are drawn by it.
        normals: (S, n, 3) float32 of the people's vertices.
        digest: of the people and of what the field is like.
    """

    people: RegisteredPeople
    root: NDArray[np.float64]
    listens: NDArray[np.float32]
    cumulative: NDArray[np.float64]
    normals: NDArray[np.float32]
    digest: str

    @classmethod
    def of(cls, people: RegisteredPeople, identity: IdentityConfig) -> _Ground:
        """For some people and a field's reach and blending."""
        if len(people.canonical_mm) < 2 or len(people.scan) < 2:
            remedy = "accept scans of more people, or set train.blends_per_step to 0"
            raise ConfigError(one_line("can't be blended", "registrations", "there are no two people", remedy))
        mean = people.canonical_mm.mean(0, dtype=np.float64)
        anchors = mean[people.anchors]
        kept = (mean[people.faces] @ people.throat_plane[:3] + people.throat_plane[3] >= 0).all(1)
        cumulative = np.cumsum(face_areas(mean, people.faces) * people.density * kept)
        if not cumulative[-1] > 0:
            why = "the mean of all registrations lies below the throat plane"
            raise ConfigError(one_line("can't be blended", "registrations", why, "look at their pictures"))
        normals = np.stack([vertex_normals(one, people.faces).astype(np.float32) for one in people.canonical_mm])
        listens = part_weights(mean, anchors, people.anchor_pairs, identity)
        digest = digest_json([people.digest(), identity.model_dump(mode="json")])
        return cls(people, part_root(anchors), listens, cumulative, normals, digest)


class _Blends(NumberedBatches):
    """What both kinds share: whose heads are mixed, and where.

    Args:
        ground: the people.
        counts: sizes of a batch.
        seed: of every draw.
        prepare: turns each batch into what is handed out, in the thread that reads ahead.
        ahead: batches read ahead; 0 makes them when asked.
    """

    kind: int
    """Tells the draws of one kind from those of the other."""

    def __init__(
        self,
        ground: _Ground,
        counts: BlendCounts = BlendCounts(),
        seed: int = 0,
        prepare: Prepare | None = None,
        ahead: int = 2,
    ) -> None:
        told = [self.kind, ground.digest, counts.blends, counts.points, counts.parents, seed]
        super().__init__(digest_json(told), ahead)
        self._ground, self._counts, self._seed, self._prepare = ground, counts, seed, prepare

    def batch_at(self, step: int) -> Batch:
        """The batch of a number; the same for the same number, whatever came before."""
        batch = self._drawn(np.random.default_rng([self._seed, self.kind, step]))
        return batch if self._prepare is None else self._prepare(batch)

    @abstractmethod
    def _drawn(self, rng: np.random.Generator) -> Batch:
        """A batch."""

    def _chosen(self, rng: np.random.Generator, total: int) -> NDArray[np.int64]:
        """(B, m) places out of ``total``, different ones within a blend."""
        every = np.tile(np.arange(total), (self._counts.blends, 1))
        return rng.permuted(every, axis=1)[:, : self._counts.parents]

    def _heads(self, rng: np.random.Generator) -> _BlendedHeads:
        ground, shape = self._ground, (self._counts.blends, self._counts.points)
        subject = self._chosen(rng, len(ground.people.canonical_mm))
        share = draw_shares(rng, ground.root, *subject.shape)
        face = np.searchsorted(ground.cumulative, rng.random(shape) * ground.cumulative[-1], side="right")
        corner = ground.people.faces[face.clip(0, len(ground.cumulative) - 1)]
        r, s = np.sqrt(rng.random(shape)), rng.random(shape)
        bary = np.stack([1 - r, r * (1 - s), r * s], 2).astype(np.float32)
        own = np.einsum("bpik,bmk->bmpi", ground.listens[corner], share, optimize=True)
        return _BlendedHeads(subject, share, corner, bary, own)


@dataclass(frozen=True)
class _BlendedHeads:
    """B blends of m people and P places on each.

    Attributes:
        subject: (B, m) int64.
        share: (B, m, K + 2) of each person in every part.
        corner, bary: (B, P, 3) of the places.
        own: (B, m, P, 3) of each person at the corners.
    """

    subject: NDArray[np.int64]
    share: NDArray[np.float32]
    corner: NDArray[np.integer]
    bary: NDArray[np.float32]
    own: NDArray[np.float32]

    def at(self, values: NDArray[np.float32], chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values (S, n) or (S, n, c) of those chosen (B, m), at the corners: (B, m, P, 3) or (B, m, P, 3, c)."""
        line = chosen[:, :, None, None] * values.shape[1] + self.corner[:, None]
        return values.reshape(-1, *values.shape[2:]).take(line, 0)  # half the time that two indices take

    def inside(self, at_corners: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values (B, P, 3) or (B, P, 3, c) of corners, at the places: (B, P) or (B, P, c)."""
        return np.asarray(np.einsum("bpi,bpi...->bp...", self.bary, at_corners))

    def corners_mm(self, canonical_mm: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, P, 3, 3) the mixed triangles' corners."""
        return np.asarray(np.einsum("bmpi,bmpic->bpic", self.own, self.at(canonical_mm, self.subject)))

    def normals(
        self, corners_mm: NDArray[np.float32], canonical_mm: NDArray[np.float32], normals: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(B, P, 3) of the mixed surface, smooth across edges.

        The mixed normals of the people would be those of the mixed surface if all parts had the same shares. By how
        much the mixed triangle turns away from the people's own, the normal turns with it.
        """
        own = self.at(canonical_mm, self.subject)
        of_people = np.einsum("bmp,bmpc->bpc", self.own.mean(3), _face_normals(own))
        mixed = self.inside(np.einsum("bmpi,bmpic->bpic", self.own, self.at(normals, self.subject)))
        return unit(unit(mixed) + _face_normals(corners_mm) - unit(of_people))

    def doubt(self, doubt: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, P) of the mixed places, of the people's (S, n): each counts as much as its share moves the place."""
        return self.inside(np.einsum("bmpi,bmpi->bpi", np.abs(self.own), self.at(doubt, self.subject)))


def _face_normals(corners: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit normals (..., 3) of triangles (..., 3, 3)."""
    first, second = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    return unit(np.cross(first, second))


class BlendedShapes(_Blends):
    """Endless batches of blended people for the identity field.

    A batch is ``subject`` (B, m) int64, ``share`` (B, m, K + 2), ``surface`` and ``normal`` (B, P, 3), ``weight``
    (B, P) from 0 to 1, ``anchors`` (B, K, 3), which the global part's shares mix, as it alone tells where they are;
    float32, mm, head frame.
    """

    kind = 0

    def _drawn(self, rng: np.random.Generator) -> Batch:
        heads, ground, people = self._heads(rng), self._ground, self._ground.people
        corners_mm = heads.corners_mm(people.canonical_mm)
        at_anchors = people.canonical_mm[heads.subject[:, :, None], people.anchors]
        return {
            "subject": heads.subject,
            "share": heads.share,
            "surface": heads.inside(corners_mm),
            "normal": heads.normals(corners_mm, people.canonical_mm, ground.normals),
            "weight": np.exp(-heads.doubt(people.doubt)),
            "anchors": np.einsum("bm,bmkc->bkc", heads.share[:, :, 0], at_anchors),
        }


class BlendedMotions(_Blends):
    """Endless batches of blended expressions on blended people for the deformation field.

    Whose expressions are mixed has nothing to do with whose heads are: so the field sees people in expressions that
    were never captured of them. A batch is ``subject`` (B, m) int64, ``share`` (B, m, K + 2), ``scan`` (B, q) int64,
    ``expression_share`` (B, q, 1), ``canonical`` and ``posed`` (B, P, 3), ``weight`` (B, P); float32, mm, head frame.
    """

    kind = 1

    def _drawn(self, rng: np.random.Generator) -> Batch:
        heads, people = self._heads(rng), self._ground.people
        moving = self._chosen(rng, len(people.scan))
        share = draw_expression_shares(rng, *moving.shape)
        canonical = heads.inside(heads.corners_mm(people.canonical_mm))
        motion = heads.inside(np.einsum("bq,bqpic->bpic", share, heads.at(people.motion_mm, moving)))
        doubt = heads.inside(np.einsum("bq,bqpi->bpi", share, heads.at(people.motion_doubt, moving)))
        return {
            "subject": heads.subject,
            "share": heads.share,
            "scan": people.scan[moving],
            "expression_share": share[:, :, None],
            "canonical": canonical,
            "posed": canonical + motion,
            "weight": np.exp(-np.maximum(doubt, heads.doubt(people.doubt))),
        }
