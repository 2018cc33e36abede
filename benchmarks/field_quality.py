"""What training the field reaches on captures of ICT heads, beside the truth; and a table of ablations.

Used by field.py. Captures, workspaces, trained models and finished rows are kept in the work folder by what they were
made from, so that a killed run goes on where it was; the training itself goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray

from benchmarks.truth import FACE_VERTICES, LOWEST_Y_MM, REACH_MM, SKIN, Surface, Truth, load_truth, rigid_motion
from model import HeadModel
from model.averaging import WeightAverage
from model.batch_tensors import BatchTensors
from model.config import TrainingConfig
from model.objective import Objective
from model.optimisation import StageOptimiser
from model.processes import ALONE
from model.threads import fixed_threads
from model.trained_model import TrainedModel, new_model
from model.training_data import TrainingData
from model.training_figures import training_figures
from model.units import MM_PER_UNIT, to_units
from pipeline.batches import DeformationBatches, IdentityBatches
from pipeline.config import preset_config
from pipeline.opening import open_workspace
from pipeline.train import TrainingScans, deformation_batches, identity_batches, training_scans
from pipeline.train_config import TrainConfig
from pipeline.workspace import Workspace
from registration.anchors import with_anchors
from registration.mesh import Mesh, mesh_from_ply, sample_surface, transform_points
from registration.pictures import BACK, FRONT, LEFT, render, sheet, to_png
from registration.pieces import vertex_pieces
from storage.digest import digest_json

SHARED = Path(__file__).resolve().parents[2] / "shared"
EXPRESSIONS = ("neutral_open", "smile", "jaw_open_wide", "brows_up", "neutral", "lips_pressed")
VIEWS = ((FRONT, 0.0), (LEFT / 2, 0.0), (LEFT, 0.0), (BACK, 20.0))
THREADS = 2


def make_workspace(
    work: Path,
    name: str,
    subjects: int,
    expressions: int,
    preset: str,
    steps: tuple[int, int] | None = None,
    held_out: Sequence[str] = (),
) -> tuple[Workspace, Path]:
    """A workspace of fused scans, sampled; and the folder with their truth. Both are made once.

    Training takes the preset's steps, or those given, and all subjects but those held out.
    """
    captures = work / f"field-captures-{subjects}x{expressions}"
    if not (captures / "complete").exists():
        told = ["--subjects", str(subjects), "--expressions", ",".join(EXPRESSIONS[:expressions]), "--format", "mesh"]
        tool = SHARED / "tools" / "ict_captures.py"
        subprocess.run([sys.executable, str(tool), str(captures), *told], check=True, stdout=subprocess.DEVNULL)
        (captures / "complete").touch()
    url = work / f"field-{name}-{subjects}x{expressions}-{preset}"
    if not (url / "pipeline.toml").exists():
        template = work / "ict_template.npz"
        nphm("template", "import-ict", SHARED / "heads" / "ict_heads.npz", "-o", template)
        nphm("init", url, "--preset", preset, "--template", template)
        config = tomllib.loads((url / "pipeline.toml").read_text())
        config["splits"] |= {"held_out": 0.0, "held_out_ids": list(held_out)}
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

    def with_batches(
        self, config: TrainConfig, anchors_mm: NDArray | None = None, pairs: int | None = None
    ) -> TrainingSet:
        """The same with batches as a config asks for them, and perhaps other anchors (subjects, K, 3)."""
        identity = identity_batches(config, self.scans, seed=1)
        if anchors_mm is not None:
            identity.anchors_mm = anchors_mm.astype(np.float32)
        deformation = deformation_batches(config, self.scans, seed=2)
        pairs = self.workspace.template().anchor_pairs if pairs is None else pairs
        mean = identity.anchors_mm.mean(0, dtype=np.float64)
        data = TrainingData(identity, deformation, len(self.scans.subjects), len(self.scans.scans), mean, pairs)
        return replace(self, identity=identity, deformation=deformation, data=data)


def data_for(work: Path, name: str, subjects: int, expressions: int, url: str | None = None) -> TrainingSet:
    """Samples of a workspace made for the benchmark, or of one that is there."""
    if url is not None:
        return TrainingSet.of(open_workspace(url))
    return TrainingSet.of(make_workspace(work, name, subjects, expressions, "demo")[0])


def train_for(config: TrainingConfig, model: TrainedModel, data: TrainingSet, minutes: float, seed: int = 0) -> int:
    """Train stage 1 for so many minutes; returns the steps.

    A few steps tell how many the schedule can have; they are undone.
    """
    with fixed_threads(config.threads):
        before = {name: tensor.clone() for name, tensor in model.tensors().items()}
        steps = _train_stage1(config, model, data, 5, math.inf, seed)
        each = steps[1] / max(steps[0], 1)
        model.restore(before)
        return _train_stage1(config, model, data, max(10, int(minutes * 60 / each)), minutes * 60, seed)[0]


def _train_stage1(
    config: TrainingConfig, model: TrainedModel, data: TrainingSet, steps: int, seconds: float, seed: int
) -> tuple[int, float]:
    tensors = BatchTensors("cpu", config.guessed_weight)
    objective = Objective(config, model, tensors, torch.Generator().manual_seed(seed), ALONE)
    stage = config.stage1.model_copy(update={"steps": steps})
    parameters = [*model.identity.parameters(), model.identity_codes.codes]
    optimiser = StageOptimiser(stage, model.identity.parameters(), model.identity_codes.codes)
    average = WeightAverage(parameters, config.average_decay)
    start, step = time.perf_counter(), 0
    while step < steps and time.perf_counter() - start < seconds:
        _, loss = objective.identity(next(data.identity))
        optimiser.clear()
        loss.backward()
        optimiser.descend(step, ALONE)
        average.update(step)
        step += 1
    average.settle()
    return step, time.perf_counter() - start


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
        z_id = model.identity_codes.codes[self.subject]
        anchors = model.identity.anchors_head(model.identity.layout.split(z_id)[0])
        scans, count = self.canonical.shape[:2]
        prepared = model.deformation.prepare(z_id, anchors, model.expression_codes.codes[:scans])
        index = torch.arange(scans).repeat_interleave(count)
        moved = model.deformation.displacement(prepared, self.canonical.reshape(-1, 3), index).reshape(scans, -1, 3)
        return float((self.canonical + moved - self.posed).norm(dim=2).mean()) * MM_PER_UNIT


def registered_pairs(data: TrainingSet, every: int = 7) -> RegisteredPairs:
    """Every so-manieth vertex of the face in all scans' registrations."""
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


