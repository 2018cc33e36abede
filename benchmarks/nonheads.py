"""Twenty things that are no heads, made by formulas, to see that none is taken for one.

They are as large as a scan with a head in it, and many are as round, as bumpy or as much like a body as a head is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import open3d as o3d
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes

from registration.mesh import Mesh
from registration.procedural_head import draw_person, head_template

_make = o3d.geometry.TriangleMesh


def _of(thing: o3d.geometry.TriangleMesh) -> Mesh:
    return Mesh.of(np.asarray(thing.vertices), np.asarray(thing.triangles))


def _box(size: Sequence[float], place: Sequence[float]) -> o3d.geometry.TriangleMesh:
    """A box of a size about a place, mm."""
    return _make.create_box(*size).translate(np.asarray(place) - 0.5 * np.asarray(size))


def _joined(parts: Sequence[o3d.geometry.TriangleMesh]) -> Mesh:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return _of(whole)


def _blob(parts: Sequence[tuple[Sequence[float], Sequence[float], float]], blend_mm: float = 12.0) -> Mesh:
    """Capsules (from, to, radius) that melt into each other, mm."""
    ends = np.array([point for start, stop, _ in parts for point in (start, stop)])
    reach = max(radius for *_, radius in parts) + 3 * blend_mm
    low, high = ends.min(0) - reach, ends.max(0) + reach
    step = float((high - low).max()) / 90
    axes = [np.arange(a, b + step, step) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    total = np.zeros(grid.shape[:3])
    for start, stop, radius in parts:
        a, along = np.asarray(start, float), np.asarray(stop, float) - np.asarray(start, float)
        share = np.clip((grid - a) @ along / max(float(along @ along), 1e-9), 0, 1)
        distance = np.linalg.norm(grid - a - share[..., None] * along, axis=3) - radius
        total += np.exp(-np.clip(distance, -60, 200) / blend_mm)
    vertices, faces, _, _ = marching_cubes(-blend_mm * np.log(total + 1e-30), 0.0)
    return Mesh.of(low + vertices * step, faces)


def _bumpy(radii: Sequence[float], relief_mm: float, width: float, seed: int) -> Mesh:
    """An ellipsoid with smooth random relief; the width of a bump is a share of the radius."""
    ball = _of(_make.create_sphere(1.0, 60))
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, 3))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    nearness = np.exp(-0.5 * ((ball.vertices[:, None] - centres) ** 2).sum(2) / width**2)
    bumps = nearness @ rng.normal(size=60)
    return ball.with_vertices(ball.vertices * (np.asarray(radii) + relief_mm * bumps[:, None] / bumps.std()))


def _sheet(width_mm: float, relief_mm: float, smooth_mm: float, seed: int) -> Mesh:
    """A square of cloth or ground with random relief."""
    n = 100
    step = width_mm / (n - 1)
    height = np.random.default_rng(seed).normal(size=(n, n))
    height = gaussian_filter(height, smooth_mm / step) if smooth_mm else height
    x, y = np.meshgrid(np.arange(n) * step, np.arange(n) * step, indexing="ij")
    place = np.arange((n - 1) * n).reshape(n - 1, n)[:, :-1].ravel()
    faces = np.concatenate(
        [np.stack([place, place + n, place + 1], 1), np.stack([place + 1, place + n, place + n + 1], 1)]
    )
    return Mesh.of(np.stack([x.ravel(), y.ravel(), relief_mm * (height / height.std()).ravel()], 1), faces)


def _turned(radius: Callable[[NDArray], NDArray], height_mm: float) -> Mesh:
    """A surface of revolution about y; radius in mm by the share of the height."""
    rows, columns = 80, 90
    share = np.linspace(0, 1, rows)
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    r = radius(share)[:, None]
    y = np.broadcast_to(height_mm * share[:, None], (rows, columns))
    vertices = np.stack([r * np.cos(angle), y, r * np.sin(angle)], 2).reshape(-1, 3)
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    a, b = (row * columns + column).ravel(), (row * columns + (column + 1) % columns).ravel()
    faces = np.concatenate([np.stack([a, a + columns, b], 1), np.stack([b, a + columns, b + columns], 1)])
    return Mesh.of(vertices, faces)


def _chair() -> Mesh:
    legs = [_box((35, 420, 35), (x, 210, z)) for x in (-180, 180) for z in (-180, 180)]
    return _joined([_box((420, 30, 420), (0, 435, 0)), _box((420, 450, 25), (0, 670, -195)), *legs])


def _table() -> Mesh:
    legs = [_box((50, 700, 50), (x, 350, z)) for x in (-550, 550) for z in (-330, 330)]
    return _joined([_box((1200, 30, 750), (0, 715, 0)), *legs])


def _car() -> Mesh:
    wheels = [_make.create_cylinder(40, 25).translate([x, 10, z]) for x in (-130, 130) for z in (-65, 65)]
    return _joined([_box((420, 80, 150), (0, 60, 0)), _box((210, 70, 140), (-20, 135, 0)), *wheels])


def _plant() -> Mesh:
    parts = [_make.create_cylinder(70, 120)]
    rng = np.random.default_rng(3)
    for _ in range(24):
        leaf = _make.create_sphere(1.0, 10)
        leaf.vertices = o3d.utility.Vector3dVector(np.asarray(leaf.vertices) * [14, 55, 2])
        leaf.rotate(o3d.geometry.get_rotation_matrix_from_xyz(rng.uniform(-1.2, 1.2, 3)), np.zeros(3))
        parts.append(leaf.translate(rng.normal(size=3) * [60, 60, 50] + [0, 0, 170]))
    return _joined(parts)


def _dog() -> Mesh:
    return _blob(
        [
            ((0, 0, 0), (0, 5, 10), 62),
            ((0, -15, 60), (0, -25, 125), 30),
            ((0, -12, 138), (0, -12, 138), 14),
            ((-50, 55, -10), (-62, 95, -15), 18),
            ((50, 55, -10), (62, 95, -15), 18),
            ((0, -60, -60), (0, -160, -120), 55),
        ]
    )


def _hand() -> Mesh:
    fingers = [((22.0 * i - 33, 45, 0), (30.0 * i - 45, 125 - 8 * abs(i - 1.5), 15), 9.0) for i in range(4)]
    thumb = ((40, -15, 10), (85, 35, 35), 11.0)
    return _blob([((-25, 0, 0), (25, 0, 0), 32), ((0, -40, 0), (0, -140, 0), 26), *fingers, thumb], 6.0)


def _torso() -> Mesh:
    arms = [((s * 190, 0, 0), (s * 230, -280, 10), 45) for s in (-1, 1)]
    return _blob(
        [((-110, 0, 0), (110, 0, 0), 75), ((0, -60, 0), (0, -330, 0), 120), ((0, 70, 0), (0, 110, 5), 52), *arms]
    )


def _bust_from_behind() -> Mesh:
    """Shoulders, neck and a smooth skull with hair in a bun, only what a camera behind them sees."""
    whole = _blob(
        [
            ((-150, -190, 0), (150, -190, 0), 70),
            ((0, -150, 0), (0, -60, -5), 52),
            ((0, 0, 0), (0, 30, -10), 80),
            ((0, 60, -80), (0, 60, -80), 35),
        ]
    )
    return whole.select_vertices(whole.vertices[:, 2] < -5)


def _back_of_a_head() -> Mesh:
    person = draw_person(np.random.default_rng(11))
    whole = head_template().mesh.with_vertices(person.vertices("neutral_open"))
    return whole.select_vertices(whole.vertices[:, 2] < -10)


def _teddy() -> Mesh:
    ears = [((s * 62, 70, 0), (s * 62, 70, 0), 24) for s in (-1, 1)]
    limbs = [((s * 70, -110, 20), (s * 125, -150, 60), 30) for s in (-1, 1)]
    return _blob(
        [((0, 0, 0), (0, 0, 0), 80), ((0, -15, 70), (0, -15, 70), 28), ((0, -160, 0), (0, -160, 0), 90), *ears, *limbs]
    )


def _shoe() -> Mesh:
    return _blob(
        [((0, 0, -90), (0, 0, 90), 38), ((0, 30, -95), (0, 90, -100), 34), ((0, 20, -40), (0, 45, -80), 36)], 10.0
    )


def _ball() -> Mesh:
    return _of(_make.create_sphere(105, 50))


NON_HEADS: dict[str, Callable[[], Mesh]] = {
    "chair": _chair,
    "table": _table,
    "ball": _ball,
    "egg": lambda: _bumpy((75, 115, 95), 0.5, 0.3, 0),
    "potato": lambda: _bumpy((75, 115, 95), 6.0, 0.35, 1),
    "stone": lambda: _bumpy((90, 110, 90), 9.0, 0.2, 2),
    "cylinder": lambda: _of(_make.create_cylinder(90, 280, 60, 12)),
    "cone": lambda: _of(_make.create_cone(100, 260, 60, 12)),
    "dog": _dog,
    "teddy": _teddy,
    "hand": _hand,
    "shoe": _shoe,
    "torso": _torso,
    "bust from behind": _bust_from_behind,
    "back of a head": _back_of_a_head,
    "noisy plane": lambda: _sheet(400, 3.0, 0.0, 0),
    "crumpled cloth": lambda: _sheet(300, 12.0, 22.0, 1),
    "toy car": _car,
    "plant": _plant,
    "vase": lambda: _turned(lambda s: 55 + 35 * np.sin(5.2 * s + 0.3) * (1 - 0.4 * s), 280.0),
}
"""Each in mm, about as large as in life."""
