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
from pipeline.fit_document import CODES_FILE, FitDocument, ScanDocument, rows_of
from registration.mesh import Mesh, mesh_from_ply, mesh_to_ply
from storage.errors import ConfigError, ScanRejected, one_line
from storage.obj import read_obj


def fit_files(
    model: Path, scans: Sequence[Path], out: Path, config: ScanFitConfig | None = None, seed: int = 0
) -> dict[str, Any]:
    """Fit a model folder to files of one person and write the results into a folder.

    Writes ``codes.safetensors`` (``identity``, ``expression/NAME``), for each scan with a fitted head ``NAME.ply``,
    ``NAME.template.ply`` and ``NAME.landmarks.json`` in the scan's own frame and unit, and last ``fit.json``.

    Args:
        model: a model folder.
        scans: PLY or OBJ files. A damaged one is rejected and the others go on.
        out: folder of the results.

    Returns:
        What ``fit.json`` holds.

    Raises:
        ConfigError: the model folder is none, or two scans would have one name.
    """
    from model.head_model import HeadModel

    head = HeadModel.load(model)
    names = scan_names(scans)
    read, damaged = {}, {}
    for name, path in zip(names, scans, strict=True):
        try:
            read[name] = read_scan(path)
        except ScanRejected as error:
            damaged[name] = str(error)
    fit = fit_scans(head, list(read.values()), list(read), config, seed) if read else Fit()
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
        f"{name}.landmarks.json": json.dumps(scan.landmarks.tolist()).encode(),
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


def read_scan(path: Path) -> Mesh:
    """Read a PLY or OBJ file, mesh or cloud.

    Raises:
        ScanRejected: it is missing, of another kind, damaged, or empty.
    """
    if not path.is_file():
        raise ScanRejected(one_line("is missing", str(path), "no such file", "name a PLY or OBJ file"))
    data = path.read_bytes()
    if path.suffix.lower() == ".obj":
        told = read_obj(data, str(path))
        mesh = Mesh.of(told.vertices, told.triangles)
    else:
        mesh = mesh_from_ply(data, str(path))
    if len(mesh.vertices) == 0:
        raise ScanRejected(one_line("is empty", str(path), "no points", "export the scan again"))
    return mesh