class TrueHead:
    """One scan's truth: the skin, which of it is observed face, and all that was seen."""

    def __init__(self, truth: Truth) -> None:
        skin = truth.surface_part == SKIN
        faces = truth.surface.faces[skin]
        # the head's own vertices come first among the surface's, in ICT's order
        self.is_face = (faces < FACE_VERTICES).all(1) & (truth.surface_views[skin] >= 2)
        self.skin = Surface(Mesh.of(truth.surface.vertices, faces))
        self.seen = Surface(truth.surface.select_faces(truth.surface_views >= 1))
        self.head_from_world = np.linalg.inv(truth.head_to_world)

    def face_mm(self, points: NDArray) -> NDArray[np.float64]:
        """Distance to the true skin of those points that lie nearest to observed face, within reach."""
        distance, _, face = self.skin.closest(points)
        return distance[self.is_face[face] & (distance < REACH_MM)]

    def seen_mm(self, points: NDArray) -> NDArray[np.float64]:
        """Distance to the seen surface of the points above the throat, within reach."""
        above = transform_points(self.head_from_world, points)[:, 1] > LOWEST_Y_MM
        distance, _, _ = self.seen.closest(points[above])
        return distance[distance < REACH_MM]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """A finished row, or made now and kept."""
    if not path.exists():
        row = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(row))
        path.with_suffix(".part").rename(path)
    return json.loads(path.read_text())


def quality_rows(work: Path, quick: bool) -> dict[str, float]:
    """Train the `small` preset (`demo` if quick) and hold its heads against the truth."""
    preset, subjects, expressions = ("demo", 2, 2) if quick else ("small", 24, 6)
    steps = (100, 60) if quick else None
    workspace, captures = make_workspace(work, "quality", subjects, expressions, preset, steps)
    start = time.perf_counter()
    nphm("train", "-w", workspace.url)
    seconds = time.perf_counter() - start
    workspace = open_workspace(workspace.url)
    name = json.loads(workspace.store.get("models/latest.json"))["name"]
    with workspace.store.local_path(f"models/{name}/model.safetensors") as weights:
        head = HeadModel.load(weights.parent)
    rows = [
        kept(
            work / "rows" / f"field-{name}-{subject}.json",
            lambda s=subject: head_row(work, workspace, head, captures, s),
        )
        for subject in head.subjects
    ]
    posed = kept(work / "rows" / f"field-{name}-posed.json", lambda: posed_errors(workspace, head))
    figures = {f"train_{figure}": float(np.median([row[figure] for row in rows])) for figure in rows[0]}
    figures["train_most_pieces"] = max(row["pieces"] for row in rows)
    return figures | {"posed_face_mean_mm": float(np.mean(posed)), "train_seconds_this_time": seconds}


