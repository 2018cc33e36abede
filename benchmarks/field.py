#!/usr/bin/env python3
"""The neural field's speed beside a plain implementation of the paper's formulas, and what its training reaches.

    python benchmarks/field.py [--quick] [--json FILE] [--work DIR] [--rows speed,quality,ablations] [--train-minutes M]

Rows of speed: forward, stage1, stage2, time, memory; each can be asked for alone.

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
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.field_ablations import ablation_rows
from benchmarks.field_data import TrainingSet as Set
from benchmarks.field_data import kept, make_workspace, registered_pairs
from benchmarks.field_quality import quality_rows
from benchmarks.field_training import train_for
from benchmarks.plain_field import PlainDeformation, PlainIdentity, PlainPrepared
from benchmarks.timing import interleaved, shown
from model.batch_tensors import BatchTensors
from model.checkpoint import decode, encode, load_module, module_tensors
from model.config import IdentityConfig, TrainingConfig
from model.identity_field import IdentityField
from model.losses import identity_losses, total
from model.objective import Objective
from model.optimisation import StageOptimiser
from model.processes import ALONE
from model.threads import fixed_threads
from model.trained_model import TrainedModel, new_model
from model.units import MM_PER_UNIT, to_units
from pipeline.config import preset_config
from pipeline.opening import open_workspace
from pipeline.train_config import TrainConfig
from storage.digest import digest_json

POINTS = 200_000
PLAIN_CHUNK = 512
WITHOUT_BLENDS = {"blends_per_step": 0}
"""What the paper has not, none of both sides has where they are held against each other."""
NEAR_MM = 10.0
BIG = 1_000_000
TIME_SHARES = (1 / 6, 1 / 3, 1.0)
"""How long our stage 2 may take, over the plain one."""
PLAIN_RATE = 1e-3
"""The plain stage 2's learning rate at the start of its schedule."""
SPEED_ROWS = ("forward", "stage1", "stage2", "time", "memory")


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
    """Time of our `small` preset's stage 2 until it has the plain paper-size one's error, over that one's time.

    The error is that of the registrations' vertices, which were never samples. Both start from nothing over the same
    identities, with the same batches, and average their weights; looking at the error costs no time. The plain one too
    has the `small` preset's schedule, at ``PLAIN_RATE``, with which it gets further in so few steps than with the
    paper's. Ours gets a schedule for each of ``TIME_SHARES`` in turn until one is enough; where ``stage2_vertex_mm``
    stays above the plain one's error none was, and the share is a lower bound.
    """
    pairs = registered_pairs(data)
    small = preset_config("small").train.training
    theirs = small.stage2.model_copy(update={"learning_rate": PLAIN_RATE})
    plain = new_model(config, data.data, 1)
    plain.identity.load_state_dict(model.identity.state_dict())
    plain.identity_codes.load_state_dict(model.identity_codes.state_dict())
    plain.deformation = PlainDeformation(plain.deformation)  # type: ignore[assignment]
    spent = train_for(config.model_copy(update={"stage2": theirs}), plain, data, minutes, "stage2")
    error = pairs.error_mm(plain)
    field = config.field.model_copy(update={"deformation": small.field.deformation})
    ours_config = config.model_copy(update={"stage2": small.stage2, "field": field})
    over, reached = 0.0, math.inf
    for share in TIME_SHARES:
        ours = new_model(ours_config, data.data, 1)
        ours.identity, ours.identity_codes = plain.identity, plain.identity_codes
        goal = partial(lambda one: pairs.error_mm(one) <= error, ours)
        over = train_for(ours_config, ours, data, minutes * share, "stage2", goal).minutes / spent.minutes
        reached = pairs.error_mm(ours)
        if reached <= error:
            break
    told = {"stage2_plain_vertex_mm": error, "stage2_plain_steps": float(spent.steps), "stage2_vertex_mm": reached}
    return {"stage2_time_over": over} | told


def forward_memory(saved: Path) -> None:
    """In a process of its own: a forward pass over many points; prints the peak resident memory in MiB."""
    tensors, told = decode(saved.read_bytes())
    field = IdentityField(
        IdentityConfig.model_validate(told["config"]),
        tensors["identity.anchors_head.mean"],
        told["pairs"],
        torch.Generator().manual_seed(0),
    )
    load_module(field, "identity", {name: t for name, t in tensors.items() if name.startswith("identity.")})
    points, index = tensors["points"], tensors["index"]
    times = told["points"] // len(points)
    with torch.no_grad():
        field.sdf(field.prepare(tensors["codes"]), points.repeat(times, 1), index.repeat(times))
    print(peak_mib())


