"""A head model of the paper's sizes, trained for some minutes: what speeds at that size are measured with.

Its rates and batches are those of the `small` preset, with which a field of these sizes gets further in minutes than
with the paper's own, made for days. Captures, samples, checkpoints and the finished model are kept in the work folder.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.field_quality import data_for
from model import HeadModel
from model.config import PAPER_FIELD
from model.training import train
from pipeline.config import preset_config
from pipeline.train import head_box_mm, mean_plane
from storage.digest import digest_json

SUBJECTS, EXPRESSIONS = 6, 4
STEPS = 1500, 600
QUICK_SUBJECTS, QUICK_EXPRESSIONS = 2, 2
QUICK_STEPS = 20, 20


def paper_head(work: Path, quick: bool) -> HeadModel:
    """The model; trained, or its training gone on with, where it is not there yet."""
    subjects, expressions = (QUICK_SUBJECTS, QUICK_EXPRESSIONS) if quick else (SUBJECTS, EXPRESSIONS)
    data = data_for(work, "speed", subjects, expressions)
    told = preset_config("small").train
    stages = zip(("stage1", "stage2"), QUICK_STEPS if quick else STEPS, strict=True)
    steps = {name: getattr(told.training, name).model_copy(update={"steps": count}) for name, count in stages}
    training = told.training.model_copy(update={"field": PAPER_FIELD, "checkpoint_every": 50} | steps)
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
        if done % 50 == 0:
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
