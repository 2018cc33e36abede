"""The lines of Python that the pages show, run as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import DeformationConfig, FieldConfig, IdentityConfig
from model.head_model import HeadModel
from model.networks import HeadNetworks
from model.units import to_units
from pipeline.models import latest_model
from pipeline.release_build import build_release
from pipeline.sample_format import IdentitySamples, encode_samples, quantise_samples
from pipeline.sample_groups import put_group
from pipeline.workspace import Workspace
from registration.mesh import Mesh
from registration.template import Template
from storage.store import LocalStore
from tests.pipeline.release_rig import PEOPLE, opened

DOCS = Path(__file__).resolve().parents[2] / "docs"


def snippets(page: str) -> list[str]:
    """The blocks of Python on a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def run(lines: str) -> dict[str, Any]:
    """The names that some lines leave behind."""
    names: dict[str, Any] = {}
    exec(compile(lines, "docs", "exec"), names)
    return names


def test_plain_zarr_and_xarray_open_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-150, 150, (3, 1200, 3)).astype(np.float32)
    sdf, yes = rng.uniform(-20, 20, 1200).astype(np.float32), np.ones(1200, bool)
    normal = np.tile(np.float32([0, 0, 1]), (1200, 1))
    samples = IdentitySamples(
        points[0], normal, np.zeros(1200, np.uint8), yes, yes, points[1], sdf, yes, points[2], sdf, yes, points[0, :9]
    )
    put_group(LocalStore(tmp_path / "WS"), "001/neutral_open", encode_samples(quantise_samples(samples, "here"), {}))
    monkeypatch.chdir(tmp_path)
    told = [run(lines)["position_mm"] for lines in snippets("samples.md")]
    assert len(told) == 2
    for position_mm in told:
        assert position_mm.shape == (1000, 3)
        assert np.abs(position_mm - points[0, :1000]).max() < 0.00505


def _with_a_real_model(workspace: Workspace) -> None:
    """Put a model that has learned nothing in the place of the promoted one."""
    latest = latest_model(workspace)
    assert latest is not None
    manifest = workspace.manifest("train", latest.name)
    assert manifest is not None
    scans = tuple(sorted(source.removeprefix("sample/") for source in manifest.inputs if source.startswith("sample/")))
    subjects = tuple(sorted({key.partition("/")[0] for key in scans}))
    config = FieldConfig(
        identity=IdentityConfig(global_dim=4, local_dim=2, hidden=(8, 8), anchor_hidden=(8,)),
        deformation=DeformationConfig(expression_dim=3, compressed_dim=4, hidden=(8, 8), skip_layer=None),
    )
    corner = np.array([[0, 0, 90], [40, 0, 80], [-40, 0, 80]], np.float32)
    empty, three = np.zeros((0, 3, 3), np.float32), np.arange(3, dtype=np.int32)
    template = Template(
        "triangle", Mesh.of(corner, [[0, 1, 2]]), np.zeros(68, np.int32), three, 1, np.zeros(3, np.uint8),
        np.ones(3, bool), three, three, empty, empty,
    )  # fmt: skip
    networks = HeadNetworks.build(config, torch.as_tensor(to_units(corner)), 1, torch.Generator().manual_seed(0))
    networks.frozen("cpu")
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(len(subjects), networks.identity.layout.size)).astype(np.float32)
    expressions = rng.normal(size=(len(scans), 3)).astype(np.float32)
    head = HeadModel(
        networks.identity, networks.deformation, config, subjects, scans, codes, expressions, template,
        np.array([[-99.0] * 3, [99.0] * 3]), np.array([0.0, 1, 0, 60]),
    )  # fmt: skip
    workspace.commit("train", latest.name, inputs=manifest.inputs, outputs=head.to_files() | {"metrics.json": b"{}"})


def test_a_release_opens(finished_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    shutil.copytree(finished_workspace, tmp_path / "workspace")
    workspace = opened(tmp_path / "workspace")
    _with_a_real_model(workspace)
    build_release(workspace, "1.2.0", LocalStore(tmp_path / "heads-1.2.0"))
    monkeypatch.chdir(tmp_path)
    (lines,) = snippets("releases.md")
    names = run(lines)
    head, release = names["head"], names["release"]
    assert set(head.subjects) == set(release.splits.train)
    assert not set(head.subjects) & set(PEOPLE)
    points = np.random.default_rng(0).uniform(-50, 50, (20, 3)).astype(np.float32)
    assert np.isfinite(head.sdf(points, head.subjects[0])).all()
    assert names["registered"].vertices.shape == (30, 3)
    assert set(names["frame"]) == {"T_world_from_head", "throat_plane"}
