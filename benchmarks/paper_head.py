"""A head model of the paper's sizes, trained for some minutes: what speeds at that size are measured with.

Its rates are those of the `small` preset and its batches a quarter of that one's, with which a field of these sizes
gets further in minutes than with the paper's own, made for days. Captures, samples, checkpoints and the finished model
are kept in the work folder.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.field_data import TrainingSet, make_workspace
from model import HeadModel
from model.config import PAPER_FIELD
from model.training import train
from pipeline.config import preset_config
from pipeline.training_scans import head_box_mm, mean_plane
from pipeline.workspace import Workspace
from storage.digest import digest_json

SUBJECTS, EXPRESSIONS, STEPS = 18, 4, (240, 80)
BATCHES = {"subjects_per_step": 4, "surface_points": 200, "near_points": 250, "space_points": 100}
BATCHES |= {"scans_per_step": 8, "pair_points": 250, "blends_per_step": 0}
HELD_OUT = ("003", "006", "009", "012", "015", "018")
QUICK_SUBJECTS, QUICK_EXPRESSIONS, QUICK_STEPS = 3, 2, (20, 20)
QUICK_HELD_OUT = ("003",)


def people(work: Path, quick: bool) -> tuple[Workspace, Path]:
    """Sampled scans of ICT heads, some subjects held out; and the folder with their truth."""
    if quick:
        return make_workspace(work, "fit", QUICK_SUBJECTS, QUICK_EXPRESSIONS, "demo", held_out=QUICK_HELD_OUT)
    return make_workspace(work, "fit", SUBJECTS, EXPRESSIONS, "small", held_out=HELD_OUT)


def paper_head(work: Path, quick: bool) -> HeadModel:
    """The model; trained, or its training gone on with, where it is not there yet."""
    data = TrainingSet.of(people(work, quick)[0])
    told = preset_config("small").train.model_copy(update=BATCHES)
    stages = zip(("stage1", "stage2"), QUICK_STEPS if quick else STEPS, strict=True)
    steps = {name: getattr(told.training, name).model_copy(update={"steps": count}) for name, count in stages}
    training = told.training.model_copy(update={"field": PAPER_FIELD, "checkpoint_every": 20} | steps)
    data = data.with_batches(told)
    digest = digest_json([data.digest, training.model_dump(mode="json")])[:12]
    folder = work / "models" / f"paper-head-{digest}"
    if (folder / "config.json").exists():
        return HeadModel.load(folder)
    checkpoint = work / "checkpoints" / f"paper-head-{digest}.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def save(name: str, tensors: bytes) -> None:
        checkpoint.with_suffix(".part").write_bytes(tensors)
        checkpoint.with_suffix(".part").rename(checkpoint)

    def tell(stage: str, done: int, of: int) -> None:
        if done % 20 == 0:
            print(f"  paper-size head, {stage}: {done} of {of} steps", flush=True)

    resume = checkpoint.read_bytes() if checkpoint.exists() else None
    trained = train(training, data.data, save, resume, progress=tell)
    scans = data.scans
    head = HeadModel.of(
        trained,
        training.field,
        scans.subjects,
        scans.scans,
        data.workspace.template(),
        head_box_mm(scans.subject_sources),
        mean_plane(scans.throat_planes),
    )
    part = folder.with_suffix(".part")
    head.save(part)
    part.rename(folder)
    return head