def head_row(work: Path, workspace: Workspace, head: HeadModel, captures: Path, subject: str) -> dict[str, float]:
    """A training head, meshed anew from its code, against the truth; four views of it are kept as a picture."""
    key = str(workspace.canonical_key(subject))
    truth = load_truth(captures, key)
    true = TrueHead(truth)
    scan = mesh_from_ply(workspace.read(workspace.accepted("clean", key), "mesh.ply"))
    T_world_from_head = np.array(workspace.accepted("register", key).extra("T_world_from_head"))
    T_true_from_head = rigid_motion(scan, truth) @ T_world_from_head
    mesh = head.mesh(subject, "canonical")
    picture = sheet([[render(mesh, azimuth, elevation) for azimuth, elevation in VIEWS]])
    (work / "rows").mkdir(parents=True, exist_ok=True)
    (work / "rows" / f"field-{subject}.png").write_bytes(to_png(picture))
    points, _, _ = sample_surface(mesh, 100_000, np.random.default_rng(0))
    points = transform_points(T_true_from_head, points)
    face, seen = true.face_mm(points), true.seen_mm(points)
    return {
        "face_median_mm": float(np.median(face)),
        "face_p95_mm": float(np.percentile(face, 95)),
        "head_median_mm": float(np.median(seen)),
        "head_p95_mm": float(np.percentile(seen, 95)),
        "pieces": float(vertex_pieces(mesh).max() + 1),
    }


def posed_errors(workspace: Workspace, head: HeadModel) -> list[float]:
    """Mean distance of posed from registered face vertices, a scan each, but not the canonical ones."""
    face = np.flatnonzero(workspace.template().face_mask)
    errors = []
    for key in head.scans:
        subject = key.partition("/")[0]
        own = workspace.canonical_key(subject)
        if key == own:
            continue
        canonical, posed = (
            mesh_from_ply(workspace.read(workspace.accepted("register", str(one)), "mesh.ply")).vertices[face]
            for one in (own, key)
        )
        errors.append(float(np.linalg.norm(head.pose(canonical, subject, key) - posed, axis=1).mean()))
    return errors


def ablation_rows(work: Path, quick: bool, minutes: float | None) -> dict[str, float]:
    """Each variant of stage 1 trained equally long on the same samples: errors on further samples, a row each."""
    minutes = (0.2 if quick else 12.0) if minutes is None else minutes
    data = data_for(work, "ablations", 2 if quick else 12, 2 if quick else 4)
    table: dict[str, float] = {}
    for name, make in ABLATIONS.items():
        config, anchors, pairs = make(data)
        told = digest_json([config.model_dump(mode="json"), minutes, data.digest])[:12]
        row = kept(
            work / "rows" / f"ablation-{name}-{told}.json",
            lambda c=config, a=anchors, p=pairs: _ablate(data, c, a, p, minutes),
        )
        table |= {f"{name}_{figure}": value for figure, value in row.items()}
    return table


def _ablate(
    data: TrainingSet, config: TrainConfig, anchors: NDArray | None, pairs: int | None, minutes: float
) -> dict[str, float]:
    batches = data.with_batches(config, anchors, pairs)
    training = config.training.model_copy(update={"threads": THREADS})
    model = new_model(training, batches.data, 0)
    steps = train_for(training, model, batches, minutes)
    figures = training_figures(model, replace(batches.data, deformation=None))
    return {"steps": steps} | {name: figures[name] for name in figures if name.endswith("_mm")}


def _small(**training: Any) -> TrainConfig:
    """The `small` preset with some of its training's values replaced, nested ones by nested dictionaries."""
    told = preset_config("small").train.model_dump(mode="json")
    return TrainConfig.model_validate(told | {"training": _merged(told["training"], training)})


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    nested = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, Mapping)}
    return below | dict(above) | nested


def _anchors(data: TrainingSet, count: int) -> tuple[NDArray, int]:
    """Other anchors of all subjects (subjects, K, 3), and the mirrored pairs among them."""
    template = with_anchors(data.workspace.template(), count)
    heads = []
    for subject in data.scans.subjects:
        manifest = data.workspace.accepted("register", str(data.workspace.canonical_key(subject)))
        heads.append(mesh_from_ply(data.workspace.read(manifest, "mesh.ply")).vertices[template.anchors])
    return np.stack(heads), template.anchor_pairs


Variant = tuple[TrainConfig, "NDArray | None", "int | None"]

ABLATIONS: dict[str, Callable[[TrainingSet], Variant]] = {
    "ours": lambda data: (_small(), None, None),
    # one anchor has no neighbour, hence no reach: only the background network is left
    "one_global_network": lambda data: (
        _small(field={"identity": {"hidden": [256, 256, 256, 256], "coordinate_gain": 8.0}}),
        np.zeros((len(data.scans.subjects), 1, 3)),
        0,
    ),
    "no_symmetry": lambda data: (_small(identity_losses={"symm_dist": 0.0}), None, 0),
    "anchors_16": lambda data: (_small(), *_anchors(data, 16)),
    "anchors_65": lambda data: (_small(), *_anchors(data, 65)),
    "no_direct_distances": lambda data: (
        _small(
            identity_losses={"near_sdf": 0.0, "space_sdf_direct": 0.0, "space_sdf": 0.01},
            near_gradient_share=1.0,
            space_gradient_share=1.0,
        ),
        None,
        None,
    ),
    "wider_reach": lambda data: (_small(field={"identity": {"reach_neighbours": 8}}), None, None),
    "narrower_reach": lambda data: (_small(field={"identity": {"reach_neighbours": 4}}), None, None),
}
"""What each variant changes: a config, other anchors and their pairs."""
