"""Where training gets a scan's rows: from its shards, or drawn from its meshes when they are wanted."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.sample_blocks import block_count
from pipeline.sample_format import Raw, encode_rows
from pipeline.sample_groups import lists_group
from pipeline.samplers import ScanSamplers, open_samplers
from pipeline.scan_rows import ScanSource, ShardSource
from storage.manifest import Manifest
from storage.shards import CHUNK_ROWS

if TYPE_CHECKING:
    from pipeline.workspace import Workspace

_PREPARED = 4
"""Scans whose meshes are kept ready to draw from, about 300 MiB each with 500,000 triangles."""


class SampleSources:
    """Opens the samples of a workspace's scans, however the sample step kept them.

    Both kinds give the same rows. Drawing costs no disk, but for each group of blocks that is wanted of a scan its
    meshes are prepared anew, unless it is among the last few.

    Args:
        workspace: with up-to-date results of the sample step.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._ready: OrderedDict[str, ScanSamplers] = OrderedDict()

    def open(self, key: str, manifest: Manifest) -> ScanSource:
        """The rows of one scan.

        Args:
            key: SUBJECT/EXPRESSION.
            manifest: of the sample step for it.

        Raises:
            StorageConflict: a shard's metadata is damaged.
        """
        if lists_group(manifest):
            return ShardSource(self._workspace.store, key, manifest.outputs)
        return _DrawnSource(self, key, manifest)

    def samplers(self, key: str) -> ScanSamplers:
        """The samplers of a scan, prepared unless they are ready."""
        if key not in self._ready:
            while len(self._ready) >= _PREPARED:
                self._ready.popitem(last=False)
            self._ready[key] = open_samplers(self._workspace, key)
        self._ready.move_to_end(key)
        return self._ready[key]


class _DrawnSource:
    """Rows of a scan that is sampled as they are wanted."""

    def __init__(self, sources: SampleSources, key: str, manifest: Manifest) -> None:
        self._sources, self._key, self._manifest = sources, key, manifest
        self._rows: dict[str, int] = manifest.extra("rows")

    def rows(self, part: str) -> int:
        return self._rows.get(part, 0)

    def read(self, part: str, start: int, stop: int) -> Raw:
        first, last = start // CHUNK_ROWS, block_count(stop)
        drawn = self._sources.samplers(self._key).draw(part, range(first, last))
        raw = encode_rows(part, drawn.rows, self._key)
        return {name: column[start - first * CHUNK_ROWS :][: stop - start] for name, column in raw.items()}

    def anchors_mm(self) -> NDArray[np.float32]:
        return np.asarray(self._manifest.extra("anchors_mm"), np.float32)
