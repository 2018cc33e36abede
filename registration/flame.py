"""Templates of the FLAME head model: shape and expression modes of the user's own file, and its jaw as linear modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from registration.mesh import Mesh
from registration.template import MAX_VERTICES, Template
from registration.template_import import MAX_LANDMARKS_BYTES
from registration.template_landmarks import find_marked, read_marked
from registration.template_making import Modes, make_template
from storage.bounded import read_bounded
from storage.errors import ConfigError, one_line
from storage.inert_pickle import as_array, read_inert_pickle
from storage.npz import Npz

MAX_FLAME_BYTES = 512 * 1024**2
IDENTITY_MODES = 300
"""How many of the shape directions are identity; expression follows. FLAME has 300 and 100 of them."""
MAX_MODES = 1000
FULL_EXPRESSION = 2.5
"""Spreads of a FLAME expression coefficient that count as one full expression."""
NECK, JAW = 1, 2
"""Joints: 0 the root, then neck, jaw and the two eyes."""
JAW_POSES_DEG = {
    "jaw_half_open": (13.0, 0.0), "jaw_open": (26.0, 0.0), "jaw_left": (0.0, 8.0), "jaw_right": (0.0, -8.0),
}  # fmt: skip
"""Turns of the jaw about x (opening) and y (aside) at full expression; half and full opening together make the arc."""
REMEDY = "give the model's file as FLAME's site offers it, .pkl or an .npz of the same arrays"


def import_flame(path: Path, landmarks: Path | None = None) -> Template:
    """Read a FLAME model as a template: all its vertices, identity and expression modes, the jaw's turns beside them.

    A pickle is read without unpickling, see ``storage.inert_pickle``: no code of the file is run.

    Args:
        path: a .pkl or .npz with ``v_template``, ``f`` and ``shapedirs``, in metres; with ``posedirs``,
            ``J_regressor`` (or ``J``) and ``weights``, the jaw gets modes too.
        landmarks: 68 vertex numbers or points, as JSON; without it they are found by registering the embedded head.

    Raises:
        ConfigError: it is no FLAME model, names anything but arrays, or its parts disagree.
    """
    where = str(path)
    read = _reader(Path(path), where)
    rest = _wanted(read, "v_template", (None, 3), where)
    n = len(rest)
    if not 500 <= n <= MAX_VERTICES:
        raise ConfigError(one_line(f"has {n} vertices", where, f"500 to {MAX_VERTICES} are wanted", REMEDY))
    faces = _wanted(read, "f", (None, 3), where)
    directions = _wanted(read, "shapedirs", (n, 3, None), where)
    if faces.min() < 0 or faces.max() >= n:
        raise ConfigError(one_line("faces name vertices that are not there", where, f"of {n}", REMEDY))
    if directions.shape[2] > MAX_MODES:
        raise ConfigError(one_line(f"has {directions.shape[2]} modes", where, f"at most {MAX_MODES}", REMEDY))
    mesh = Mesh.of(rest, faces)
    marked = (
        find_marked(mesh, where)
        if landmarks is None
        else read_marked(read_bounded(Path(landmarks), MAX_LANDMARKS_BYTES), mesh.vertices, where)
    )
    scale = marked.unit_to_mm
    modes = np.moveaxis(directions, 2, 0) * scale
    expression = FULL_EXPRESSION * modes[IDENTITY_MODES:]
    jaw = scale * _jaw_modes(read, rest, where)
    names = (*(f"expression_{i:03d}" for i in range(len(expression))), *list(JAW_POSES_DEG)[: len(jaw)])
    low = np.concatenate([np.full(len(expression), -1.0), np.zeros(len(jaw))])
    together = Modes(modes[:IDENTITY_MODES], np.concatenate([expression, jaw]), names, low)
    return make_template("flame", mesh.with_vertices(rest * scale), marked.vertices, where, together)


Read = Callable[[str], NDArray[Any] | None]


def _reader(path: Path, where: str) -> Read:
    """A function from a key to its array, or to None where the file has no such key."""
    data = read_bounded(path, MAX_FLAME_BYTES)
    if data.startswith(b"PK"):
        return _npz_reader(data, where)
    told = read_inert_pickle(data, where)
    return lambda key: as_array(told[key], key, where) if key in told else None


def _npz_reader(data: bytes, where: str) -> Read:
    try:
        packed = Npz(data, MAX_FLAME_BYTES)
    except ValueError as error:
        raise ConfigError(one_line("can't be read", where, str(error)[:200], REMEDY)) from error

    def read(key: str) -> NDArray[Any] | None:
        try:
            return packed[key] if key in packed.headers else None
        except ValueError as error:
            raise ConfigError(one_line(f"{key} can't be read", where, str(error)[:200], REMEDY)) from error

    return read


def _wanted(read: Read, key: str, shape: tuple[int | None, ...], where: str) -> NDArray[Any]:
    found = _checked(read, key, shape, where)
    if found is None:
        raise ConfigError(one_line(f"is no FLAME model: {key} is missing", where, "", REMEDY))
    return found


def _checked(read: Read, key: str, shape: tuple[int | None, ...], where: str) -> NDArray[Any] | None:
    found = read(key)
    if found is None:
        return None
    fits = found.ndim == len(shape) and all(w is None or w == h for w, h in zip(shape, found.shape, strict=True))
    if not fits or found.size == 0 or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        why = f"{key} is {found.dtype} of the shape {found.shape}"
        raise ConfigError(one_line("is no FLAME model", where, why, REMEDY))
    return found.astype(np.int64 if key == "f" else np.float64)


def _jaw_modes(read: Read, rest: NDArray[Any], where: str) -> NDArray[np.float64]:
    """Offsets (4, n, 3) of the rest pose with the jaw turned, or none (0, n, 3) where the file has no skeleton."""
    n = len(rest)
    weights = _checked(read, "weights", (n, None), where)
    regressor = _checked(read, "J_regressor", (None, n), where)
    joints = _checked(read, "J", (None, 3), where) if regressor is None else regressor @ rest
    if weights is None or joints is None or len(joints) <= JAW or weights.shape[1] <= JAW:
        return np.zeros((0, n, 3))
    correctives = _checked(read, "posedirs", (n, 3, None), where)
    out = np.zeros((len(JAW_POSES_DEG), n, 3))
    for offset, angles in zip(out, JAW_POSES_DEG.values(), strict=True):
        R = Rotation.from_euler("xy", angles, degrees=True).as_matrix()
        shaped = rest.copy()
        if correctives is not None and correctives.shape[2] >= 9 * JAW:
            shaped += correctives[:, :, 9 * (JAW - NECK) : 9 * JAW] @ (R - np.eye(3)).ravel()
        turned = (shaped - joints[JAW]) @ R.T + joints[JAW]
        offset[:] = shaped + weights[:, JAW : JAW + 1] * (turned - shaped) - rest
    return out
