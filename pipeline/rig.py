"""The embedded simulated rig: capture sessions of the project's own heads, with the truth kept apart."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from scipy.spatial.transform import Rotation

from pipeline.rig_scene import Hair, Layers, Sitter, draw_sitter, sitter_layers, surroundings
from pipeline.rig_sensor import (
    PROFILES,
    Lens,
    Profile,
    Stage,
    count_views,
    photograph,
    place_cameras,
    set_stage,
    tell_wrongly,
)
from registration.mesh import Mesh, face_normals, mesh_to_ply, transform_points, vertex_normals
from registration.procedural_expressions import EXPRESSIONS
from registration.procedural_head import head_template
from registration.views import Layout
from storage.errors import ConfigError, one_line
from storage.frozen import Frozen
from storage.ply import write_ply

DEPTH_STEP_MM = 0.1
_UNIT_PER_MM = {"mm": 1.0, "cm": 0.1, "m": 0.001}
_CLUTTER_GREY = 92.0


class RigConfig(Frozen):
    """How the simulated rig stands and errs."""

    profile: Literal["studio", "handheld", "phone", "perfect"] = Field(default="studio", description="how the rig errs")
    views: int | None = Field(default=12, ge=1, le=200, description="cameras; None takes the profile's own number")
    width: int = Field(default=240, ge=32, le=4000, description="picture width in pixels")
    height: int = Field(default=320, ge=32, le=4000, description="picture height in pixels")
    field_mm: float = Field(default=400.0, gt=50, description="height of the field of view at 600 mm, in mm")
    layout: Layout = Field(default="depth_frames", description="how the scans are handed over")
    unit: Literal["mm", "cm", "m"] = Field(default="mm", description="of clouds and meshes")
    hair: Hair = Field(default="any", description="style of everybody's hair")
    turn_deg: float = Field(default=7.0, ge=0, description="spread of the head's turn between scans, in degrees")
    world: Literal["upright", "any"] = Field(
        default="upright", description="any: each scan's world is turned at random"
    )
    first_subject: int = Field(default=1, ge=1, description="number of the first subject")


def simulate(
    out: Path,
    subjects: int = 6,
    expressions: int | Sequence[str] = 5,
    seed: int = 0,
    config: RigConfig | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Simulate a capture session: OUT/session as a capture team hands it over, OUT/truth for tests and benchmarks.

    The same seed, subject and expression is the same head in the same place whatever the rig, the layout or the other
    expressions, and the same arguments give the same bytes. A second call into the same folder keeps the scans that are
    finished and adds to the session, so a call that was stopped goes on where it was.

    Args:
        out: folder, made where it is missing.
        subjects: how many people.
        expressions: how many of ``EXPRESSIONS`` in their order, or their names.
        seed: of heads, motions and sensors.
        config: of the rig; by default a studio of 12 small cameras, enough for skin to 0.1 mm.
        progress: called with SUBJECT/EXPRESSION after each scan.

    Returns:
        The session's folder.

    Raises:
        ConfigError: no such expression, more than there are, nothing to simulate, or the folder holds captures of
            another rig or seed.
    """
    config = config or RigConfig()
    names = _expression_names(expressions)
    if subjects < 1:
        raise ConfigError(one_line(f"can't simulate {subjects} subjects", "simulate", "", "ask for at least one"))
    session, truth = out / "session", out / "truth"
    _claim(truth / "rig.json", seed, config)
    notes = []
    for number in range(config.first_subject, config.first_subject + subjects):
        sitter = draw_sitter(np.random.default_rng([seed, number]), config.hair)
        subject = f"{number:03d}"
        for name in names:
            stream = [seed, number, list(EXPRESSIONS).index(name)]
            truth_file = truth / subject / f"{name}.npz"
            if not truth_file.is_file():  # it is written last
                _simulate_scan(session / subject / name, truth_file, sitter, name, stream, config)
            if progress is not None:
                progress(f"{subject}/{name}")
        notes.append(_subject_note(subject, sitter, names))
    _write_note(session / "session.json", notes, seed, config)
    return session


