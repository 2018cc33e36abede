"""Train: from the samples of all training subjects to a model folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.batches import ColorBatches, DeformationBatches, IdentityBatches, IdentityCounts, Prepare
from pipeline.checkpoints import Checkpoints
from pipeline.compared import read_registration
from pipeline.row_decoding import decode_rows
from pipeline.train_config import STEP_VERSION, Metrics, TrainConfig
from pipeline.training_curves import curve_files
from pipeline.training_scans import TrainingScans, head_box_mm, mean_plane, training_scans
from storage.digest import digest_json
from storage.errors import ConfigError, one_line
from storage.manifest import Manifest

if TYPE_CHECKING:
    from model.baselines import Baseline
    from model.head_model import HeadModel
    from model.processes import Processes
    from pipeline.workspace import Workspace


_POINTS_AGAINST_PARENT = 5000


def run_train(workspace: Workspace, key: str) -> Manifest:
    """Train the model ``key`` from nothing, or go on from its last checkpoint, and publish its folder.

    Raises:
        ConfigError: no training subject has accepted samples.
        StorageConflict: an input is damaged.
    """
    return Training(workspace, key, workspace.inputs("train", key)).run()


def run_train_together(workspace: Workspace, key: str, processes: Processes, device: str) -> Manifest | None:
    """``run_train`` as one of several processes; the first one saves, publishes and returns the manifest."""
    return Training(workspace, key, workspace.inputs("train", key), None, processes, device).run_together()


def retrain(workspace: Workspace, parent: str) -> Manifest:
    """Train a model of the workspace's present scans that goes on from an earlier one.

    Known subjects and scans keep their codes as a start, new ones start at the mean. The result has a name of its own,
    the parent's files are among its inputs, and no plan makes it stale or anew. What became of the old subjects stands
    in its figures: ``known_subjects``, ``known_codes_moved`` (root mean square over the codes' spread) and the parent's
    own error on the same samples, ``parent_face_median_mm``.

    Raises:
        ConfigError: there is no such model, or its architecture is another.
    """
    manifest = workspace.accepted("train", parent)
    inputs = workspace.inputs("train", "")
    inputs |= {f"parent/{name}": output.sha256 for name, output in manifest.outputs.items()}
    told = [inputs, workspace.config.digest_of_step("train"), STEP_VERSION]
    key = f"{workspace.config.preset}-{digest_json(told)[:8]}"
    done = workspace.manifest("train", key)
    if done is not None and workspace.damage(done) is None:
        return done
    return Training(workspace, key, inputs, manifest).run()


def is_for_validation(subject: str, share: float) -> bool:
    """Whether a training subject is set aside; its id alone decides, so that further subjects change nothing."""
    return int(digest_json(["validation", subject])[:8], 16) < share * 16**8


def identity_batches(
    config: TrainConfig, scans: TrainingScans, seed: int, prepare: Prepare | None = None
) -> IdentityBatches:
    """Batches for the identity field as a config asks for them."""
    counts = IdentityCounts(config.surface_points, config.near_points, config.space_points)
    lines = min(config.subjects_per_step, len(scans.subjects))
    return IdentityBatches(scans.subject_sources, counts, lines, seed=seed, prepare=prepare)


def deformation_batches(
    config: TrainConfig, scans: TrainingScans, seed: int, prepare: Prepare | None = None
) -> DeformationBatches:
    """Batches for the deformation field as a config asks for them."""
    posed = IdentityCounts(config.posed_surface_points, config.posed_near_points, 0)
    lines = min(config.scans_per_step, len(scans.scans))
    subjects = scans.subject_of_scan()
    sources, count = scans.scan_sources, config.pair_points
    return DeformationBatches(sources, subjects, count, lines, seed=seed, prepare=prepare, posed=posed)


def color_batches(
    config: TrainConfig, scans: TrainingScans, seed: int, prepare: Prepare | None = None
) -> ColorBatches | None:
    """Batches for the colour field, of the subjects that have coloured samples; None without any."""
    colored = [place for place, source in enumerate(scans.subject_sources) if source.rows("color")]
    if not colored:
        return None
    lines = min(config.subjects_per_step, len(colored))
    sources = [scans.subject_sources[place] for place in colored]
    return ColorBatches(sources, colored, config.color_points, lines, seed, prepare)


class Training:
    """One training under way: where it reads, what it is named, and who takes part.

    Args:
        workspace: with accepted samples and registrations.
        key: under which its checkpoints are kept: the model's name, or MODEL/METHOD of a baseline.
        inputs: digests of all that it reads.
        parent: a model to go on from.
        processes, device: who trains together, and where.
        baseline: what is trained in place of the head model, on the same batches.
    """

    def __init__(
        self,
        workspace: Workspace,
        key: str,
        inputs: dict[str, str],
        parent: Manifest | None = None,
        processes: Processes | None = None,
        device: str | None = None,
        baseline: Baseline | None = None,
    ) -> None:
        from model.processes import Processes  # torch: loaded by the steps that need it alone
        from model.training import best_device

        self.workspace, self.key, self.inputs, self.parent = workspace, key, inputs, parent
        self.processes, self.device = processes or Processes(), device or best_device()
        self.config: TrainConfig = workspace.config.of_step("train")  # type: ignore[assignment]
        self.baseline = baseline
        if baseline is not None:
            training = baseline.training(self.config.training)
            self.config = self.config.model_copy(update={"training": training})
        self.seed = workspace.seed("train", "")
        depends = [inputs, self.config.model_dump(mode="json"), self.seed]
        self.checkpoints = Checkpoints(workspace.store, key, digest_json(depends))

    def run(self) -> Manifest:
        """Train and publish."""
        manifest = self.run_together()
        assert manifest is not None
        return manifest

    def run_together(self) -> Manifest | None:
        """Train; publish if this is the first process."""
        made = self.files()
        if made is None:
            return None
        outputs, figures = made
        manifest = self.workspace.commit("train", self.key, inputs=self.inputs, outputs=outputs, figures=figures)
        self.checkpoints.clear()
        return manifest

    def files(self) -> tuple[dict[str, bytes], dict[str, Any]] | None:
        """Train; the model folder's files and the figures if this is the first process."""
        from model.batch_tensors import page_locked
        from model.head_model import HeadModel
        from model.training import train
        from model.training_data import TrainingData
        from model.training_figures import training_figures
        from pipeline.blends import RegisteredPeople, blend_batches

        scans, others = self._scans()
        parent = None if self.parent is None else self._model_of(self.parent)
        template = self.workspace.template()
        with ExitStack() as reading:
            config, seed = self.config, self.seed
            prepare = page_locked if self.device.startswith("cuda") else None
            identity = reading.enter_context(identity_batches(config, scans, seed, prepare))
            validating = None
            if others.subjects and self.baseline is None:
                validating = reading.enter_context(identity_batches(config, others, seed, prepare))
            painting = None
            if config.training.field.color is not None:
                painting = color_batches(config, scans, seed + 2, prepare)
            deformation = reading.enter_context(deformation_batches(config, scans, seed + 1, prepare))
            if self.baseline is not None:
                use_landmarks(self.workspace, self.baseline.landmarks, scans, identity, deformation)
            data = TrainingData(
                identity,
                deformation,
                len(scans.subjects),
                len(scans.scans),
                identity.anchors_mm.mean(0, dtype=np.float64) if parent is None else parent.mean_anchors_mm,
                template.anchor_pairs,
                validating,
                0 if validating is None else len(others.subjects),
                painting if painting is None else reading.enter_context(painting),
            )
            if self.baseline is None and config.blends_per_step and len(scans.subjects) > 1:
                people = RegisteredPeople.read(self.workspace, scans, config.blend_motions)
                shapes, motions = (
                    reading.enter_context(blends) for blends in blend_batches(config, people, seed + 3, prepare)
                )
                data = replace(data, shape_blends=shapes, motion_blends=motions)
            start = None if parent is None else parent.warm_start(scans.subjects, scans.scans)
            if self.baseline is not None:
                data = self.baseline.data(data)
                start = self.baseline.start(config.training, data, seed)
            newest = self.checkpoints.newest()
            self.processes.wait()  # until all have read it: the first one goes on to write others
            trained = train(
                self.config.training,
                data,
                self.checkpoints.save,
                newest,
                progress=lambda stage, done, of: self.workspace.tell(done, of, stage),
                record=self.checkpoints.record,
                seed=self.seed,
                device=self.device,
                start=start,
                processes=self.processes,
            )
            if not self.processes.first:
                return None
            told = training_figures(trained, data)
        head = HeadModel.of(
            trained,
            self.config.training.field,
            scans.subjects,
            scans.scans,
            template,
            head_box_mm(scans.subject_sources),
            mean_plane(scans.throat_planes),
        )
        if parent is not None:
            told |= against_parent(parent, head, scans)
        if self.baseline is not None:
            head = self.baseline.trimmed(head)
        figures = Metrics.model_validate(told).model_dump(exclude_none=True)
        outputs = head.to_files() | curve_files(trained.curve)
        return outputs | {"metrics.json": json.dumps(figures, indent=1).encode()}, figures

    def _scans(self) -> tuple[TrainingScans, TrainingScans]:
        """What is trained on, and what is set aside to validate with."""
        every = training_scans(self.workspace)
        aside = [one for one in every.subjects if is_for_validation(one, self.config.validation_share)]
        if len(aside) == len(every.subjects):
            aside = []
        return every.of([one for one in every.subjects if one not in aside]), every.of(aside)

    def _model_of(self, manifest: Manifest) -> HeadModel:
        from model.head_model import HeadModel

        names = ("model.safetensors", "codes.safetensors", "config.json", "template.npz")
        files = {name: self.workspace.read(manifest, name) for name in names}
        parent = HeadModel.from_files(files, where=f"models/{manifest.key}")
        if parent.config != self.config.training.field:
            where, why = f"models/{manifest.key}", "its sizes are not those of train.training.field"
            raise ConfigError(one_line("can't be gone on from", where, why, "train from nothing: 'nphm train'"))
        return parent


def use_landmarks(
    workspace: Workspace,
    landmarks: Sequence[int],
    scans: TrainingScans,
    identity: IdentityBatches,
    deformation: DeformationBatches,
) -> None:
    """Let some of the registrations' 68 landmarks be the anchors in batches, and tell them of posed scans too."""
    vertices = workspace.template().landmarks[list(landmarks)]
    canonical = [str(workspace.canonical_key(subject)) for subject in scans.subjects]
    places = {key: read_registration(workspace, key)[0].vertices[vertices] for key in {*canonical, *scans.scans}}
    identity.anchors_mm = np.stack([places[key] for key in canonical]).astype(np.float32)
    deformation.keypoints_mm = np.stack([places[key] for key in scans.scans]).astype(np.float32)


def against_parent(parent: HeadModel, head: HeadModel, scans: TrainingScans) -> dict[str, float]:
    """What going on from a parent did to the subjects that it knew.

    Returns:
        ``known_subjects``; ``known_codes_moved``: root mean square of their codes' change over the codes' spread;
        ``known_face_median_mm`` and ``parent_face_median_mm``: distance of their observed face samples from the new
        fields and from the parent's.
    """
    known = [place for place, subject in enumerate(scans.subjects) if subject in parent.subjects]
    if not known:
        return {"known_subjects": 0.0}
    moved, new, old = [], [], []
    spread = max(float(np.sqrt(np.mean(parent.identity_std**2))), 1e-12)
    for place in known:
        subject, source = scans.subjects[place], scans.subject_sources[place]
        change = head.identity_code(subject) - parent.identity_code(subject)
        moved.append(float(np.mean((change / spread) ** 2)))
        surface = decode_rows("surface", source.read("surface", 0, min(source.rows("surface"), _POINTS_AGAINST_PARENT)))
        points = surface["surface"][surface["face"] & surface["observed"]]
        new.append(np.abs(head.sdf(points, subject)))
        old.append(np.abs(parent.sdf(points, subject)))
    told = {"known_subjects": float(len(known)), "known_codes_moved": float(np.sqrt(np.mean(moved)))}
    for name, parts in (("known", new), ("parent", old)):
        if sum(map(len, parts)):
            told[f"{name}_face_median_mm"] = float(np.median(np.concatenate(parts)))
    return {name: round(value, 4) for name, value in told.items()}
