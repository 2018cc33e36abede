import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from registration.mesh import Mesh, mesh_to_ply
from registration.procedural_head import head_template
from registration.template import REGIONS, Template
from registration.template_checks import template_doubts, template_figures
from registration.template_import import ICT_SKIN_VERTICES, import_ict, import_mesh, mesh_template
from registration.template_picture import template_sheet
from registration.template_regions import throat_plane
from storage.errors import ConfigError


def test_a_template_survives_its_bytes() -> None:
    template = head_template()
    again = Template.from_bytes(template.to_bytes())
    assert again.digest() == template.digest()
    np.testing.assert_array_equal(again.mesh.vertices, template.mesh.vertices)
    assert again.expression_names == template.expression_names


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 nothing", b"ply\n"])
def test_what_is_no_template_is_named(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"WS/template\.npz: is no template"):
        Template.from_bytes(data, "WS/template.npz")


def _parts(template: Template) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(template.to_bytes())) as z:
        return dict(z)


def _encoded(parts: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **parts)
    return out.getvalue()


def _bad(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = value
    return changed


CHANGES = {
    "five landmarks": ("landmarks", lambda old: old[:5]),
    "landmarks that are floats": ("landmarks", lambda old: old.astype(np.float32)),
    "a landmark before the first vertex": ("landmarks", lambda old: _bad(old, -1)),
    "an anchor beyond the last vertex": ("anchors", lambda old: old + 10_000_000),
    "regions without a name": ("regions", lambda old: np.full_like(old, 200)),
    "too few regions": ("regions", lambda old: old[1:]),
    "a mask of numbers": ("face_mask", lambda old: old.astype(np.uint8)),
    "mirrors beyond the last vertex": ("mirror", lambda old: old + 1_000_000),
    "a face beyond the last vertex": ("faces", lambda old: _bad(old, 10_000_000)),
    "a face that is right after it wraps": ("faces", lambda old: old + np.int64(2**32)),
    "a face before the first vertex": ("faces", lambda old: _bad(old, -1)),
    "faces of four corners": ("faces", lambda old: np.concatenate([old, old[:, :1]], 1)),
    "too many pairs": ("anchor_pairs", lambda old: np.int32(500)),
    "fewer than no pairs": ("anchor_pairs", lambda old: np.int32(-1)),
    "pairs that are a list": ("anchor_pairs", lambda old: np.zeros(2, np.int32)),
    "one throat vertex": ("throat", lambda old: old[:1]),
    "a vertex that is nowhere": ("vertices", lambda old: _bad(old, np.nan)),
    "no vertices": ("vertices", lambda old: old[:0]),
    "a mode without end": ("identity_basis", lambda old: _bad(old, np.inf)),
    "modes of another mesh": ("expression_basis", lambda old: old[:, 1:]),
    "names that are numbers": ("expression_names", lambda old: np.arange(len(old))),
    "a name too few": ("expression_names", lambda old: old[1:]),
    "nothing where faces were": ("faces", lambda old: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_template_whose_parts_disagree_is_named(change: str) -> None:
    part, changed = CHANGES[change]
    parts = _parts(head_template())
    parts[part] = changed(parts[part])
    with pytest.raises(
        ConfigError, match=rf"^WS/template\.npz: .*{'pairs' if 'pairs' in part else '(?:' + part + '|modes)'}"
    ):
        Template.from_bytes(
            _encoded({name: array for name, array in parts.items() if array is not None}), "WS/template.npz"
        )


def test_a_template_that_promises_terabytes_is_refused_unread() -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3)}\n"
    out = io.BytesIO(_encoded({name: part for name, part in _parts(head_template()).items() if name != "vertices"}))
    with zipfile.ZipFile(out, "a") as folder:
        folder.writestr("vertices.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ConfigError, match=r"is no template \(1200000\d+ bytes unpacked, at most "):
        Template.from_bytes(out.getvalue(), "WS/template.npz")


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ([11248] * 68, "68 of the 11248 skin vertices"),
        ([-1] * 68, "68 of the 11248 skin vertices"),
        ([3.7] * 68, "3.7 is no vertex's number"),
        ([1e40] * 68, "is no vertex's number"),
        (["3"] * 68, "is no vertex's number"),
        ({}, "no list"),
        (None, "no list"),
    ],
)
def test_a_checkouts_landmarks_are_checked(tmp_path: Path, told: object, says: str) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(ICT_SKIN_VERTICES, 3)) * 100
    rows = "".join(f"v {x:.3f} {y:.3f} {z:.3f}\n" for x, y, z in points.tolist())
    (tmp_path / "generic_neutral_mesh.obj").write_text(rows + "f 1 2 3\n")
    (tmp_path / "vertex_indices.json").write_text(json.dumps({"idx_to_landmark_verts": told}))
    with pytest.raises(ConfigError, match=says):
        import_ict(tmp_path)