def _claim(path: Path, seed: int, config: RigConfig) -> None:
    """Note which rig and seed the folder belongs to, or hold them against what is noted."""
    mine = {"seed": seed, **config.model_dump(exclude={"first_subject"})}
    if path.is_file():
        noted = json.loads(path.read_text())
        other = [name for name in mine if noted.get(name) != mine[name]]
        if other:
            why = ", ".join(f"{name} {noted.get(name)}, not {mine[name]}" for name in other)
            raise ConfigError(
                one_line("holds captures of another rig", str(path.parents[1]), why, "name another folder")
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, (json.dumps(mine, indent=1) + "\n").encode())


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def _expression_names(expressions: int | Sequence[str]) -> list[str]:
    known = list(EXPRESSIONS)
    if isinstance(expressions, int) and expressions > len(known):
        raise ConfigError(
            one_line(f"can't simulate {expressions} expressions", "simulate", "", f"ask for at most {len(known)}")
        )
    names = known[: max(expressions, 0)] if isinstance(expressions, int) else list(expressions)
    unknown = [name for name in names if name not in EXPRESSIONS]
    if unknown or not names:
        what = f"has no expression '{unknown[0]}'" if unknown else "is asked for no expression"
        raise ConfigError(one_line(what, "simulate", "", f"choose among {', '.join(known)}"))
    return names


def _subject_note(subject: str, sitter: Sitter, names: list[str]) -> dict[str, object]:
    return {
        "id": subject,
        "hair": sitter.hair_style,
        "expressions": names,
        "beard": False,
        "glasses": False,
        "licence": "CC0-1.0 (simulated)",
        "consent": {"given": True, "scope": ["research", "release"], "date": "2026-10-01"},
    }


def _write_note(path: Path, notes: list[dict[str, object]], seed: int, config: RigConfig) -> None:
    """Write session.json last, subjects that are already there kept and widened."""
    known = {note["id"]: note for note in json.loads(path.read_text())["subjects"]} if path.is_file() else {}
    for note in notes:
        before = list(known.get(note["id"], {}).get("expressions", []))
        wanted = list(note["expressions"])  # type: ignore[call-overload]
        known[note["id"]] = {**note, "expressions": before + [name for name in wanted if name not in before]}
    every = {name for note in known.values() for name in note["expressions"]}
    canonical = next(name for name in EXPRESSIONS if name in every)
    document = {
        "schema_version": 1,
        "session_id": f"simulated-{config.profile}-{config.layout}-{seed}",
        "captured_at": "2026-11-01T09:00:00+00:00",
        "rig": config.profile,
        "layout": config.layout,
        "unit": config.unit,
        "canonical_expression": canonical,
        "licence": "CC0-1.0 (simulated)",
        "subjects": [known[key] for key in sorted(known)],
    }
    _write_whole(path, (json.dumps(document, indent=1) + "\n").encode())


def _simulate_scan(
    folder: Path, truth_file: Path, sitter: Sitter, expression: str, stream: list[int], config: RigConfig
) -> None:
    profile = PROFILES[config.profile]
    rng = np.random.default_rng([*stream, 0])
    layers = sitter_layers(sitter, expression, float(rng.uniform(0.78, 1.05)))
    T_room_from_head = np.eye(4)
    T_room_from_head[:3, :3] = Rotation.from_euler("xyz", rng.normal(0, config.turn_deg, 3), degrees=True).as_matrix()
    T_room_from_head[:3, 3] = rng.normal(0, 15, 3)
    around = surroundings(float(layers.skin[:, 1].min()), rng, profile.clutter)
    T_world_from_room = np.eye(4)
    turned = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    if config.world == "any":
        T_world_from_room[:3, :3] = turned
    T_world_from_head = T_world_from_room @ T_room_from_head

    surface = transform_points(T_world_from_head, layers.vertices)
    room = transform_points(T_world_from_room, around.vertices)
    stage = set_stage(
        np.concatenate([surface, room]),
        np.concatenate([layers.faces, around.faces + len(surface)]),
        np.concatenate([layers.albedo, np.full((len(room), 3), _CLUTTER_GREY)]),
    )
    rng = np.random.default_rng([*stream, 1])  # the rig and its sensor
    target = transform_points(T_room_from_head, np.array([[0.0, 12.0, 5.0]]))[0]
    true = [T_world_from_room @ pose for pose in place_cameras(target, config.views or profile.views, rng)]
    told = [tell_wrongly(pose, profile, rng) for pose in true]

    skin = surface[: len(layers.skin)]
    corner = surface[layers.faces].mean(1)
    surface_views = count_views(corner, face_normals(surface, layers.faces), true, stage, profile.grazing_deg)
    folder.mkdir(parents=True, exist_ok=True)
    if config.layout == "fused_mesh":
        _write_fused(folder, surface, layers, surface_views, _UNIT_PER_MM[config.unit])
    else:
        _write_views(folder, stage, true, told, profile, config, rng)
    template = head_template()
    normals = vertex_normals(skin, template.mesh.faces)
    arrays: dict[str, NDArray] = {
        "vertices": skin.astype(np.float32),
        "vertex_views": count_views(skin, normals, true, stage, profile.grazing_deg),
        "landmarks": skin[template.landmarks].astype(np.float32),
        "surface_vertices": surface.astype(np.float32),
        "surface_faces": layers.faces,
        "surface_part": layers.part,
        "surface_views": surface_views,
        "cameras": np.stack(true),
        "head_to_world": T_world_from_head,
        "face_mask": template.face_mask,
    }
    truth_file.parent.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    _write_whole(truth_file, packed.getvalue())


