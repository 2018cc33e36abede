"""A head model's folder and what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model import HeadModel
from model.checkpoint import decode, encode
from model.training import train
from registration.mesh import Mesh, boundary_vertices
from registration.procedural_head import head_template
from registration.template import Template
from storage.errors import ConfigError
from tests.model.test_metrics import sphere
from tests.model.test_training import DIRECTIONS, RADII_MM, SHIFTS_MM, a_config, some_data


def a_template() -> Template:
    """A template of one triangle, enough to travel with a model."""
    n = 3
    return Template(
        "triangle",
        Mesh.of([[0, 0, 0], [10, 0, 0], [0, 10, 0]], [[0, 1, 2]]),
        np.zeros(68, np.int32),
        np.zeros(9, np.int32),
        3,
        np.zeros(n, np.uint8),
        np.ones(n, bool),
        np.arange(n, dtype=np.int32),
        np.arange(3, dtype=np.int32),
        np.zeros((0, n, 3), np.float32),
        np.zeros((0, n, 3), np.float32),
    )


@pytest.fixture(scope="module")
def head() -> HeadModel:
    config = a_config(250, 150)
    trained = train(config, some_data(), lambda name, data: None)
    box = [[-110, -110, -110], [110, 110, 110]]
    scans = ["a/smile", "b/smile", "b/frown"]
    return HeadModel.of(trained, config.field, ["a", "b"], scans, a_template(), box, [0, 1, 0, 50])


def test_folder_holds_all_of_the_model(head: HeadModel, tmp_path: Path) -> None:
    head.save(tmp_path / "model")
    again = HeadModel.load(tmp_path / "model")
    points = np.random.default_rng(0).uniform(-100, 100, (500, 3)).astype(np.float32)
    assert again.subjects == ("a", "b")
    assert np.array_equal(again.sdf(points, "b"), head.sdf(points, "b"))
    assert np.array_equal(again.pose(points, "b", "b/frown"), head.pose(points, "b", "b/frown"))
    assert again.to_files() == head.to_files()
    assert again.sdf(points, "a").dtype == np.float32


def test_mesh_is_the_head_above_the_throat(head: HeadModel) -> None:
    mesh = head.mesh("a", resolution=96)
    error = np.abs(np.linalg.norm(mesh.vertices / RADII_MM[0], axis=1) - 1) * 70
    assert np.median(error) < 1.0
    assert mesh.vertices[:, 1].min() == pytest.approx(-50, abs=0.1)
    open_edge = boundary_vertices(mesh.faces, len(mesh.vertices))
    assert np.abs(mesh.vertices[open_edge, 1] + 50).max() < 0.1
    posed = head.mesh("b", "b/smile", resolution=64)
    still = head.mesh("b", resolution=64)
    assert np.median(posed.vertices - still.vertices, axis=0) == pytest.approx(SHIFTS_MM[1], abs=1.5)
    assert np.abs(head.anchors_mm("a") - DIRECTIONS * RADII_MM[0]).max() < 4


def test_crumbs_are_left_out_unless_asked_for(head: HeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shell, bun, speck = sphere(90.0), sphere(25.0), sphere(5.0)
    parts = [shell.with_vertices(shell.vertices + [0, 20, 0]), bun.with_vertices(bun.vertices + [0, 0, -120]), speck]
    counts = [len(part.vertices) for part in parts]
    whole = Mesh.of(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, [0, *np.cumsum(counts)], strict=False)]),
    )
    monkeypatch.setattr("model.head_model.extract", lambda *_: whole)
    assert len(head.mesh("a").vertices) == counts[0] + counts[1]
    assert len(head.mesh("a", crumbs=True).vertices) == sum(counts)
    monkeypatch.setattr("model.head_model.extract", lambda *_: Mesh.of(np.zeros((0, 3)), np.zeros((0, 3))))
    assert len(head.mesh("a").vertices) == 0


def test_codes_and_names_are_checked(head: HeadModel) -> None:
    with pytest.raises(ConfigError, match="no such subject in the model"):
        head.sdf(np.zeros((1, 3)), "nobody")
    with pytest.raises(ConfigError, match="no such scan in the model"):
        head.pose(np.zeros((1, 3)), "a", "a/nothing")
    with pytest.raises(ConfigError, match="is no subject code"):
        head.sdf(np.zeros((1, 3)), np.zeros(3))
    assert np.array_equal(head.identity_code(head.identity_mean), head.identity_mean)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda told: told["field"]["identity"].update(hidden=[200_000, 200_000]), "of another architecture"),
        (lambda told: told["field"]["deformation"].update(hidden=[10**12, 10**12]), "sizes are those of no network"),
        (lambda told: told["field"]["deformation"].update(hidden=[1] * 100_000), "is damaged"),
        (lambda told: told["field"]["identity"].update(global_dim=10**400), ": sizes are|: is damaged"),
        (lambda told: told.update(anchor_pairs=5000), "anchor_pairs is 5000 of 9 anchors"),
        (lambda told: told.update(anchor_pairs=-1), "anchor_pairs"),
        (lambda told: told.update(anchor_pairs=2), "of another architecture"),
        (
            lambda told: told.update(mean_anchors_mm=[[0, 0, 0]] * 5000),
            "mean_anchors_mm: Tuple should have at most 4096",
        ),
        (lambda told: told.update(mean_anchors_mm=[[0, 0]]), "mean_anchors_mm.0.2: Field required"),
        (lambda told: told.update(box_mm=[[0, 0, 0]]), "box_mm.1: Field required"),
        (lambda told: told.update(box_mm=[[0, 0, 0], [0, 1, 1]]), "box_mm has no inside"),
        (
            lambda told: told.update(throat_plane=[0, 1, float("nan"), 0]),
            "throat_plane.2: Input should be a finite",
        ),
        (lambda told: told.update(subjects="ab"), "subjects: Input should be a valid tuple"),
        (lambda told: told.update(subjects=["a"]), "codes and names disagree"),
        (lambda told: told.update(scans=["a/smile"]), "codes and names disagree"),
        (lambda told: told.update(mm_per_unit=1.0), "of another version"),
        (lambda told: told.update(template_sha256="0" * 64), "is not the model's"),
        (lambda told: told.pop("template_sha256"), "template_sha256: Field required"),
    ],
)
def test_a_config_that_the_files_disagree_with_is_refused(head: HeadModel, change: Callable, says: str) -> None:
    files = head.to_files()
    told = json.loads(files["config.json"])
    change(told)
    with pytest.raises(ConfigError, match=says) as caught:
        HeadModel.from_files(files | {"config.json": json.dumps(told).encode()})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["identity", "expression"])
@pytest.mark.parametrize("change", [lambda z: z[:, 1:], lambda z: z.double(), lambda z: z * float("nan")])
def test_codes_of_another_width_or_kind_are_refused(head: HeadModel, name: str, change: Callable) -> None:
    files = head.to_files()
    codes, _ = decode(files["codes.safetensors"])
    codes[name] = change(codes[name])
    with pytest.raises(ConfigError, match=f"codes and names disagree \\({name} is "):
        HeadModel.from_files(files | {"codes.safetensors": encode(codes)})


def test_damaged_folders_are_refused_in_one_line(head: HeadModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no model folder"):
        HeadModel.load(tmp_path)
    files = head.to_files()
    for name in files:
        with pytest.raises(ConfigError, match=f"is no model folder \\({name} is missing"):
            HeadModel.from_files({other: data for other, data in files.items() if other != name})
    for name, data, message in (
        ("model.safetensors", files["model.safetensors"][:500], "is no checkpoint"),
        ("codes.safetensors", b"", "is no checkpoint"),
        ("config.json", b"{}", "is damaged"),
        ("codes.safetensors", encode({"expression": torch.zeros(3, 8)}), "identity is missing"),
        ("template.npz", head_template().to_bytes(), "is not the model's"),
        ("config.json", files["config.json"].replace(b'"format": 1', b'"format": 9'), "of another version"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            HeadModel.from_files(files | {name: data})
        assert "\n" not in str(caught.value)


def test_weights_that_name_other_networks_are_refused(head: HeadModel) -> None:
    files = head.to_files()
    weights, _ = decode(files["model.safetensors"])
    weights["identity.network_of"] += 1000
    with pytest.raises(ConfigError, match=r"identity\.network_of is not as its sizes ask for"):
        HeadModel.from_files(files | {"model.safetensors": encode(weights)})
