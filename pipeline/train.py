"""Train: from the samples of all training subjects to a model folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.batches import DeformationBatches, IdentityBatches, IdentityCounts
from pipeline.sample_format import decode_surface
from pipeline.scan_rows import ScanSource, ShardSource
from pipeline.train_config import Metrics, TrainConfig
from storage.digest import digest_json
from storage.errors import ConfigError, one_line
from storage.manifest import Manifest
from storage.store import Store

if TYPE_CHECKING:
    from pipeline.workspace import Workspace


_BOX_MARGIN_MM = 15.0
_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class TrainingScans:
    """The accepted samples of the training subjects.

    Attributes:
        subjects: ids, sorted.
        subject_sources: canonical scan of each.
        scans: keys, sorted, of the subjects' scans with correspondences.
        scan_sources: one each.
        throat_planes: (subjects, 4) head frame, mm.
    """

    subjects: tuple[str, ...]
    subject_sources: tuple[ScanSource, ...]
    scans: tuple[str, ...]
    scan_sources: tuple[ScanSource, ...]
    throat_planes: NDArray[np.float64]

    def subject_of_scan(self) -> list[int]:
        """The place of each scan's subject."""
        return [self.subjects.index(key.partition("/")[0]) for key in self.scans]


def run_train(workspace: Workspace, key: str) -> Manifest:
    """Train the model ``key``, or go on from its last checkpoint, and publish its folder.

    Raises:
        ConfigError: no training subject has accepted samples.
        StorageConflict: an input is damaged.
    """
    from model.head_model import HeadModel  # torch: loaded by the steps that need it alone
    from model.training import TrainingData, best_device, train
    from model.training_figures import training_figures

    inputs = workspace.inputs("train", key)
    config: TrainConfig = workspace.config.of_step("train")  # type: ignore[assignment]
    seed = workspace.seed("train", "")
    scans = training_scans(workspace)
    checkpoints = Checkpoints(workspace.store, key, digest_json([inputs, config.model_dump(mode="json"), seed]))
    template = workspace.template()
    counts = IdentityCounts(config.surface_points, config.near_points, config.space_points)
    identity = IdentityBatches(
        scans.subject_sources, counts, min(config.subjects_per_step, len(scans.subjects)), seed=seed
    )
    deformation = DeformationBatches(
        scans.scan_sources,
        scans.subject_of_scan(),
        config.pair_points,
        min(config.scans_per_step, len(scans.scans)),
        seed=seed + 1,
    )
    with identity, deformation:
        data = TrainingData(
            identity,
            deformation,
            len(scans.subjects),
            len(scans.scans),
            identity.anchors_mm.mean(0, dtype=np.float64),
            template.anchor_pairs,
        )
        trained = train(
            config.training,
            data,
            checkpoints.save,
            checkpoints.newest(),
            progress=lambda stage, done, of: workspace.tell(done, of, stage),
            seed=seed,
            device=best_device(),
        )
        figures = Metrics.model_validate(training_figures(trained, data)).model_dump(exclude_none=True)
    head = HeadModel.of(
        trained,
        config.training.field,
        scans.subjects,
        scans.scans,
        template,
        head_box_mm(scans.subject_sources),
        mean_plane(scans.throat_planes),
    )
    curve = "".join(json.dumps(line, sort_keys=True) + "\n" for line in trained.curve)
    outputs = head.to_files() | {"curve.jsonl": curve.encode(), "metrics.json": json.dumps(figures, indent=1).encode()}
    manifest = workspace.commit("train", key, inputs=inputs, outputs=outputs, figures=figures)
    checkpoints.clear()
    return manifest


def training_scans(workspace: Workspace) -> TrainingScans:
    """Find the accepted samples of all training subjects.

    Raises:
        ConfigError: there are none.
    """
    sampled: dict[str, ScanSource] = {}
    for key in workspace.scans():
        manifest = workspace.manifest("sample", key)
        if workspace.split(key.partition("/")[0]) == "train" and manifest is not None and manifest.accepted:
            sampled[key] = ShardSource(workspace.store, key, manifest.outputs)
    canonical: dict[str, str] = {}
    for subject in sorted({key.partition("/")[0] for key in sampled}):
        own = workspace.canonical_key(subject)
        if own is not None and own in sampled and sampled[own].rows("surface"):
            canonical[subject] = own
    if not canonical:
        why = f"{len(sampled)} scans of training subjects were sampled, no canonical one among them"
        remedy = "see 'nphm status' for what was rejected"
        raise ConfigError(one_line("nothing to train on", workspace.url, why, remedy))
    scans = sorted(key for key in sampled if key.partition("/")[0] in canonical)
    planes = []
    for key in canonical.values():
        frame = json.loads(workspace.read(workspace.accepted("register", key), "frame.json"))
        planes.append(np.asarray(frame["throat_plane"], np.float64))
    return TrainingScans(
        tuple(canonical),
        tuple(sampled[key] for key in canonical.values()),
        tuple(scans),
        tuple(sampled[key] for key in scans),
        np.stack(planes),
    )


def mean_plane(planes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean (4,) of planes (n, 4), its normal of unit length."""
    unit = planes / np.linalg.norm(planes[:, :3], axis=1, keepdims=True)
    mean = unit.mean(0)
    return np.asarray(mean / np.linalg.norm(mean[:3]))


def head_box_mm(sources: Sequence[ScanSource]) -> NDArray[np.float64]:
    """Corners (2, 3) of the box around all surface samples of all subjects, head frame, with a margin."""
    corners = []
    for source in sources:
        surface = decode_surface(source.read("surface", 0, source.rows("surface")))["surface"]
        corners.append((surface.min(0) - _BOX_MARGIN_MM, surface.max(0) + _BOX_MARGIN_MM))
    return np.stack([np.min([low for low, _ in corners], 0), np.max([high for _, high in corners], 0)]).astype(float)


class Checkpoints:
    """The last checkpoints of a training that is under way; those of other data or settings are never taken up.

    Args:
        store: the workspace's store.
        key: the model's name.
        digest: of all that the training depends on.
    """

    def __init__(self, store: Store, key: str, digest: str) -> None:
        self._store, self._all = store, f"checkpoints/{key}"
        self._own = f"{self._all}/{digest[:16]}"

    def save(self, name: str, data: bytes) -> None:
        """Keep a checkpoint; names sort by progress, and the oldest ones go."""
        self._store.put(f"{self._own}/{name}", data)
        for path in self._store.list(self._own)[:-_KEPT_CHECKPOINTS]:
            self._store.delete(path)

    def newest(self) -> bytes | None:
        """The checkpoint to go on from, or None."""
        kept = self._store.list(self._own)
        return self._store.get(kept[-1]) if kept else None

    def clear(self) -> None:
        """Remove all checkpoints of the model, once it is published."""
        for path in self._store.list(self._all):
            self._store.delete(path)
