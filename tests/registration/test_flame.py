"""A FLAME file, made here with the structure of the real one, becomes a template; a malicious one is refused."""

import json
import os
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open3d as o3d
import pytest
import scipy.sparse as sp
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from registration.flame import FULL_EXPRESSION, import_flame
from registration.mesh import vertex_normals
from registration.procedural_expressions import posed
from registration.procedural_head import head_template
from registration.shape_modes import jaw_direction
from registration.template import REGIONS, Template
from registration.template_checks import template_doubts
from storage.errors import ConfigError

IDENTITY, EXPRESSION = 300, 4


class _FakeCh:
    """Looks in a pickle like chumpy's array wrapper."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x


def _parted() -> np.ndarray:
    """The own head with its lips a little apart, so that nearest vertices tell upper from lower."""
    return posed(head_template().mesh.vertices.astype(float), {"jaw_open": 0.2})


@pytest.fixture(scope="module")
def chumpy() -> Iterator[type]:
    for name in ("chumpy", "chumpy.ch"):
        sys.modules[name] = types.ModuleType(name)
    _FakeCh.__module__, _FakeCh.__qualname__ = "chumpy.ch", "Ch"
    sys.modules["chumpy.ch"].Ch = _FakeCh
    yield _FakeCh
    for name in ("chumpy", "chumpy.ch"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def parts(chumpy: type) -> dict[str, object]:
    """FLAME's keys on a thinned own head in metres, lips a little apart, with two eyeballs."""
    own = head_template()
    head = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(_parted()), o3d.utility.Vector3iVector(own.mesh.faces)
    ).simplify_quadric_decimation(4000)
    ball = o3d.geometry.TriangleMesh.create_sphere(11.0, 6)
    rest = [np.asarray(head.vertices)] + [np.asarray(ball.vertices) + [side * 31.5, 33.0, 78.0] for side in (-1, 1)]
    count = np.cumsum([0] + [len(v) for v in rest])
    faces = [np.asarray(head.triangles), *(np.asarray(ball.triangles) + c for c in count[1:3])]
    v = np.concatenate(rest)
    n = len(v)
    rng = np.random.default_rng(1)
    nearest = cKDTree(_parted()).query(v)[1]
    shapes = rng.normal(0, 1e-4, (n, 3, IDENTITY + EXPRESSION)).astype(np.float32)
    shapes[:, :, 0] = own.identity_basis[0][nearest] / 1000
    shapes[:, :, IDENTITY] = own.expression_basis[own.expression_names.index("smile_left")][nearest] / 1000
    low = np.linalg.norm(posed(_parted(), {"jaw_open": 0.1}) - _parted(), axis=1)[nearest]
    low /= low.max()
    weights = np.stack([np.zeros(n), 1 - low, low, np.zeros(n), np.zeros(n)], 1)
    joints = np.array([[0, -60, -10], [0, -30, -10], [0, 8, 14], [31.5, 33, 78], [-31.5, 33, 78]]) / 1000
    regressor = np.zeros((5, n))
    for j, joint in enumerate(joints):  # four vertices around each joint, with weights that give it exactly
        index = rng.choice(n, 12, replace=False)
        system = np.concatenate([v[index].T / 1000, np.ones((1, 12))])
        regressor[j, index] = np.linalg.lstsq(system, np.append(joint, 1.0), rcond=None)[0]
    return {
        "v_template": chumpy(v / 1000),
        "f": np.concatenate(faces).astype(np.uint32),
        "shapedirs": chumpy(shapes),
        "posedirs": np.zeros((n, 3, 36)),
        "weights": chumpy(weights),
        "J_regressor": sp.csc_matrix(regressor),
        "J": joints,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
        "bs_type": "lrotmin",
        "bs_style": "lbs",
    }


