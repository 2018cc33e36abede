"""The samplers of a scan, over the results in a workspace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.deformation_samples import DeformationSampler
from pipeline.identity_samples import IDENTITY_PARTS, IdentitySampler
from pipeline.sample_blocks import Drawn
from pipeline.sample_config import SampleConfig
from pipeline.scan_regions import read_scan_regions
from registration.mesh import Mesh, mesh_from_ply
from storage.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pipeline.workspace import Workspace


@dataclass(frozen=True)
class ScanSamplers:
    """What draws a scan's samples.

    Attributes:
        pairs: the motion from the canonical scan.
        identity: None for a scan that is not its subject's canonical one, unless every scan is sampled.
    """

    pairs: DeformationSampler
    identity: IdentitySampler | None

    def parts(self) -> tuple[str, ...]:
        """The sets that the scan has."""
        if self.identity is None:
            return ("pairs",)
        return ("pairs", *IDENTITY_PARTS, *(("color",) if self.identity.rows("color") else ()))

    def rows(self, part: str) -> int:
        """How many rows a set has; 0 where the scan has no such set."""
        if part == "pairs":
            return self.pairs.rows()
        return 0 if self.identity is None else self.identity.rows(part)

    def draw(self, part: str, blocks: Sequence[int]) -> Drawn:
        """Rows of some blocks of a set, as a batch holds them.

        Raises:
            ScanRejected: too few points can be drawn.
        """
        if part == "pairs":
            return self.pairs.draw(blocks)
        assert self.identity is not None, f"a scan without identity samples has no {part}"
        return self.identity.draw(part, blocks)


def open_samplers(workspace: Workspace, key: str) -> ScanSamplers:
    """Read what a scan's samples are drawn from, and prepare to draw them.

    Raises:
        ConfigError: an input was not computed.
        ScanRejected: the scan can't be sampled.
        StorageConflict: an input is damaged.
    """
    config: SampleConfig = workspace.config.of_step("sample")  # type: ignore[assignment]
    seed = workspace.seed("sample", key)
    template = workspace.template()
    canonical_key = workspace.canonical_key(key.partition("/")[0])
    if canonical_key is None:
        raise ConfigError(one_line("has no canonical scan", key.partition("/")[0], "", "take one in"))
    posed, frame = _registration(workspace, key)
    canonical, canonical_frame = _registration(workspace, canonical_key)
    plane = np.array(canonical_frame["throat_plane"])
    pairs = DeformationSampler(canonical, posed, template, plane, config.deformation, seed)
    if key != canonical_key and not config.identity.every_scan:
        return ScanSamplers(pairs, None)
    cleaned = workspace.accepted("clean", key)
    scan, companion = (
        mesh_from_ply(workspace.read(cleaned, name), f"{key}/{name}") for name in ("mesh.ply", "watertight.ply")
    )
    T_world_from_head = np.array(frame["T_world_from_head"])
    region = read_scan_regions(workspace, key, len(scan.vertices))
    identity = IdentitySampler(
        scan, region, companion, posed, template, plane, T_world_from_head, config.identity, seed
    )
    return ScanSamplers(pairs, identity)


def _registration(workspace: Workspace, key: str) -> tuple[Mesh, dict[str, Any]]:
    registered = workspace.accepted("register", key)
    mesh = mesh_from_ply(workspace.read(registered, "mesh.ply"), f"{key}/mesh.ply")
    frame: dict[str, Any] = json.loads(workspace.read(registered, "frame.json"))
    return mesh, frame