def test_a_checkouts_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "generic_neutral_mesh.obj").write_text("v 0 0 0\n" * 100)
    (tmp_path / "vertex_indices.json").write_text(json.dumps({"idx_to_landmark_verts": [0] * 68}))
    monkeypatch.setattr("registration.template_import.MAX_MESH_BYTES", 100)
    with pytest.raises(ConfigError, match=r"generic_neutral_mesh\.obj: is too large \(800 bytes, at most 100\)"):
        import_ict(tmp_path)
    (tmp_path / "vertex_indices.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"vertex_indices\.json: is nested too deep"):
        import_ict(tmp_path)


def test_an_ict_model_is_not_unpacked_beyond_its_bounds(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", neutral=np.zeros((3_000_000, 3), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("registration.template_import.MAX_UNPACKED_BYTES", 1_000_000)
        with pytest.raises(ConfigError, match="is no ICT model \\(36000000 bytes unpacked, at most 1000000 are read"):
            import_ict(tmp_path / "zeros.npz")
    with pytest.raises(ConfigError, match="is no ICT model \\(faces is missing"):
        import_ict(tmp_path / "zeros.npz")


@pytest.fixture(scope="module")
def ict(ict_heads: Path) -> Template:
    return import_ict(ict_heads)


@pytest.mark.ict
class TestIct:
    def test_keeps_order_and_modes(self, ict: Template, ict_heads: Path) -> None:
        with np.load(ict_heads) as z:
            np.testing.assert_array_equal(ict.mesh.vertices, z["neutral"][:ICT_SKIN_VERTICES])
            np.testing.assert_array_equal(ict.landmarks, z["landmarks"])
        assert ict.identity_basis.shape == (100, ICT_SKIN_VERTICES, 3)
        assert ict.expression_basis.shape == (53, ICT_SKIN_VERTICES, 3)
        assert ict.expression_names[26] == "jawOpen"
        np.testing.assert_array_equal(np.flatnonzero(ict.face_mask), np.arange(6706))

    def test_finds_regions_mirror_and_throat(self, ict: Template) -> None:
        assert set(np.unique(ict.regions)) == set(range(6))
        np.testing.assert_array_equal(ict.mirror[ict.mirror], np.arange(ICT_SKIN_VERTICES))
        np.testing.assert_allclose(ict.mesh.vertices[ict.mirror] * [-1, 1, 1], ict.mesh.vertices, atol=0.1)
        lips = ict.regions == REGIONS.index("lips")
        assert lips[ict.landmarks[60:68]].all()
        assert not lips[ict.landmarks[30]]
        plane = throat_plane(ict.mesh.vertices, ict.throat)
        assert plane[1] > 0.99
        assert -102 < -plane[3] / plane[1] < -94
        assert ict.anchor_pairs == 16
        assert len(set(ict.anchors.tolist())) == 39

    def test_a_checkout_says_the_same(self, ict: Template, tmp_path: Path) -> None:
        model = tmp_path / "FaceXModel"
        model.mkdir()
        modes = {"identity000": ict.identity_basis[0], "jawOpen": ict.expression_basis[26]}
        faces = "".join(f"f {a} {b} {c}\n" for a, b, c in (ict.mesh.faces + 1).tolist())
        for name, offset in ({"generic_neutral_mesh": 0.0} | modes).items():
            rows = "".join(f"v {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in ((ict.mesh.vertices + offset) / 10).tolist())
            (model / f"{name}.obj").write_text(rows + faces)
        (model / "vertex_indices.json").write_text(json.dumps({"idx_to_landmark_verts": ict.landmarks.tolist()}))
        found = import_ict(tmp_path)
        np.testing.assert_allclose(found.mesh.vertices, ict.mesh.vertices, atol=1e-3)
        np.testing.assert_allclose(found.expression_basis[0], ict.expression_basis[26], atol=1e-3)
        np.testing.assert_array_equal(found.mesh.faces, ict.mesh.faces)
        assert found.expression_names == ("jawOpen",)
        np.testing.assert_array_equal(found.anchors, ict.anchors)

    def test_another_mesh_is_read_by_its_landmarks(self, ict: Template) -> None:
        turn = Rotation.from_euler("xyz", [20, 130, -40], degrees=True).as_matrix()
        moved = ict.mesh.with_vertices((ict.mesh.vertices @ turn.T + 300.0) * 0.1)
        points = moved.vertices[ict.landmarks].tolist()
        found = mesh_template(mesh_to_ply(moved), json.dumps({"landmarks": points}).encode(), "heads/other.ply")
        assert found.name == "other"
        assert (found.face_mask == ict.face_mask).mean() > 0.8
        np.testing.assert_array_equal(found.landmarks, ict.landmarks)
        gap = np.linalg.norm(found.mesh.vertices - ict.mesh.vertices, axis=1)
        assert gap.max() < 25.0  # the frame comes from the embedded head, whose proportions differ


@pytest.mark.parametrize(
    ("landmarks", "says"),
    [
        (b"{", "can't be read"),
        (b"[1, 2, 3]", r"shape \(3,\)"),
        (json.dumps([999_999] * 68).encode(), "not there"),
        (json.dumps([5] * 68).encode(), "no known unit"),
        (json.dumps([3.7] * 68).encode(), "3.7 is no vertex's number"),
        (b"[1" + b"0" * 400 + b"]", "can't be read"),
    ],
)
def test_landmarks_that_are_none_are_named(landmarks: bytes, says: str) -> None:
    data = mesh_to_ply(head_template().mesh)
    with pytest.raises(ConfigError, match=says) as caught:
        mesh_template(data, landmarks, "head.ply")
    assert str(caught.value).startswith("head.ply: ")


def test_landmarks_in_another_order_are_refused() -> None:
    template = head_template()
    mixed = template.landmarks[::-1].tolist()
    mixed[36], mixed[45] = int(template.landmarks[36]), int(template.landmarks[45])
    with pytest.raises(ConfigError, match="no head's"):
        mesh_template(mesh_to_ply(template.mesh), json.dumps(mixed).encode(), "head.ply")


def test_the_own_head_comes_back_as_itself() -> None:
    template = head_template()
    found = mesh_template(mesh_to_ply(template.mesh), json.dumps(template.landmarks.tolist()).encode(), "head.ply")
    np.testing.assert_allclose(found.mesh.vertices, template.mesh.vertices, atol=1e-3)
    np.testing.assert_array_equal(found.regions, template.regions)
    np.testing.assert_array_equal(found.mirror, template.mirror)


def test_a_mesh_wound_inside_out_is_turned() -> None:
    template = head_template()
    inside_out = Mesh.of(template.mesh.vertices, template.mesh.faces[:, ::-1])
    found = mesh_template(mesh_to_ply(inside_out), json.dumps(template.landmarks.tolist()).encode(), "head.ply")
    np.testing.assert_array_equal(found.mesh.faces, template.mesh.faces)
    np.testing.assert_array_equal(found.face_mask, template.face_mask)


def test_a_head_of_its_own_asymmetry_is_paired_and_straightened() -> None:
    """Told landmarks are noisy; the mesh's own symmetry and the bend between its sides settle frame and mirror map."""
    template = head_template()
    rng = np.random.default_rng(0)
    v = template.mesh.vertices.astype(float)
    noisy = v + 0.4 * np.sin(v[:, [1, 2, 0]] / 15.0 + rng.uniform(0, 6, 3))
    marks = template.landmarks.copy()
    for i in (36, 45, 30, 8, 0, 16):
        near = np.flatnonzero(np.linalg.norm(v - v[marks[i]], axis=1) < 5.0)
        marks[i] = rng.choice(near)
    found = mesh_template(
        mesh_to_ply(Mesh.of(noisy, template.mesh.faces)), json.dumps(marks.tolist()).encode(), "a.ply"
    )
    figures = template_figures(found)
    assert not figures["mirror_is_exact"]
    assert figures["mirror_p95_mm"] < 4.0
    assert figures["regions"].keys() == {"face", "scalp", "ears", "neck", "lips", "eyes"}
    partners = np.linalg.norm(v[found.mirror] - v[template.mirror], axis=1)
    assert np.percentile(partners[template.face_mask], 95) < 5.0
    right, left = found.anchors[:32:2], found.anchors[1:32:2]
    np.testing.assert_array_equal(found.mirror[right], left)
    assert len(set(found.anchors.tolist())) == 39
    assert template_doubts(found) == []


def test_a_told_unit_binds() -> None:
    template = head_template()
    marks = json.dumps(template.landmarks.tolist()).encode()
    assert mesh_template(mesh_to_ply(template.mesh), marks, "head.ply", "mm").name == "head"
    with pytest.raises(ConfigError, match="is in no cm"):
        mesh_template(mesh_to_ply(template.mesh), marks, "head.ply", "cm")


def test_landmarks_are_found_where_none_are_told() -> None:
    """In a unit that is not told, turned at random and wound inside out."""
    template = head_template()
    turn = Rotation.random(random_state=4).as_matrix()
    mesh = Mesh.of((template.mesh.vertices @ turn.T + 300.0) / 1000.0, template.mesh.faces[:, ::-1])
    found = mesh_template(mesh_to_ply(mesh), None, "head.ply")
    away = np.linalg.norm(found.mesh.vertices - template.mesh.vertices, axis=1)
    assert np.median(away) < 3.0
    places = template.mesh.vertices
    assert np.median(np.linalg.norm(places[found.landmarks] - places[template.landmarks], axis=1)) < 3.0
    np.testing.assert_array_equal(found.mesh.faces, template.mesh.faces)
    assert template_doubts(found) == []


def test_doubts_name_what_is_wrong() -> None:
    template = head_template()
    assert template_doubts(template) == []
    swapped = template.landmarks.copy()
    swapped[[37, 38, 43, 44]] = template.landmarks[[41, 40, 47, 46]]
    swapped[[41, 40, 47, 46]] = template.landmarks[[37, 38, 43, 44]]
    assert "upper lids" in " ".join(template_doubts(replace(template, landmarks=swapped)))
    bare = replace(template, face_mask=np.zeros_like(template.face_mask))
    assert "cm2" in " ".join(template_doubts(bare))
    torn = template.mirror.copy()
    torn[template.face_mask] = np.random.default_rng(0).permutation(torn[template.face_mask])
    assert "partners" in " ".join(template_doubts(replace(template, mirror=torn)))


def test_a_mesh_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"x\.obj: "):
        mesh_template(b"nothing", json.dumps(list(range(68))).encode(), "x.obj")
    small = mesh_to_ply(Mesh.of(np.eye(3), [[0, 1, 2]]))
    with pytest.raises(ConfigError, match="3 vertices"):
        mesh_template(small, json.dumps(list(range(68))).encode(), "x.ply")


def test_reads_files_and_names_missing_ones(tmp_path: Path) -> None:
    template = head_template()
    (tmp_path / "own.ply").write_bytes(mesh_to_ply(template.mesh))
    (tmp_path / "own.json").write_text(json.dumps(template.landmarks.tolist()))
    assert import_mesh(tmp_path / "own.ply", tmp_path / "own.json").name == "own"
    with pytest.raises(ConfigError, match=r"none\.json: is not there"):
        import_mesh(tmp_path / "own.ply", tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"none\.npz: is not there"):
        import_ict(tmp_path / "none.npz")
    with pytest.raises(ConfigError, match="is no ICT-FaceKit checkout"):
        import_ict(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 bad")
    with pytest.raises(ConfigError, match="is no ICT model"):
        import_ict(tmp_path / "bad.npz")


def test_the_sheet_shows_every_region() -> None:
    picture = template_sheet(head_template(), 96)
    assert picture.shape == (2 * (96 + 18), 4 * 96, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200
