"""What is trained on: the accepted samples of the training subjects, and what their registrations say of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.keys import subject_of, subjects_of
from pipeline.row_decoding import decode_rows
from pipeline.sample_sources import SampleSources
from pipeline.scan_rows import ScanSource
from storage.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pipeline.workspace import Workspace

_BOX_MARGIN_MM = 15.0


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
        return [self.subjects.index(subject_of(key)) for key in self.scans]

    def of(self, chosen: Sequence[str]) -> TrainingScans:
        """What belongs to some of the subjects."""
        own = [place for place, subject in enumerate(self.subjects) if subject in chosen]
        scans = [place for place, key in enumerate(self.scans) if subject_of(key) in chosen]
        return TrainingScans(
            tuple(self.subjects[place] for place in own),
            tuple(self.subject_sources[place] for place in own),
            tuple(self.scans[place] for place in scans),
            tuple(self.scan_sources[place] for place in scans),
            self.throat_planes[own],
        )


def training_scans(workspace: Workspace) -> TrainingScans:
    """Find the accepted samples of all training subjects.

    Raises:
        ConfigError: there are none.
    """
    sources = SampleSources(workspace)
    sampled: dict[str, ScanSource] = {}
    for key in workspace.scans():
        manifest = workspace.manifest("sample", key)
        if workspace.split(subject_of(key)) == "train" and manifest is not None and manifest.accepted:
            sampled[key] = sources.open(key, manifest)
    canonical: dict[str, str] = {}
    for subject in subjects_of(sampled):
        own = workspace.canonical_key(subject)
        if own is not None and own in sampled and sampled[own].rows("surface"):
            canonical[subject] = own
    if not canonical:
        why = f"{len(sampled)} scans of training subjects were sampled, no canonical one among them"
        remedy = "see 'nphm status' for what was rejected"
        raise ConfigError(one_line("nothing to train on", workspace.url, why, remedy))
    scans = sorted(key for key in sampled if subject_of(key) in canonical)
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
        surface = decode_rows("surface", source.read("surface", 0, source.rows("surface")))["surface"]
        corners.append((surface.min(0) - _BOX_MARGIN_MM, surface.max(0) + _BOX_MARGIN_MM))
    return np.stack([np.min([low for low, _ in corners], 0), np.max([high for _, high in corners], 0)]).astype(float)
