"""The sample step: from a registered scan to the training samples in its Zarr group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.deformation_samples import deformation_figures
from pipeline.identity_samples import identity_figures
from pipeline.sample_blocks import GROUP_BLOCKS, Drawn, block_count
from pipeline.sample_config import STEP_VERSION, SampleConfig
from pipeline.sample_format import DeformationSamples, IdentitySamples, encode_rows, encode_samples
from pipeline.sample_groups import group_path, put_group, remove_group
from pipeline.sample_pictures import picture_deformation, picture_identity
from pipeline.samplers import ScanSamplers, open_samplers
from registration.pictures import to_png
from storage.errors import ScanRejected
from storage.manifest import Manifest, Output

if TYPE_CHECKING:
    from pipeline.workspace import Workspace

_DRAWN_BLOCKS = 8 * GROUP_BLOCKS
"""Blocks drawn at once, half a million rows: bounds the memory whatever the number of points."""


def run_sample(workspace: Workspace, key: str) -> Manifest:
    """Sample one scan and publish its group and manifest.

    A canonical scan gets identity samples, or every one where the config says so. Every scan gets deformation pairs;
    the canonical scan's join each point to itself. Where samples are made on the fly, only the rows that the verdict
    looks at are drawn, and no group is stored.

    Raises:
        ConfigError: an input was not computed.
        ScanRejected: the scan can't be sampled; then no group of it is left.
        StorageConflict: an input is damaged.
    """
    inputs = workspace.inputs("sample", key)
    config: SampleConfig = workspace.config.of_step("sample")  # type: ignore[assignment]
    manifest_path = workspace.steps["sample"].manifest_path(key)
    try:
        samplers = open_samplers(workspace, key)
        looked_at = {part: samplers.draw(part, _first_blocks(samplers.rows(part))) for part in samplers.parts()}
        stored = {} if config.keep == "on_the_fly" else _all_rows(samplers, looked_at, key)
    except ScanRejected:
        workspace.store.delete(manifest_path)  # first, as readers go by it
        remove_group(workspace.store, key)
        raise
    figures, pictures = _looked_over(samplers, looked_at)
    rows = {part: samplers.rows(part) for part in samplers.parts()}
    kept: dict[str, Any] = {"rows": rows}
    workspace.store.delete(manifest_path)
    group: dict[str, Output] = {}
    if config.keep == "on_the_fly":
        remove_group(workspace.store, key)
        if samplers.identity is not None:
            kept["anchors_mm"] = samplers.identity.anchors_mm
    else:
        if samplers.identity is not None:
            stored["anchors"] = samplers.identity.anchors_mm
        attributes = {
            "key": key,
            "canonical_key": workspace.canonical_key(key.partition("/")[0]),
            "frame": "head",
            "units": "mm",
            "rows": rows,
            "inputs": dict(inputs),
            "config": workspace.config.resolved("sample"),
            "template_sha256": workspace.template_digest(),
            "config_sha256": workspace.config.digest_of_step("sample"),
            "step_version": STEP_VERSION,
        }
        objects = encode_samples(stored, attributes)
        figures["stored_bytes"] = sum(len(data) for data in objects.values())
        group = put_group(workspace.store, key, objects)
        kept["group"] = group_path(key)
    outputs: dict[str, bytes | Output] = {**group, **pictures}
    return workspace.commit("sample", key, inputs=inputs, outputs=outputs, figures=figures, extra=kept)


def _first_blocks(rows: int) -> range:
    return range(min(block_count(rows), GROUP_BLOCKS))


def _all_rows(samplers: ScanSamplers, looked_at: Mapping[str, Drawn], key: str) -> dict[str, NDArray]:
    """Stored values of all sets by column, drawn so many blocks at a time."""
    stored: dict[str, NDArray] = {}
    for part in samplers.parts():
        pieces = [encode_rows(part, looked_at[part].rows, key)]
        total = block_count(samplers.rows(part))
        for first in range(len(_first_blocks(samplers.rows(part))), total, _DRAWN_BLOCKS):
            drawn = samplers.draw(part, range(first, min(first + _DRAWN_BLOCKS, total)))
            pieces.append(encode_rows(part, drawn.rows, key))
        stored |= {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return stored


def _looked_over(samplers: ScanSamplers, looked_at: Mapping[str, Drawn]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Figures for the verdict and pictures for people, from the first blocks of each set."""
    pairs = looked_at["pairs"].rows
    figures: dict[str, Any] = {f"{part.removesuffix('s')}_count": samplers.rows(part) for part in samplers.parts()}
    figures |= deformation_figures(pairs)
    motion = DeformationSamples(pairs["canonical"], pairs["posed"], pairs["pair_region"], pairs["weight"])
    pictures = {"pairs.png": to_png(picture_deformation(motion))}
    if samplers.identity is not None:
        surface, near, space = (looked_at[part] for part in ("surface", "near", "space"))
        figures |= identity_figures(surface.rows, near, space.rows)
        shape = IdentitySamples(**surface.rows, **near.rows, **space.rows, anchors=samplers.identity.anchors_mm)
        pictures["distances.png"] = to_png(picture_identity(shape))
    return figures, pictures
