"""Meshes as files that other programs open: PLY, OBJ, and GLB with a sequence in one file; with a picture beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh, mesh_to_ply
from registration.pictures import REGION_COLORS, VIEWS, Picture, render, sheet, to_png
from registration.template import REGIONS
from storage.errors import ConfigError, one_line
from storage.glb import Frame, write_glb
from storage.obj import write_obj

ENDINGS = (".ply", ".obj", ".glb")
_NORMALS = ("nx", "ny", "nz")
_MOST_ROWS = 6


@dataclass(frozen=True)
class NamedMesh:
    """A mesh, mm, and what it is called."""

    name: str
    mesh: Mesh


def check_ending(path: Path) -> None:
    """See that a file's name says how it is to be written, before anything is computed for it.

    Raises:
        ConfigError: it does not.
    """
    if path.suffix.lower() not in ENDINGS:
        remedy = f"end it in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        raise ConfigError(one_line("can't be written", str(path), f"no file ends in '{path.suffix}' here", remedy))


def write_meshes(meshes: Sequence[NamedMesh], path: Path, seconds_per_frame: float = 0.5) -> list[Path]:
    """Write meshes into one GLB file in their order, or into a PLY or OBJ file each, numbered where there are several.

    A picture of the meshes from four sides lies beside them, named likewise and ending in ``.png``.

    Args:
        meshes: at least one.
        path: where to; folders are made.
        seconds_per_frame: of a GLB file's sequence.

    Returns:
        The files, the picture last.

    Raises:
        ConfigError: the name's ending, or a mesh without any surface.
    """
    check_ending(path)
    for one in meshes:
        if not len(one.mesh.faces):
            why = "the field is nowhere negative in its box"
            raise ConfigError(one_line("there is no surface", one.name, why, "use other codes, or train longer"))
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix.lower()
    if ending == ".glb":
        files = {path: write_glb([_frame(one) for one in meshes], seconds_per_frame)}
    else:
        encode = mesh_to_ply if ending == ".ply" else _obj
        digits = len(str(len(meshes) - 1))
        numbered = [path.with_stem(f"{path.stem}-{place:0{digits}d}") for place in range(len(meshes))]
        names = numbered if len(meshes) > 1 else [path]
        files = {name: encode(one.mesh) for name, one in zip(names, meshes, strict=True)}
    files[path.with_suffix(".png")] = to_png(picture(meshes))
    for name, data in files.items():
        name.write_bytes(data)
    return list(files)


def picture(meshes: Sequence[NamedMesh]) -> Picture:
    """Each mesh from four sides, six of them at most; of one alone, its regions too where it carries them."""
    chosen = np.unique(np.linspace(0, len(meshes) - 1, _MOST_ROWS).round().astype(int))
    rows = [_views(meshes[place].mesh) for place in chosen]
    titles = [[meshes[place].name] for place in chosen]
    regions = meshes[0].mesh.attributes.get("region")
    if len(meshes) == 1 and regions is not None:
        rows.append(_views(meshes[0].mesh, REGION_COLORS[regions]))
        titles.append(["regions: hair brown, worn violet"])
    return sheet(rows, titles)


def _views(mesh: Mesh, colors: NDArray[np.uint8] | None = None) -> list[Picture]:
    return [render(mesh, azimuth, elevation, colors=colors) for azimuth, elevation in VIEWS]


def _normals(mesh: Mesh) -> NDArray[np.floating] | None:
    told = [mesh.attributes.get(name) for name in _NORMALS]
    return None if any(column is None for column in told) else np.stack(told, 1)  # type: ignore[arg-type]


def _frame(one: NamedMesh) -> Frame:
    columns = {name: column for name, column in one.mesh.attributes.items() if name not in _NORMALS}
    return Frame(one.name, one.mesh.vertices, one.mesh.faces, _normals(one.mesh), one.mesh.colors, columns)


def _obj(mesh: Mesh) -> bytes:
    """OBJ knows no columns: a region becomes a group of the faces that have most of their corners in it."""
    groups = None
    if "region" in mesh.attributes:
        region = np.median(mesh.attributes["region"][mesh.faces], axis=1)
        groups = {name: region == code for code, name in enumerate(REGIONS)}
    return write_obj(mesh.vertices, mesh.faces, _normals(mesh), mesh.colors, groups)
