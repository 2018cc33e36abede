"""Captures of ICT heads, sampled in workspaces, and batches of them: what the benchmarks of the field train on.

Captures and workspaces are kept in the work folder by what they are made from, as is every finished row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from benchmarks.ict import CAPTURE_TOOL, HEADS, require_ict
from model.bound_fields import BoundFields
from model.head_fields import HeadFields
from model.trained_model import TrainedModel
from model.training_data import TrainingData
from model.units import MM_PER_UNIT, to_units
from pipeline.batches import DeformationBatches, IdentityBatches
from pipeline.blends import RegisteredPeople, blend_batches
from pipeline.opening import open_workspace
from pipeline.train import deformation_batches, identity_batches
from pipeline.train_config import TrainConfig
from pipeline.training_scans import TrainingScans, training_scans
from pipeline.workspace import Workspace
from registration.mesh import mesh_from_ply
from registration.template import Template
from storage.digest import digest_json

EXPRESSIONS = ("neutral_open", "smile", "jaw_open_wide", "brows_up", "neutral", "lips_pressed")


def make_workspace(
    work: Path,
    name: str,
    subjects: int,
    expressions: int,
    preset: str,
    steps: tuple[int, int] | None = None,
    held_out: Sequence[str] = (),
    every_scan: bool = False,
) -> tuple[Workspace, Path]:
    """A workspace of fused scans, sampled; and the folder with their truth. Both are made once.

    Training takes the preset's steps, or those given, and all subjects but those held out. With ``every_scan`` the
    expressions too have distances.
    """
    require_ict()
    captures = work / f"field-captures-{subjects}x{expressions}"
    if not (captures / "complete").exists():
        told = ["--subjects", str(subjects), "--expressions", ",".join(EXPRESSIONS[:expressions]), "--format", "mesh"]
        subprocess.run([sys.executable, str(CAPTURE_TOOL), str(captures), *told], check=True, stdout=subprocess.DEVNULL)
        (captures / "complete").touch()
    url = work / f"field-{name}-{subjects}x{expressions}-{preset}"
    if not (url / "pipeline.toml").exists():
        template = work / "ict_template.npz"
        nphm("template", "import-ict", HEADS, "-o", template)
        nphm("init", url, "--preset", preset, "--template", template)
        config = tomllib.loads((url / "pipeline.toml").read_text())
        config["splits"] |= {"held_out": 0.0, "held_out_ids": list(held_out)}
        config["sample"]["identity"]["every_scan"] = every_scan
        for stage, count in zip(("stage1", "stage2"), steps or (), strict=False):
            config["train"]["training"][stage]["steps"] = count
        (url / "pipeline.toml").write_text(tomli_w.dumps(config))
    nphm("ingest", captures / "session", "-w", url)
    nphm("run", "-w", url, "--until", "sample")
    return open_workspace(str(url)), captures


def nphm(*words: str | Path) -> None:
    """Run a verb as a user would; a failure ends the benchmark with the verb's own message."""
    subprocess.run([sys.executable, "-m", "flows", *map(str, words)], check=True)


@dataclass(frozen=True)
class TrainingSet:
    """Samples of a workspace and batches of them.

    Attributes:
        workspace: where the samples are.
        scans: which they are.
        digest: of the samples.
        identity, deformation: batches; set by ``with_batches``.
        data: what training is given.
    """

    workspace: Workspace
    scans: TrainingScans
    digest: str
    identity: IdentityBatches = None  # type: ignore[assignment]
    deformation: DeformationBatches = None  # type: ignore[assignment]
    data: TrainingData = None  # type: ignore[assignment]

    @classmethod
    def of(cls, workspace: Workspace) -> TrainingSet:
        """The training samples of a workspace."""
        inputs = {key: value for key, value in workspace.inputs("train", "").items() if key.startswith("sample")}
        return cls(workspace, training_scans(workspace), digest_json(inputs)[:12])

    def with_batches(self, config: TrainConfig, template: Template | None = None) -> TrainingSet:
        """The same with batches as a config asks for them, and perhaps a template with other anchors."""
        identity = identity_batches(config, self.scans, seed=1)
        deformation = deformation_batches(config, self.scans, seed=2)
        counts = len(self.scans.subjects), len(self.scans.scans)
        shapes = motions = None
        if template is not None or config.blends_per_step:
            people = RegisteredPeople.read(self.workspace, self.scans, config.blend_motions, template)
            if template is not None:
                identity.anchors_mm = people.canonical_mm[:, template.anchors]
            if config.blends_per_step:
                shapes, motions = blend_batches(config, people, seed=3)
        mean = identity.anchors_mm.mean(0, dtype=np.float64)
        pairs = (template or self.workspace.template()).anchor_pairs
        data = TrainingData(identity, deformation, *counts, mean, pairs, shape_blends=shapes, motion_blends=motions)
        return replace(self, identity=identity, deformation=deformation, data=data)


