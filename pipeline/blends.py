"""Blends of registered people and of their expressions, as training batches.

Every batch is a function of the seed and its number alone, as those of samples are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.blend_shares import draw_shares, part_root, part_weights
from model.config import IdentityConfig
from model.training_data import TrainingData
from pipeline.batches import Batch, Prepare
from pipeline.compared import read_registration, spread
from pipeline.deformation_samples import vertex_confidence
from pipeline.sample_config import DeformationSampleConfig
from registration.mesh import face_areas, vertex_normals
from registration.template import Template
from storage.digest import digest_bytes, digest_json
from storage.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pipeline.train import TrainingScans
    from pipeline.train_config import TrainConfig
    from pipeline.workspace import Workspace

MOST_MOTIONS = 1000
"""So many scans' motions are held at most, spread evenly over all: their memory is bounded."""
_LEAST_CONFIDENCE = 1e-3


@dataclass(frozen=True)
class RegisteredPeople:
    """Registrations of S people and T scans in a template of n vertices, head frame, mm.

    Attributes:
        template: of all.
        canonical: (S, n, 3) float32.
        doubt: (S, n) float32, minus the logarithm of each vertex's confidence.
        scan: (T,) int64 place of each motion's scan among all scans.
        motion: (T, n, 3) float32 from the canonical to the posed registration.
        motion_doubt: (T, n) float32, the larger one of both registrations.
        throat_plane: (4,) the people's mean; what has n.x + d >= 0 belongs to the head.
        density: (f,) how densely each face is to be sampled.
    """

    template: Template
    canonical: NDArray[np.float32]
    doubt: NDArray[np.float32]
    scan: NDArray[np.int64]
    motion: NDArray[np.float32]
    motion_doubt: NDArray[np.float32]
    throat_plane: NDArray[np.float64]
    density: NDArray[np.float64]

    @classmethod
    def read(
        cls,
        workspace: Workspace,
        scans: TrainingScans,
        config: DeformationSampleConfig,
        template: Template | None = None,
    ) -> RegisteredPeople:
        """The registrations of the training subjects.

        Args:
            workspace: with accepted registrations.
            scans: whose they are.
            config: how far a registration is trusted.
            template: theirs, perhaps with other anchors; the workspace's by default.
        """
        from pipeline.train import mean_plane

        def read(key: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            mesh, _ = read_registration(workspace, key)
            confidence = np.maximum(vertex_confidence(mesh, config), _LEAST_CONFIDENCE)
            return mesh.vertices.astype(np.float32), -np.log(confidence).astype(np.float32)

        people = [read(str(workspace.canonical_key(subject))) for subject in scans.subjects]
        subject = scans.subject_of_scan()
        chosen = spread(range(len(scans.scans)), MOST_MOTIONS)
        motions = []
        for place in chosen:
            vertices, doubt = read(scans.scans[place])
            start, start_doubt = people[subject[place]]
            motions.append((vertices - start, np.maximum(doubt, start_doubt)))
        template = template or workspace.template()
        return cls(
            template,
            np.stack([vertices for vertices, _ in people]),
            np.stack([doubt for _, doubt in people]),
            np.array(chosen, np.int64),
            np.stack([motion for motion, _ in motions]),
            np.stack([doubt for _, doubt in motions]),
            mean_plane(scans.throat_planes),
            config.density.by_code()[template.regions[template.mesh.faces]].mean(1),
        )

    def digest(self) -> str:
        """Of everything that batches depend on."""
        arrays = (self.canonical, self.doubt, self.scan, self.motion, self.motion_doubt, self.template.anchors)
        return digest_json([digest_bytes(np.ascontiguousarray(array).tobytes()) for array in arrays])


def with_blends(
    data: TrainingData, people: RegisteredPeople, config: TrainConfig, seed: int, prepare: Prepare | None = None
) -> TrainingData:
    """Training data with blends as a config asks for them. One person alone can't be blended, nor one scan.

    Args:
        data: without blends.
        people: the training subjects and scans, in the order of their codes.
        config: of the training, with blends.
        seed: of the draws.
        prepare: turns each batch into what is handed out.
    """
    identity = config.training.field.identity
    settings = (config.blends_per_step, config.blend_points, config.blend_parents, seed, prepare)
    if len(people.canonical) < 2:
        return data
    data = replace(data, shape_blends=BlendedShapes(people, identity, *settings))
    if data.deformation is None or len(people.scan) < 2:
        return data
    return replace(data, motion_blends=BlendedMotions(people, identity, *settings))


class _Blends(ABC):
    """What both kinds share: the people, where points are drawn, and how far the iteration stands.

    Args:
        people: two or more.
        identity: reach and blending of the field.
        blends: B, blends a batch.
        points: P, points a blend.
        parents: people a blend; all where there are fewer.
        seed: of every draw.
        prepare: turns each batch into what is handed out.
    """

    kind: str

    def __init__(
        self,
        people: RegisteredPeople,
        identity: IdentityConfig,
        blends: int = 8,
        points: int = 300,
        parents: int = 6,
        seed: int = 0,
        prepare: Prepare | None = None,
    ) -> None:
        self._people, self._seed, self._prepare = people, seed, prepare
        self._blends, self._points, self._parents = blends, points, min(parents, len(people.canonical))
        template = people.template
        mean = people.canonical.mean(0, dtype=np.float64)
        anchors = mean[template.anchors]
        self._root = part_root(anchors)
        self._listens = part_weights(mean, anchors, template.anchor_pairs, identity)
        faces = template.mesh.faces
        kept = (mean[faces] @ people.throat_plane[:3] + people.throat_plane[3] >= 0).all(1)
        self._cumulative = np.cumsum(face_areas(mean, faces) * people.density * kept)
        if not self._cumulative[-1] > 0:
            why = "the mean of all registrations lies below the throat plane"
            raise ConfigError(one_line("can't be blended", "registrations", why, "look at their pictures"))
        settings = [blends, points, parents, seed, identity.model_dump(mode="json")]
        self._digest = digest_json([self.kind, people.digest(), settings])
        self._step = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.batch_at(self._step)
        self._step += 1
        return batch if self._prepare is None else self._prepare(batch)

    def state(self) -> dict[str, Any]:
        """Where the iteration stands, as plain values."""
        return {"step": self._step, "digest": self._digest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, bit for bit.

        Raises:
            ConfigError: the state belongs to other registrations, settings or another seed.
        """
        if state["digest"] != self._digest:
            why = "its registrations, settings or seed differ"
            raise ConfigError(one_line("is of other blends", "loader state", why, "start training anew"))
        self._step = int(state["step"])

    @abstractmethod
    def batch_at(self, step: int) -> Batch:
        """The batch of a number."""

    def _chosen(self, rng: np.random.Generator, total: int, count: int) -> NDArray[np.int64]:
        """(B, count) places out of ``total``, different ones within a blend."""
        return rng.permuted(np.tile(np.arange(total), (self._blends, 1)), axis=1)[:, :count]

    def _places(self, rng: np.random.Generator) -> _Places:
        shape = self._blends, self._points
        face = np.searchsorted(self._cumulative, rng.random(shape) * self._cumulative[-1], side="right")
        r, s = np.sqrt(rng.random(shape)), rng.random(shape)
        bary = np.stack([1 - r, r * (1 - s), r * s], 2).astype(np.float32)
        return _Places(self._people.template.mesh.faces[face.clip(0, len(self._cumulative) - 1)], bary)

    def _blended_people(self, rng: np.random.Generator) -> _BlendedPeople:
        people = self._people
        subject = self._chosen(rng, len(people.canonical), self._parents)
        share = draw_shares(rng, self._root, *subject.shape)
        places = self._places(rng)
        own = np.einsum("bpk,bnk->bnp", places.of(self._listens), share, optimize=True)
        return _BlendedPeople(subject, share, places, own)


@dataclass(frozen=True)
class _Places:
    """Places on the template: corners (B, P, 3) and barycentric coordinates (B, P, 3)."""

    corner: NDArray[np.int64]
    bary: NDArray[np.float32]

    def of(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values (n, c) of the vertices, at the places: (B, P, c)."""
        return np.asarray(np.einsum("bpi,bpic->bpc", self.bary, values[self.corner]))

    def of_each(self, values: NDArray[np.float32], chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values (S, n) or (S, n, c) of those chosen (B, m), at the places: (B, m, P) or (B, m, P, c)."""
        at = values[chosen[:, :, None, None], self.corner[:, None]]
        return np.asarray(np.einsum("bpi,bmpi...->bmp...", self.bary, at))


@dataclass(frozen=True)
class _BlendedPeople:
    """The people ``subject`` (B, n), their ``share`` (B, n, parts) and their own (B, n, P) at each place."""

    subject: NDArray[np.int64]
    share: NDArray[np.float32]
    places: _Places
    own: NDArray[np.float32]

    def mean(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values (S, n, 3) of the people, mixed at the places: (B, P, 3)."""
        return np.asarray(np.einsum("bmp,bmpc->bpc", self.own, self.places.of_each(values, self.subject)))

    def doubt(self, doubt: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of the mixed places (B, P): each one's doubt counts as much as its share moves them."""
        return np.asarray((np.abs(self.own) * self.places.of_each(doubt, self.subject)).sum(1))


class BlendedShapes(_Blends):
    """Endless batches of blended people for the identity field.

    A batch is ``subject`` (B, n) int64, ``share`` (B, n, K + 2), ``surface`` and ``normal`` (B, P, 3), ``weight``
    (B, P) from 0 to 1, ``anchors`` (B, K, 3); float32, mm, head frame.
    """

    kind = "shapes"

    def __init__(self, people: RegisteredPeople, identity: IdentityConfig, *settings: Any, **named: Any) -> None:
        super().__init__(people, identity, *settings, **named)
        faces = people.template.mesh.faces
        self._normals = np.stack([vertex_normals(one, faces).astype(np.float32) for one in people.canonical])

    def batch_at(self, step: int) -> Batch:
        """The batch of a number."""
        people = self._people
        blended = self._blended_people(np.random.default_rng([self._seed, step, 0]))
        normal = blended.mean(self._normals)
        at_anchors = people.canonical[blended.subject[:, :, None], people.template.anchors]
        return {
            "subject": blended.subject,
            "share": blended.share,
            "surface": blended.mean(people.canonical),
            "normal": normal / np.linalg.norm(normal, axis=2, keepdims=True).clip(1e-6),
            "weight": np.exp(-blended.doubt(people.doubt)),
            "anchors": np.einsum("bnk,bnkc->bkc", blended.share[:, :, 1:-1], at_anchors),
        }


class BlendedMotions(_Blends):
    """Endless batches of blended expressions on blended people for the deformation field.

    Whose expressions are mixed has nothing to do with whose heads are: so the field sees people in expressions that
    were never captured of them. A batch is ``subject`` (B, n) int64, ``share`` (B, n, K + 2), ``scan`` (B, m) int64,
    ``expression_share`` (B, m, 1), ``canonical`` and ``posed`` (B, P, 3), ``weight`` (B, P); float32, mm, head frame.
    """

    kind = "motions"

    def batch_at(self, step: int) -> Batch:
        """The batch of a number."""
        people = self._people
        rng = np.random.default_rng([self._seed, step, 1])
        blended = self._blended_people(rng)
        moving = self._chosen(rng, len(people.scan), min(self._parents, len(people.scan)))
        share = draw_shares(rng, np.ones((1, 1)), *moving.shape)
        canonical = blended.mean(people.canonical)
        motion = np.einsum("bmk,bmpc->bpc", share, blended.places.of_each(people.motion, moving))
        doubt = np.einsum("bmk,bmp->bp", np.abs(share), blended.places.of_each(people.motion_doubt, moving))
        return {
            "subject": blended.subject,
            "share": blended.share,
            "scan": people.scan[moving],
            "expression_share": share,
            "canonical": canonical,
            "posed": canonical + motion,
            "weight": np.exp(-np.maximum(doubt, blended.doubt(people.doubt))),
        }
