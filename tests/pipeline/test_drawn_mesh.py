"""Heads made from a model by the verbs: what their vertices carry, whose codes they have, what the files hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from safetensors.numpy import save as encode_safetensors

from flows.cli import run_command
from flows.console import Exit
from model import HeadModel
from model.carried_template import CarriedTemplate
from model.code_draw import draw_identity
from model.sparse_lattice import find_crossings
from model.surface_columns import with_columns
from pipeline.drawn_mesh import find_model, meshes_between
from pipeline.fit_document import CODES_FILE
from pipeline.told_codes import expressions_of, identity_of
from registration.mesh import mesh_from_ply, vertex_normals
from registration.template import REGIONS
from storage.errors import ConfigError
from tests.pipeline.test_fit import head  # noqa: F401

WHO = "p0"


@pytest.fixture(scope="module")
def folder(head: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp("models") / "quick"
    head.save(path)
    return path


@pytest.fixture(scope="module")
def carried(head: HeadModel) -> CarriedTemplate:  # noqa: F811
    return CarriedTemplate.onto(head, WHO, 0)


@pytest.fixture
def quickly_carried(carried: CarriedTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registration takes seconds: everybody gets the template of one person."""
    monkeypatch.setattr(CarriedTemplate, "onto", lambda *told: carried)


@pytest.mark.parametrize("who", ["p1", "random"])
def test_a_trained_fields_surface_is_the_dense_grids(head: HeadModel, who: str) -> None:  # noqa: F811
    """Nowhere is the field so steep that the sparse lattice misses a piece."""
    identity = identity_of(head, who, 0)
    low, high = head.box_mm
    found = find_crossings(lambda points: head.sdf(points, identity), low, high, 64)
    index = np.stack(np.meshgrid(*[np.arange(n + 1) for n in found.cells], indexing="ij"), -1)
    values = head.sdf((low + index.reshape(-1, 3) * found.step).astype(np.float32), identity).reshape(found.cells + 1)
    corners = np.stack([values[i : i - 1 or None, j : j - 1 or None, k : k - 1 or None]
                        for i, j, k in np.ndindex(2, 2, 2)]) < 0  # fmt: skip
    assert np.array_equal(np.argwhere(corners.any(0) & ~corners.all(0)), found.cell[np.lexsort(found.cell.T[::-1])])


def test_vertices_know_their_normal_their_region_and_their_place_on_the_template(
    head: HeadModel,  # noqa: F811
    carried: CarriedTemplate,
) -> None:
    still = head.mesh(WHO, resolution=64)
    for expression in ("canonical", f"{WHO}/smile"):
        mesh = still.with_vertices(head.pose(still.vertices, WHO, expression))
        # the way back to canonical space is found where it is not told
        found = with_columns(head, mesh, WHO, expression, carried)
        told = with_columns(head, mesh, WHO, expression, carried, still.vertices)
        columns = told.attributes
        normals = np.stack([columns[name] for name in ("nx", "ny", "nz")], 1)
        assert np.linalg.norm(normals, axis=1) == pytest.approx(1, abs=1e-4)
        cosine = (normals * vertex_normals(mesh.vertices, mesh.faces)).sum(1)
        assert np.median(cosine) > 0.98
        assert (found.attributes["template_face"] == columns["template_face"]).mean() > 0.9
        corners = carried.vertices_mm[head.template.mesh.faces[columns["template_face"]]]
        u, v = columns["template_u"][:, None], columns["template_v"][:, None]
        place = (1 - u - v) * corners[:, 0] + u * corners[:, 1] + v * corners[:, 2]
        assert np.allclose(np.linalg.norm(place - still.vertices, axis=1), columns["template_mm"], atol=0.01)
    names = np.array(REGIONS)[columns["region"]]
    nose = head.template.mesh.vertices[head.template.landmarks[30]]
    assert names[np.linalg.norm(still.vertices - nose, axis=1).argmin()] == "face"
    assert {"face", "scalp", "ears", "neck", "lips"} <= set(names)


def test_no_model_there_is_told_by_the_places_looked_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no model \(no model.safetensors in nobody or ws/models/nobody\)"):
        find_model("nobody", "ws")
    with pytest.raises(ConfigError, match=r"\(no model.safetensors in \S*/nobody\)"):
        find_model(str(tmp_path / "nobody"), "ws")


