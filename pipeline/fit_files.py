"""Fit a model folder to files of one person, and write what was found beside each other into a folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as encode_safetensors

from pipeline.fit import Fit, FittedScan, ScanFitConfig, fit_scans
from pipeline.fit_document import CODES_FILE, FitDocument, FittedLandmarks, ScanDocument, rows_of
from pipeline.fit_inputs import FitInput, read_scan
from pipeline.fit_pictures import fit_sheet
from registration.mesh import mesh_to_ply
from registration.pictures import to_png
from storage.errors import ConfigError, ScanRejected, one_line


def fit_files(
    model: Path,
    scans: Sequence[Path],
    out: Path,
    config: ScanFitConfig | None = None,
    seed: int = 0,
    sensor: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Fit a model folder to files of one person and write the results into a folder.

    Writes ``codes.safetensors`` (``identity``, ``expression/NAME``), for each scan with a fitted head ``NAME.ply``,
    ``NAME.template.ply`` and ``NAME.landmarks.json`` in the scan's own frame and unit, a picture ``NAME.png``, and last
    ``fit.json``.

    Args:
        model: a model folder.
        scans: PLY or OBJ files, or folders with ``transforms.json`` and depth images. A damaged one is rejected and the
            others go on.
        out: folder of the results.
        config: limits and sizes.
        seed: of all that is drawn.
        sensor: (3,) where all scans were seen from, in their own frame and unit; depth frames tell it themselves.

    Returns:
        What ``fit.json`` holds.

    Raises:
        ConfigError: the model folder is none, or two scans would have one name.
    """
    from model.head_model import HeadModel

    head = HeadModel.load(model)
    names = scan_names(scans)
    read: dict[str, FitInput] = {}
    damaged = {}
    for name, path in zip(names, scans, strict=True):
        try:
            read[name] = read_scan(path)
        except ScanRejected as error:
            damaged[name] = str(error)
    clouds = [scan.cloud for scan in read.values()]
    sensors = [sensor if scan.sensors is None else scan.sensors for scan in read.values()]
    fit = fit_scans(head, clouds, list(read), config, seed, sensors) if read else Fit()
    out.mkdir(parents=True, exist_ok=True)
    document = FitDocument(
        scans={
            name: _unreadable(damaged[name]) if name in damaged else fit.scans_by_name[name].document for name in names
        }
    )
    for name, scan in fit.scans_by_name.items():
        for file, data in _files(name, scan).items():
            (out / file).write_bytes(data)
    if fit.identity is not None:
        codes = {f"expression/{n}": s.expression for n, s in fit.scans_by_name.items() if s.expression is not None}
        (out / CODES_FILE).write_bytes(encode_safetensors({"identity": fit.identity} | codes))
    told = document.model_dump(mode="json")
    (out / "fit.json").write_text(json.dumps(told, indent=1))
    return told


def _files(name: str, scan: FittedScan) -> dict[str, bytes]:
    if scan.mesh is None or scan.template_mesh is None or scan.landmarks is None:
        return {}
    return {
        f"{name}.ply": mesh_to_ply(scan.mesh),
        f"{name}.template.ply": mesh_to_ply(scan.template_mesh),
        f"{name}.landmarks.json": json.dumps(FittedLandmarks(scan.landmarks.tolist()).model_dump()).encode(),
        f"{name}.png": to_png(fit_sheet(name, scan)),
    }


def _unreadable(reason: str) -> ScanDocument:
    return ScanDocument(
        unit_to_mm=1.0,
        T_world_from_head=rows_of(np.eye(4)),
        residual_mm=None,
        verdict="rejected",
        reasons=(reason,),
        alignment_score=0.0,
    )


def scan_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own without the ending, with its folder's before where several are called so.

    Raises:
        ConfigError: two files still have one name.
    """
    times = Counter(path.stem for path in paths)
    names = [path.stem if times[path.stem] == 1 else f"{path.resolve().parent.name}_{path.stem}" for path in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(one_line("names two scans", twice[0], "same file and folder name", "rename one of them"))
    return names