@pytest.fixture(scope="module")
def landmarks(parts: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = head_template()
    nearest = cKDTree(parts["v_template"].x * 1000).query(_parted()[own.landmarks])[1]
    path = tmp_path_factory.mktemp("flame") / "landmarks.json"
    path.write_text(json.dumps(nearest.tolist()))
    return path


@pytest.fixture(scope="module")
def flame(parts: dict[str, object], landmarks: Path, tmp_path_factory: pytest.TempPathFactory) -> Template:
    path = tmp_path_factory.mktemp("flame") / "generic_model.pkl"
    path.write_bytes(pickle.dumps(parts, 2))
    return import_flame(path, landmarks)


def test_keeps_every_vertex_and_its_modes(flame: Template, parts: dict[str, object]) -> None:
    n = len(parts["v_template"].x)
    assert flame.name == "flame"
    assert len(flame.mesh.vertices) == n
    np.testing.assert_array_equal(flame.mesh.faces, parts["f"])
    assert flame.identity_basis.shape == (IDENTITY, n, 3)
    assert flame.expression_names[:EXPRESSION] == (
        "expression_000",
        "expression_001",
        "expression_002",
        "expression_003",
    )
    own = head_template()
    away = np.linalg.norm(flame.mesh.vertices[flame.landmarks] - own.mesh.vertices[own.landmarks], axis=1)
    assert np.median(away) < 6.0
    told = np.moveaxis(parts["shapedirs"].x, 2, 0) * 1000
    length = np.linalg.norm(told[0], axis=1)
    np.testing.assert_allclose(np.linalg.norm(flame.identity_basis[0], axis=1), length, atol=1e-3)
    of_expression = FULL_EXPRESSION * np.linalg.norm(told[IDENTITY], axis=1)
    np.testing.assert_allclose(np.linalg.norm(flame.expression_basis[0], axis=1), of_expression, atol=1e-3)


def test_expressions_have_either_sign_but_the_jaw_opens_one_way(flame: Template) -> None:
    assert flame.expression_low[:EXPRESSION].tolist() == [-1.0] * EXPRESSION
    names = flame.expression_names[EXPRESSION:]
    assert names == ("jaw_half_open", "jaw_open", "jaw_left", "jaw_right")
    assert (flame.expression_low[EXPRESSION:] == 0).all()
    wide, half = (flame.expression_basis[flame.expression_names.index(n)] for n in ("jaw_open", "jaw_half_open"))
    chin = flame.landmarks[8]
    assert wide[chin, 1] < -20.0
    assert abs(wide[chin, 0]) < 1.0
    assert half[chin, 1] < wide[chin, 1] / 3
    aside = flame.expression_basis[flame.expression_names.index("jaw_left")]
    assert aside[chin, 0] > 5.0
    scalp = (flame.regions == REGIONS.index("scalp")) & (flame.mesh.vertices[:, 1] > 60)
    assert np.abs(wide[scalp]).max() < 1e-3
    assert flame.expression_names[int(jaw_direction(flame, len(flame.expression_basis)).argmax())] == "jaw_open"


def test_the_jaw_turns_about_its_joint(flame: Template, parts: dict[str, object]) -> None:
    rest, weight = parts["v_template"].x * 1000, parts["weights"].x[:, 2]
    joint = np.array([0.0, 8.0, 14.0])
    turned = (rest - joint) @ Rotation.from_euler("x", 26, degrees=True).as_matrix().T + joint
    expected = np.linalg.norm(weight[:, None] * (turned - rest), axis=1)
    found = np.linalg.norm(flame.expression_basis[flame.expression_names.index("jaw_open")], axis=1)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_eyeballs_stay_out_of_the_face(flame: Template) -> None:
    balls = np.arange(len(flame.mesh.vertices) - 2 * 62, len(flame.mesh.vertices))
    assert not flame.face_mask[balls].any()
    assert (flame.regions[balls] == REGIONS.index("eyes")).all()
    outwards = (vertex_normals(flame.mesh.vertices, flame.mesh.faces) * flame.mesh.vertices).sum(1)
    assert (outwards[flame.face_mask] > 0).mean() > 0.8
    assert template_doubts(flame) == []


def test_survives_its_bytes_with_signs(flame: Template) -> None:
    again = Template.from_bytes(flame.to_bytes())
    np.testing.assert_array_equal(again.expression_low, flame.expression_low)
    assert again.digest() == flame.digest()


def test_an_npz_says_the_same(flame: Template, parts: dict[str, object], landmarks: Path, tmp_path: Path) -> None:
    plain = {k: getattr(v, "x", v) for k, v in parts.items()} | {"J_regressor": parts["J_regressor"].toarray()}
    np.savez(tmp_path / "flame.npz", **{k: v for k, v in plain.items() if isinstance(v, np.ndarray)})
    found = import_flame(tmp_path / "flame.npz", landmarks)
    assert found.digest() == flame.digest()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"v_template": None}, "v_template is missing"),
        ({"shapedirs": np.zeros((7, 3, 400))}, r"shapedirs is float64 of the shape \(7, 3, 400\)"),
        ({"f": np.array([[0, 1, 10**6]])}, "not there"),
        ({"weights": np.full((3, 5), np.nan)}, "weights is"),
        ({"shapedirs": "text"}, "shapedirs is no array"),
    ],
)
def test_what_does_not_fit_is_named(
    parts: dict[str, object], landmarks: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    told = {key: value for key, value in (parts | change).items() if value is not None}
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(told, 2))
    with pytest.raises(ConfigError, match=says) as caught:
        import_flame(path, landmarks)
    assert "\n" not in str(caught.value)


class _Runs:
    def __reduce__(self) -> object:
        return os.system, ("touch pwned",)


def test_code_in_the_file_is_refused(parts: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pkl").write_bytes(pickle.dumps(parts | {"weights": _Runs()}, 2))
    with pytest.raises(ConfigError, match=r"evil\.pkl: is refused \(it names '(posix|nt)\.system'"):
        import_flame(Path("evil.pkl"))
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]
    Path("evil.npz").write_bytes(b"PK\x03\x04" + b"x" * 100)
    with pytest.raises(ConfigError, match="can't be read"):
        import_flame(Path("evil.npz"))
