#!/usr/bin/env python3
"""The neural field's speed beside a plain implementation of the paper's formulas, and what its training reaches.

    python benchmarks/field.py [--quick] [--json FILE] [--work DIR] [--rows speed,quality,ablations] [--train-minutes M]

Speed: the same function (weights, blending, Softplus(100), float32, 2 threads, the `paper` preset's sizes and reach) at
200,000 points in the sampler's own mix, by our evaluation and by `plain_field.PlainIdentity`, interleaved in one
process, the least time of each. `preset_forward_speed` lets ours have the activation and reach of the `small` preset,
the plain one staying as it is; `preset_same_speed` gives the plain one the same. Quality and ablations: see
field_quality.py.
What is finished is kept in DIR, and a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.field_quality import TrainingSet as Set
from benchmarks.field_quality import ablation_rows, data_for, quality_rows, registered_pairs, train_for
from benchmarks.plain_field import PlainDeformation, PlainIdentity, PlainPrepared
from benchmarks.timing import interleaved, shown
from model.batch_tensors import BatchTensors
from model.checkpoint import decode, encode
from model.config import TrainingConfig
from model.identity_field import IdentityField
from model.losses import identity_losses, total
from model.objective import Objective
from model.optimisation import StageOptimiser
from model.processes import ALONE
from model.threads import fixed_threads
from model.trained_model import TrainedModel, new_model
from model.units import MM_PER_UNIT, to_units
from pipeline.config import preset_config

POINTS = 200_000
PLAIN_CHUNK = 512
NEAR_MM = 10.0
BIG = 1_000_000
TIME_SHARES = (1 / 3, 1.0, 2.0)
"""How long our stage 2 may take, over the plain one."""


def mixed_points(data: Set, count: int) -> tuple[Tensor, Tensor]:
    """Points in the sampler's own mix, model units, and the subject of each."""
    parts: list[Tensor] = []
    index: list[Tensor] = []
    while sum(map(len, parts)) < count:
        batch = next(data.identity)
        points = torch.as_tensor(np.concatenate([batch["surface"], batch["near"], batch["space"]], 1))
        parts.append(to_units(points).reshape(-1, 3))
        index.append(torch.as_tensor(batch["subject"]).repeat_interleave(points.shape[1]))
    return torch.cat(parts)[:count], torch.cat(index)[:count]