@pytest.mark.usefixtures("quickly_carried")
def test_the_mesh_verb_writes_what_the_ending_asks_for(folder: Path, tmp_path: Path, capsys) -> None:
    told = ["mesh", str(folder), "--identity", WHO, "--expression", f"{WHO}/smile", "--resolution", "64", "--json"]
    sizes = set()
    for ending in ("ply", "obj", "glb"):
        out = tmp_path / "made" / f"head.{ending}"
        assert run_command([*told, "-o", str(out)]) == Exit.DONE
        document = json.loads(capsys.readouterr().out)
        assert document["mesh"] == str(out)
        read = trimesh.load(out, process=False)
        read = read if ending != "glb" else read.to_geometry()
        sizes.add((len(read.faces), document["faces"], document["vertices"]))
        assert np.ptp(read.vertices[:, 1]) == pytest.approx(0.25 if ending == "glb" else 250, rel=0.3)
        assert Path(document["picture"]).read_bytes().startswith(b"\x89PNG")
    assert len(sizes) == 1
    columns = mesh_from_ply((tmp_path / "made" / "head.ply").read_bytes()).attributes
    assert {"nx", "ny", "nz", "region", "template_face", "template_u", "template_v", "template_mm"} == set(columns)
    assert b"\ng lips\n" in (tmp_path / "made" / "head.obj").read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "head.ply", "--identity", "p7"], "it has p0, p1, p2, p3"),
        (["-o", "head.ply", "--identity", "pp0"], "did you mean p0"),
        (["-o", "head.ply", "--expression", "p0/smil"], "p0/smile"),
        (["-o", "head.stl"], ".glb"),
        (["-o", "head.ply", "--resolution", "5000"], "1024"),
    ],
)
def test_a_wrong_word_is_one_line_that_says_what_would_do(folder: Path, tmp_path, capsys, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    assert run_command(["mesh", str(folder), *words]) == Exit.WRONG_USAGE
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert told in error
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quickly_carried")
def test_a_fits_expressions_are_put_on_someone_else(head: HeadModel, folder: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    fitted = {"identity": head.identity_code("p1"), "expression/front": head.expression_code("p1/smile")}
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / CODES_FILE).write_bytes(encode_safetensors(fitted))
    out = tmp_path / "faces.glb"
    told = ["transfer", str(folder), "--identity", WHO, "--expression", "p2", "--expression", str(tmp_path / "fit")]
    assert run_command([*told, "--resolution", "64", "-o", str(out), "--json", "-q"]) == Exit.DONE
    document = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in document["heads"]] == ["p2/neutral_open", "p2/smile", "front"]
    assert identity_of(head, str(tmp_path / "fit"), 0).tolist() == head.identity_code("p1").tolist()
    scene = trimesh.load(out).to_geometry()
    expected = head.pose(head.mesh(WHO, resolution=64).vertices, WHO, "p2/neutral_open")
    assert np.allclose(scene.vertices, expected / 1000, atol=1e-5)
    with pytest.raises(ConfigError, match="no such scan in the fit"):
        expressions_of(head, [str(tmp_path / "fit" / "profile")], 0)


@pytest.mark.usefixtures("quickly_carried")
def test_the_way_between_two_heads_starts_and_ends_at_them(head: HeadModel, folder: Path, tmp_path, capsys) -> None:  # noqa: F811
    frames = meshes_between(folder, (WHO, "p1"), ("p0/smile", "p1/neutral_open"), 3, 48, 0)
    ends = head.mesh(WHO, "p0/smile", 48), head.mesh("p1", "p1/neutral_open", 48)
    for frame, end in zip((frames[0], frames[-1]), ends, strict=True):
        assert np.allclose(frame.mesh.vertices, end.vertices, atol=1e-3)
    middle = 0.5 * (head.identity_code(WHO) + head.identity_code("p1"))
    assert len(frames[1].mesh.vertices) == len(head.mesh(middle, resolution=48).vertices)
    still = meshes_between(folder, ("random", None), ("random", "random"), 3, 48, 0)
    assert all(np.array_equal(one.mesh.faces, still[0].mesh.faces) for one in still)
    assert np.abs(still[0].mesh.vertices - still[2].mesh.vertices).max() > 0.5
    line = ["interpolate", str(folder), "--expression", "p0/smile", "--resolution", "48", "-o", str(tmp_path / "a.obj")]
    assert run_command([*line, "--frames", "2", "--to-identity", "p1", "-q"]) == Exit.DONE
    assert {path.name for path in tmp_path.iterdir()} == {"a-0.obj", "a-1.obj", "a.png"}
    assert run_command([*line, "--to-expression", "canonical"]) == Exit.WRONG_USAGE
    assert "canonical has no code" in capsys.readouterr().err


def test_random_people_have_the_spread_of_the_trained_ones_and_their_own_seeds(head: HeadModel) -> None:  # noqa: F811
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_identity(head.identity_codes, head.identity_field.layout, rng) for _ in range(600)])
    mirrored = replace(head, identity_codes=drawn)
    assert np.linalg.norm(mirrored.identity_std) == pytest.approx(0.85 * np.linalg.norm(head.identity_std), rel=0.3)
    assert np.array_equal(identity_of(head, "random", 4), identity_of(head, "random", 4))
    assert not np.array_equal(identity_of(head, "random", 4), identity_of(head, "random", 5))
    first, second = expressions_of(head, ["random", "random"], 4)
    assert not np.array_equal(first.code, second.code)
