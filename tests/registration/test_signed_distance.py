import numpy as np
import pytest

from registration.mesh import Mesh
from registration.signed_distance import SignedDistanceField


def _sphere(radius_mm: float, level: int = 4) -> Mesh:
    """A sphere of triangles, by splitting an octahedron."""
    vertices = [np.array(v, float) for v in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    for _ in range(level):
        middle: dict[tuple[int, int], int] = {}

        def between(a: int, b: int, middle: dict[tuple[int, int], int] = middle) -> int:
            edge = (min(a, b), max(a, b))
            if edge not in middle:
                middle[edge] = len(vertices)
                point = vertices[a] + vertices[b]
                vertices.append(point / np.linalg.norm(point))
            return middle[edge]

        split = []
        for a, b, c in faces:
            ab, bc, ca = between(a, b), between(b, c), between(c, a)
            split += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = split
    return Mesh.of(np.array(vertices) * radius_mm, faces)


def _points(count: int = 4000, reach_mm: float = 200) -> np.ndarray:
    return np.random.default_rng(0).uniform(-reach_mm, reach_mm, (count, 3)).astype(np.float32)


def test_a_closed_sphere_is_measured_as_it_is() -> None:
    sphere = _sphere(100, 5)
    points = np.concatenate([_points(), [[0, 0, 0], [0, 0, 100], [150, 0, 0]]]).astype(np.float32)
    found = SignedDistanceField(sphere, sphere).query(points)
    assert np.abs(found.distance_mm - (np.linalg.norm(points, axis=1) - 100)).max() < 0.2  # the sphere has flat faces
    assert found.observed.all()
    assert not found.disputed.any()


def test_a_hole_takes_the_companions_patch_and_never_flips_the_inside() -> None:
    sphere = _sphere(100, 5)
    hole = sphere.vertices[:, 1] > 60
    closed = Mesh.of(sphere.vertices, sphere.faces, guessed=hole.astype(np.uint8))
    points = _points()
    found = SignedDistanceField(sphere.select_vertices(~hole), closed).query(points)
    radius = np.linalg.norm(points, axis=1)
    assert np.abs(found.distance_mm - (radius - 100)).max() < 4  # the ring of faces at the hole's edge is nobody's
    clear = np.abs(points[:, 1] / radius - 0.6) > 0.08
    assert np.abs(found.distance_mm - (radius - 100))[clear].max() < 0.2
    assert np.array_equal(
        (found.distance_mm < 0)[np.abs(radius - 100) > 0.2], (radius < 100)[np.abs(radius - 100) > 0.2]
    )
    assert not found.observed[clear & (points[:, 1] / radius > 0.6) & (radius > 20)].any()
    assert found.observed[clear & (points[:, 1] / radius < 0.6) & (radius > 20)].all()


def test_the_scan_decides_at_its_surface_where_the_companion_is_off() -> None:
    scan, companion = _sphere(100, 5), _sphere(99.4, 5)
    direction = _points(500)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    found = SignedDistanceField(scan, companion, band_mm=1.0).query(direction * np.float32(99.7))
    assert (found.distance_mm < 0).all()
    assert np.abs(found.distance_mm + 0.3).max() < 0.1


def test_what_the_companion_left_out_is_told() -> None:
    head, lump = _sphere(100, 4), _sphere(20, 3)
    both = Mesh.of(
        np.concatenate([head.vertices, lump.vertices + (150, 0, 0)]),
        np.concatenate([head.faces, lump.faces + len(head.vertices)]),
    )
    found = SignedDistanceField(both, head).query(np.array([[150, 0, 0], [175, 0, 0], [0, 0, 0]], np.float32))
    assert found.disputed.tolist() == [True, False, False]
    assert found.distance_mm[0] > 0


def test_a_filled_in_part_counts_as_not_observed() -> None:
    sphere = _sphere(100)
    seen = Mesh.of(sphere.vertices, sphere.faces, observed=(sphere.vertices[:, 2] > 0).astype(np.uint8))
    found = SignedDistanceField(seen, sphere).query(np.array([[0, 0, 120], [0, 0, -120]], np.float32))
    assert found.observed.tolist() == [True, False]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(threads: int) -> None:
    sphere = _sphere(100, 5)
    bumpy = sphere.with_vertices(sphere.vertices * (1 + 0.1 * np.sin(sphere.vertices / 9).prod(1, keepdims=True)))
    points = _points(20_000)
    one = SignedDistanceField(bumpy, bumpy, threads=threads).query(points)
    other = SignedDistanceField(bumpy, bumpy).query(points)
    assert np.array_equal(one.distance_mm, other.distance_mm)


def test_agrees_with_a_slow_oracle() -> None:
    trimesh = pytest.importorskip("trimesh")
    sphere = _sphere(80, 3)
    bumpy = sphere.with_vertices(sphere.vertices * (1 + 0.3 * np.sin(sphere.vertices / 17).prod(1, keepdims=True)))
    points = _points(150, 120)
    oracle = trimesh.Trimesh(bumpy.vertices, bumpy.faces, process=False)
    solid = _solid_angle(bumpy, points) > 2 * np.pi
    _, distance, _ = trimesh.proximity.closest_point_naive(oracle, points)
    found = SignedDistanceField(bumpy, bumpy).query(points)
    assert np.abs(found.distance_mm - np.where(solid, -distance, distance)).max() < 1e-3


def _solid_angle(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Winding number times 4 pi, summed over all triangles (van Oosterom and Strackee)."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(float)[None] - points[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=2) for v in (a, b, c))
    volume = (a * np.cross(b, c)).sum(2)
    base = la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
    return 2 * np.arctan2(volume, base).sum(1)