@dataclass(frozen=True)
class RegisteredPairs:
    """The registrations' vertices, canonical and posed: correspondences that were never samples.

    Attributes:
        canonical, posed: (scans, n, 3) model units.
        subject: (scans,) place of each one's subject.
    """

    canonical: torch.Tensor
    posed: torch.Tensor
    subject: torch.Tensor

    @torch.no_grad()
    def error_mm(self, model: TrainedModel) -> float:
        """Mean distance of posed from registered vertices."""
        if model.deformation.config.direction == "backward":
            wrong = [
                (bound.posed(self.canonical[place]).place - self.posed[place]).norm(dim=1)
                for place, bound in enumerate(self._bound(model))
            ]
            return float(torch.cat(wrong).mean()) * MM_PER_UNIT
        z_id = model.identity_codes.codes[self.subject]
        anchors = model.identity.anchors_head(model.identity.layout.split(z_id)[0])
        scans, count = self.canonical.shape[:2]
        prepared = model.deformation.prepare(z_id, anchors, model.expression_codes.codes[:scans])
        index = torch.arange(scans).repeat_interleave(count)
        moved = model.deformation.displacement(prepared, self.canonical.reshape(-1, 3), index).reshape(scans, -1, 3)
        return float((self.canonical + moved - self.posed).norm(dim=2).mean()) * MM_PER_UNIT

    @torch.no_grad()
    def surface_mm(self, model: TrainedModel) -> float:
        """Median distance of registered vertices to the posed surface; a vertex without a root counts as far."""
        wrong = []
        for place, bound in enumerate(self._bound(model)):
            came_from = bound.canonical(self.posed[place])
            distance = bound.distance(self.posed[place], came_from.place).abs()
            wrong.append(torch.where(came_from.found, distance, torch.inf))
        return float(torch.cat(wrong).median()) * MM_PER_UNIT

    def _bound(self, model: TrainedModel) -> Iterator[BoundFields]:
        """The fields of each scan, its codes given."""
        fields = HeadFields(model.identity, model.deformation)
        for place, subject in enumerate(self.subject.tolist()):
            codes = model.identity_codes.codes[subject], model.expression_codes.codes[place]
            yield fields.bind(codes[0][None], codes[1][None])


def registered_pairs(data: TrainingSet, every: int = 7) -> RegisteredPairs:
    """Vertices of the face at even steps, in all scans' registrations."""
    chosen = np.flatnonzero(data.workspace.template().face_mask)[::every]
    heads = {}
    for key in {*data.scans.scans, *(data.workspace.canonical_key(subject) for subject in data.scans.subjects)}:
        mesh = mesh_from_ply(data.workspace.read(data.workspace.accepted("register", str(key)), "mesh.ply"))
        heads[key] = torch.as_tensor(to_units(mesh.vertices[chosen].astype(np.float32)))
    canonical = [heads[data.workspace.canonical_key(key.partition("/")[0])] for key in data.scans.scans]
    posed = [heads[key] for key in data.scans.scans]
    return RegisteredPairs(
        torch.stack(canonical), torch.stack(posed), torch.as_tensor(data.scans.subject_of_scan(), dtype=torch.int64)
    )


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """A finished row, or made now and kept."""
    if not path.exists():
        row = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(row))
        path.with_suffix(".part").rename(path)
    return json.loads(path.read_text())