def _write_fused(folder: Path, surface: NDArray, layers: Layers, views: NDArray[np.uint8], per_mm: float) -> None:
    colors = np.clip(np.round(layers.albedo), 0, 255).astype(np.uint8)
    fused = Mesh.of(surface * per_mm, layers.faces, colors).select_faces(views > 0)
    (folder / "scan.ply").write_bytes(mesh_to_ply(fused))


def _write_views(
    folder: Path,
    stage: Stage,
    true: list[NDArray],
    told: list[NDArray],
    profile: Profile,
    config: RigConfig,
    rng: np.random.Generator,
) -> None:
    lens = Lens(config.width, config.height, config.field_mm)
    parts = ("depth", "color") if config.layout == "depth_frames" else ("views",)
    for part in parts:
        (folder / part).mkdir(exist_ok=True)
    frames = []
    for i, (true_pose, told_pose) in enumerate(zip(true, told, strict=True)):
        depth, color = photograph(stage, true_pose, lens, profile, rng)
        if config.layout == "view_clouds":
            cloud = _cloud(depth, color, told_pose, lens, _UNIT_PER_MM[config.unit])
            (folder / f"views/{i:03d}.ply").write_bytes(cloud)
            continue
        steps = np.clip(np.round(depth / DEPTH_STEP_MM), 0, 65535).astype(np.uint16)
        Image.fromarray(steps).save(folder / f"depth/{i:03d}.png")
        Image.fromarray(color).save(folder / f"color/{i:03d}.jpg", quality=85)
        in_metres = told_pose.copy()
        in_metres[:3, 3] /= 1000.0
        frames.append(
            {
                "file_path": f"color/{i:03d}.jpg",
                "depth_file_path": f"depth/{i:03d}.png",
                "transform_matrix": in_metres.tolist(),
            }
        )
    if config.layout == "depth_frames":
        document = {
            "camera_model": "PINHOLE",
            "w": lens.width,
            "h": lens.height,
            "fl_x": lens.focal_px,
            "fl_y": lens.focal_px,
            "cx": lens.width / 2,
            "cy": lens.height / 2,
            "depth_unit_scale_factor": DEPTH_STEP_MM / 1000.0,
            "frames": frames,
        }
        (folder / "transforms.json").write_text(json.dumps(document, indent=1) + "\n")


def _cloud(depth: NDArray, color: NDArray[np.uint8], pose: NDArray, lens: Lens, per_mm: float) -> bytes:
    v, u = np.nonzero(depth > 0)
    z = depth[v, u]
    x = (u + 0.5 - lens.width / 2) / lens.focal_px * z
    y = -(v + 0.5 - lens.height / 2) / lens.focal_px * z
    points = (transform_points(pose, np.column_stack([x, y, -z])) * per_mm).astype(np.float32)
    columns: dict[str, NDArray] = {axis: points[:, k] for k, axis in enumerate("xyz")}
    columns |= {name: color[v, u, k] for k, name in enumerate(("red", "green", "blue"))}
    return write_ply(columns)