def peak_mib() -> float:
    """Peak resident memory of this process alone; ``ru_maxrss`` remembers that of the one it was started from."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def memory_row(args: argparse.Namespace, model: TrainedModel, data: Set) -> dict[str, float]:
    """Peak memory of a forward pass over ``BIG`` points in a process that holds nothing else."""
    points, index = mixed_points(data, 20_000)
    tensors = module_tensors(model.identity, "identity") | {"points": points, "index": index}
    tensors |= {"codes": model.identity_codes.codes.detach()}
    told = {"config": model.identity.config.model_dump(mode="json"), "pairs": model.identity.layout.pairs}
    told |= {"points": BIG // 10 if args.quick else BIG}
    saved = args.work / "rows" / "memory.safetensors"
    saved.write_bytes(encode(tensors, told))
    call = [sys.executable, __file__, "--memory", str(saved)]
    printed = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    return {"peak_mib": float(printed.split()[-1])}


def trained_weights(args: argparse.Namespace, config: TrainConfig, data: Set) -> Path:
    """Weights of the paper's sizes, trained for some minutes on the identities; kept.

    With the rates and batches of the `small` preset, since the paper's own are made for days.
    """
    minutes = args.train_minutes if args.train_minutes is not None else (0.05 if args.quick else 10.0)
    told = preset_config("small").train.model_copy(update=WITHOUT_BLENDS)
    training = told.training.model_copy(update={"field": config.training.field, "threads": args.threads})
    path: Path = args.work / "rows" / f"paper-weights-{data.digest}-{minutes:g}.safetensors"
    if not path.exists():
        batches = data.with_batches(told)
        model = new_model(training, batches.data, 0)
        train_for(training, model, batches, minutes)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_bytes(encode(model.tensors()))
        path.with_suffix(".part").rename(path)
    return path


def speed_rows(args: argparse.Namespace, rows: Sequence[str]) -> dict[str, float]:
    """The rows on speed and memory that are asked for; finished ones are kept."""
    if args.workspace:
        data = Set.of(open_workspace(args.workspace))
    else:
        data = Set.of(make_workspace(args.work, "speed", *((2, 2) if args.quick else (6, 4)), "demo")[0])
    paper = preset_config("paper").train
    if args.quick:
        few = {"subjects_per_step": 2, "surface_points": 100, "near_points": 100, "space_points": 25}
        paper = paper.model_copy(update=few | {"scans_per_step": 4, "pair_points": 200})
    small = preset_config("small").train.model_copy(update=WITHOUT_BLENDS)
    config = paper.training.model_copy(update={"threads": args.threads})
    weights = trained_weights(args, paper, data)
    repeats = 2 if args.quick else 5

    def model_on(batches: Set) -> TrainedModel:
        model = new_model(config, batches.data, 0)
        model.restore(decode(weights.read_bytes())[0])
        return model

    def row_of(name: str) -> dict[str, float]:
        batches = data.with_batches(small if name == "time" else paper)
        model = model_on(batches)
        with fixed_threads(args.threads):
            if name == "forward":
                return forward_rows(model, batches, *((8000, 2) if args.quick else (POINTS, 3)))
            if name == "stage1":
                return stage1_rows(config, model, batches, 400 if args.quick else 3600, repeats)
            if name == "stage2":
                return stage2_rows(config, model, batches, repeats)
            if name == "time":
                return stage2_time(config, batches, model, 0.05 if args.quick else args.time_minutes)
            return memory_row(args, model, batches)

    figures: dict[str, float] = {}
    for name in rows:
        asked = [
            "quick" if args.quick else args.time_minutes,
            weights.stem,
            args.threads,
            config.model_dump(mode="json"),
        ]
        path = args.work / "rows" / f"field-{name}-{digest_json(asked)[:12]}.json"
        figures |= shown(kept(path, lambda name=name: row_of(name)))
    return figures


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small data and few repeats: shows that it works")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--rows", default="speed,quality", help="of speed (or of its rows), quality, ablations")
    parser.add_argument("--ablations", action="store_true", help="the table of ablations alone")
    parser.add_argument("--variants", default="", help="of the ablations, these alone")
    parser.add_argument("--train-minutes", type=float, help="of the paper-size weights, or of each ablation")
    parser.add_argument("--time-minutes", type=float, default=5.0, help="of the plain stage 2 in the row on its time")
    parser.add_argument("--workspace", help="take the samples of speed rows and ablations from this workspace")
    parser.add_argument("--threads", type=int, default=2, help="one where others use the cores")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        forward_memory(args.memory)
        return
    asked = ["ablations"] if args.ablations else args.rows.split(",")
    speed = [row for row in SPEED_ROWS if row in asked or "speed" in asked]
    figures: dict[str, float] = {}
    if speed:
        figures |= speed_rows(args, speed)
    if "quality" in asked:
        figures |= shown(quality_rows(args.work, args.quick))
    if "ablations" in asked:
        variants = [name for name in args.variants.split(",") if name]
        told = args.work, args.quick, args.train_minutes, args.workspace, args.threads
        figures |= ablation_rows(*told, variants)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