def chunks(points: Tensor, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts for the plain evaluation, of the size at which it was the fastest of 64 to 2,000."""
    return zip(points.split(PLAIN_CHUNK), index.split(PLAIN_CHUNK), strict=True)


def forward_rows(model: TrainedModel, data: Set, count: int, repeats: int) -> dict[str, float]:
    """Value, and value with gradient, ours over the plain one."""
    field, z_id = model.identity, model.identity_codes.codes.detach()
    plain = PlainIdentity(field)
    points, index = mixed_points(data, count)
    # the plain one's time goes with its points, so a twentieth of them will do, spread over the whole mix
    few = torch.arange(0, count, 20)
    few_points, few_index = points[few], index[few]
    cheap = with_small_preset(model)
    cheap_plain = PlainIdentity(cheap)
    out: dict[str, Tensor] = {}

    @torch.no_grad()
    def ours() -> None:
        out["ours"] = field.sdf(field.prepare(z_id), points, index)

    def plain_forward(of: PlainIdentity) -> Tensor:
        with torch.no_grad():
            prepared = of.prepare(z_id)
            return torch.cat([of.sdf(prepared, *part) for part in chunks(few_points, few_index)])

    def plain_gradient() -> None:
        prepared = PlainPrepared(z_id, plain.prepare(z_id).anchors.detach())
        for part in chunks(few_points, few_index):
            plain.requires_grad_(False).sdf_and_gradient(prepared, *part)

    @torch.no_grad()
    def ours_cheap() -> None:
        cheap.sdf(cheap.prepare(z_id), points, index)

    matrices = torch.randn(2, 1536, 1536)
    product = torch.empty(1536, 1536)
    calls: dict[str, Callable[[], Any]] = {
        "ours": ours,
        "plain": lambda: out.update(plain=plain_forward(plain)),
        "gradient": lambda: field.sdf_and_gradient(field.prepare(z_id), points, index),
        "plain gradient": plain_gradient,
        "cheap": ours_cheap,
        "cheap plain": lambda: plain_forward(cheap_plain),
        "product": lambda: torch.mm(matrices[0], matrices[1], out=product),
    }
    least = interleaved(calls, repeats)
    share = len(few) / count
    near = out["plain"].abs() < to_units(NEAR_MM)
    rate = 2 * 1536**3 / least["product"]
    with torch.no_grad():
        rows = len(cheap._rows(cheap.prepare(z_id), points, index).x)
    return {
        "forward_points_per_s": count / least["ours"],
        "forward_speed": least["plain"] / least["ours"] / share,
        "preset_forward_speed": least["plain"] / least["cheap"] / share,
        "preset_same_speed": least["cheap plain"] / least["cheap"] / share,
        "gradient_speed": least["plain gradient"] / least["gradient"] / share,
        "forward_error_mm": float((out["ours"][few] - out["plain"])[near].abs().max()) * MM_PER_UNIT,
        "matmul_gflops": rate / 1e9,
        "matmul_share": rows * operations_a_row(cheap) / least["cheap"] / rate,
        "networks_a_point": rows / count,
    }


def with_small_preset(model: TrainedModel) -> IdentityField:
    """The same sizes and weights with the `small` preset's activation and reach."""
    small = preset_config("small").train.training.field.identity
    names = ("activation", "reach_neighbours", "reach_factor", "sharpness", "background_weight", "background_limit")
    config = model.identity.config.model_copy(update={name: getattr(small, name) for name in names})
    mean, pairs = model.identity.anchors_head.mean, model.identity.layout.pairs
    field = IdentityField(config, mean, pairs, torch.Generator().manual_seed(0))
    weights = {
        name: t for name, t in model.identity.state_dict().items() if "reach" not in name and "scale" not in name
    }
    field.load_state_dict(weights, strict=False)
    return field


def operations_a_row(field: IdentityField) -> float:
    """Floating-point operations of one network at one point that can't be saved: codes are folded beforehand."""
    hidden = sum(weight[0].numel() for weight in field.hidden_weights)
    return 2.0 * (hidden + sum(3 * weight.shape[2] for weight in field.input_weights))


def stage1_rows(config: TrainingConfig, model: TrainedModel, data: Set, points: int, repeats: int) -> dict[str, float]:
    """A full step of stage 1: losses, second derivatives, optimiser; the same losses on the same points."""
    batch = next(data.identity)
    kinds = {"surface": 400, "near": 400, "space": 100}
    cut = {}
    for name, values in batch.items():
        kind = next((k for k in kinds if name.startswith(k)), "surface")
        alone = name in ("subject", "anchors")
        cut[name] = values[:4] if alone else values[:4, : round(kinds[kind] * points / 3600)]
    samples = BatchTensors("cpu", config.guessed_weight).identity(cut)
    subject = torch.as_tensor(cut["subject"])

    def step_of(field: Any) -> Callable[[], None]:
        optimiser = StageOptimiser(config.stage1, field.parameters(), model.identity_codes.codes)

        def step() -> None:
            z_id = model.identity_codes(subject)
            losses = identity_losses(field, field.prepare(z_id), z_id, samples, config)
            optimiser.clear()
            total(losses, config.identity_losses).backward()
            optimiser.descend(0, ALONE)

        return step

    field = new_model(config, data.data, 0).identity
    field.load_state_dict(model.identity.state_dict())
    least = interleaved({"ours": step_of(field), "plain": step_of(PlainIdentity(field))}, repeats)
    count = sum(cut[name].shape[1] for name in kinds) * len(subject)
    return {"stage1_points_per_s": count / least["ours"], "stage1_speed": least["plain"] / least["ours"]}


def stage2_rows(config: TrainingConfig, model: TrainedModel, data: Set, repeats: int) -> dict[str, float]:
    """A full step of stage 2 with the same network."""
    batch = next(data.deformation)
    calls = {}
    for name, field in (("ours", model.deformation), ("plain", PlainDeformation(model.deformation))):
        view = replace(model, deformation=field)
        tensors = BatchTensors("cpu", config.guessed_weight)
        objective = Objective(config, view, tensors, torch.Generator().manual_seed(0), ALONE)
        optimiser = StageOptimiser(config.stage2, field.parameters(), model.expression_codes.codes)

        def step(objective: Objective = objective, optimiser: StageOptimiser = optimiser) -> None:
            _, loss = objective.deformation(batch)
            optimiser.clear()
            loss.backward()
            optimiser.descend(0, ALONE)

        calls[name] = step
    model.identity.requires_grad_(False)
    model.identity_codes.requires_grad_(False)
    least = interleaved(calls, repeats)
    return {"stage2_speed": least["plain"] / least["ours"]}


def stage2_time(config: TrainingConfig, data: Set, model: TrainedModel, minutes: float) -> dict[str, float]:
    """Time of our own preset's stage 2 until it has the plain paper-size one's error, over that one's time.

    The error is that of the registrations' vertices, which were never samples. Both start from nothing over the same
    identities; looking at the error costs no time. Ours gets a schedule for each of ``TIME_SHARES`` in turn until one
    is enough; where ``stage2_vertex_mm`` stays above the plain one's error none was: the share is a lower bound.
    """
    pairs = registered_pairs(data)
    plain = new_model(config, data.data, 1)
    plain.identity.load_state_dict(model.identity.state_dict())
    plain.identity_codes.load_state_dict(model.identity_codes.state_dict())
    plain.deformation = PlainDeformation(plain.deformation)  # type: ignore[assignment]
    spent, error = _train_motion(config, plain, data, pairs, minutes * 60, None)
    small = preset_config("small").train.training
    ours_config = config.model_copy(
        update={
            "stage2": small.stage2,
            "field": config.field.model_copy(update={"deformation": small.field.deformation}),
        }
    )
    over, ours_error = 0.0, math.inf
    for share in TIME_SHARES:
        ours = new_model(ours_config, data.data, 1)
        ours.identity, ours.identity_codes = plain.identity, plain.identity_codes
        reached, ours_error = _train_motion(ours_config, ours, data, pairs, minutes * 60 * share, error)
        over = reached / spent
        if ours_error <= error:
            break
    return {"stage2_time_over": over, "stage2_plain_vertex_mm": error, "stage2_vertex_mm": ours_error}


def _train_motion(
    config: TrainingConfig, model: TrainedModel, data: Set, pairs: Any, seconds: float, goal_mm: float | None
) -> tuple[float, float]:
    """Train for so many seconds or until the goal; returns seconds spent and the last error in mm."""
    tensors = BatchTensors("cpu", config.guessed_weight)
    objective = Objective(config, model, tensors, torch.Generator().manual_seed(0), ALONE)
    model.identity.requires_grad_(False)
    model.identity_codes.requires_grad_(False)

    def run(optimiser: StageOptimiser, step: int) -> float:
        start = time.perf_counter()
        _, loss = objective.deformation(next(data.deformation))
        optimiser.clear()
        loss.backward()
        optimiser.descend(step, ALONE)
        return time.perf_counter() - start

    # a few steps tell how many the schedule can have; they are undone
    before = {name: t.clone() for name, t in model.deformation.state_dict().items()}
    codes = model.expression_codes.codes.detach().clone()
    trial = StageOptimiser(config.stage2, model.deformation.parameters(), model.expression_codes.codes)
    each = min(run(trial, step) for step in range(5))
    model.deformation.load_state_dict(before)
    model.expression_codes.codes.data.copy_(codes)
    stage = config.stage2.model_copy(update={"steps": max(10, int(seconds / each))})
    optimiser = StageOptimiser(stage, model.deformation.parameters(), model.expression_codes.codes)
    spent, error, step = 0.0, math.inf, 0
    look = max(1, stage.steps // 40)
    while spent < seconds and step < stage.steps:
        spent += run(optimiser, step)
        step += 1
        if step % look == 0 or step == stage.steps:
            error = pairs.error_mm(model)
            if goal_mm is not None and error <= goal_mm:
                break
    return spent, pairs.error_mm(model) if goal_mm is None else error


def forward_memory(weights: Path, config: TrainingConfig, data: Set) -> None:
    """In a process of its own: a forward pass over a million points; prints the peak resident memory in MiB."""
    model = new_model(config, data.data, 0)
    model.restore(decode(weights.read_bytes())[0])
    points, index = mixed_points(data, 20_000)
    times = BIG // len(points)
    with torch.no_grad():
        prepared = model.identity.prepare(model.identity_codes.codes.detach())
        model.identity.sdf(prepared, points.repeat(times, 1), index.repeat(times))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def speed_rows(args: argparse.Namespace) -> dict[str, float]:
    """All rows on speed and memory."""
    data = data_for(
        args.work, "speed", subjects=2 if args.quick else 6, expressions=2 if args.quick else 4, url=args.workspace
    )
    paper = preset_config("paper").train
    if args.quick:
        few = {"subjects_per_step": 2, "surface_points": 100, "near_points": 100, "space_points": 25}
        paper = paper.model_copy(update=few | {"scans_per_step": 4, "pair_points": 200})
    data = data.with_batches(paper)
    minutes = args.train_minutes if args.train_minutes is not None else (0.05 if args.quick else 10.0)
    config = paper.training.model_copy(update={"threads": args.threads})
    weights = args.work / "rows" / f"paper-weights-{data.digest}-{minutes:g}.safetensors"
    model = new_model(config, data.data, 0)
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        train_for(config, model, data, minutes)
        weights.write_bytes(encode(model.tensors()))
    model.restore(decode(weights.read_bytes())[0])
    if args.memory:
        forward_memory(weights, config, data)
        sys.exit(0)
    repeats = 2 if args.quick else 7
    with fixed_threads(args.threads):
        figures = shown(forward_rows(model, data, 8000 if args.quick else POINTS, repeats))
        figures |= shown(stage1_rows(config, model, data, 400 if args.quick else 3600, repeats))
        figures |= shown(stage2_rows(config, model, data, repeats))
        figures |= shown(stage2_time(config, data, model, 0.05 if args.quick else 5.0))
    call = [sys.executable, __file__, "--memory", "--work", str(args.work), "--train-minutes", str(minutes)]
    call += ["--quick"] * args.quick + (["--workspace", args.workspace] if args.workspace else [])
    told = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    return figures | shown({"peak_mib": float(told.split()[-1])})


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small data and few repeats: shows that it works")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--rows", default="speed,quality", help="of speed, quality, ablations")
    parser.add_argument("--ablations", action="store_true", help="the table of ablations alone")
    parser.add_argument("--train-minutes", type=float, help="of the paper-size weights, or of each ablation")
    parser.add_argument("--workspace", help="take the speed rows' samples from this workspace")
    parser.add_argument("--threads", type=int, default=2, help="of the speed rows; one where others use the cores")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows = ["ablations"] if args.ablations else args.rows.split(",")
    figures: dict[str, float] = {}
    if "speed" in rows:
        figures |= speed_rows(args)
    if "quality" in rows:
        figures |= shown(quality_rows(args.work, args.quick))
    if "ablations" in rows:
        figures |= shown(ablation_rows(args.work, args.quick, args.train_minutes))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
