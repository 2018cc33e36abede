"""What each part of the field is worth: variants trained equally long on the same samples. Used by field.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.field_data import TrainingSet, kept, make_workspace, registered_pairs
from benchmarks.field_training import train_for
from model.blending import ActivePairs, Blending
from model.config import TrainingConfig
from model.identity_field import IdentityField
from model.losses import clamped_distance_error, flat
from model.trained_model import TrainedModel, new_model
from model.training_figures import training_figures
from model.units import to_mm, to_units
from pipeline.config import preset_config
from pipeline.opening import open_workspace
from pipeline.train_config import TrainConfig
from registration.anchors import with_anchors
from registration.template import Template
from storage.digest import digest_json

SUBJECTS, EXPRESSIONS, MINUTES = 12, 4, 12.0
QUICK_SUBJECTS, QUICK_EXPRESSIONS, QUICK_MINUTES = 2, 2, 0.1
_SPACE_BATCHES = 8


class ReleasedBlending(IdentityField):
    """Our networks under the released code's weights (paper, section 3.1): a Gaussian of fixed width at every anchor.

    The weights exp(-(d + 1e-5)^2 / 0.01) and the background's constant exp(-0.2 / 0.01) are divided by their sum and
    1e-6. Anchors beyond 0.5 units, whose weight is below 2e-5 of that 1e-6, are left out.
    """

    _WIDTH, _SOFTENING, _BACKGROUND, _REST, _REACH = 0.01, 1e-5, float(np.exp(-20.0)), 1e-6, 0.5

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reach = torch.full_like(self.reach, self._REACH)

    def _blend(self, points: int, pairs: ActivePairs, offset: Tensor) -> tuple[Blending, Tensor]:
        distance = offset.square().sum(1).add(1e-20).sqrt()
        weight = torch.exp(-((distance + self._SOFTENING) ** 2) / self._WIDTH)
        slope = -2 * (distance + self._SOFTENING) / self._WIDTH * weight / distance
        everywhere = torch.arange(points, device=offset.device)
        own = weight.new_full((points,), self._BACKGROUND)
        total = weight.new_full((points,), self._BACKGROUND + self._REST).index_add(0, pairs.point, weight)
        blending = Blending(pairs.point, weight, everywhere, own, torch.zeros_like(own), total)
        return blending, slope[:, None] * offset


@dataclass(frozen=True)
class Variant:
    """What is changed.

    Attributes:
        config: of the training.
        template: with other anchors or pairs.
        released_blending: with ``ReleasedBlending``.
        motion: None trains shapes alone; "staged" the motions after them, in half of the time; "joint" both together.
    """

    config: TrainConfig
    template: Template | None = None
    released_blending: bool = False
    motion: Literal["staged", "joint"] | None = None


def ablation_rows(
    work: Path,
    quick: bool,
    minutes: float | None,
    url: str | None = None,
    threads: int = 2,
    variants: Sequence[str] = (),
) -> dict[str, float]:
    """Each variant trained equally long on the same samples: errors on further samples, a row each.

    Args:
        work: where captures and finished rows are kept.
        quick: few people, no time: shows that it works.
        minutes: of training, of the processor.
        url: take the samples of this workspace.
        threads: of the training.
        variants: these alone, in this order; all by default.
    """
    minutes = (QUICK_MINUTES if quick else MINUTES) if minutes is None else minutes
    if url is None:
        sizes = (QUICK_SUBJECTS, QUICK_EXPRESSIONS) if quick else (SUBJECTS, EXPRESSIONS)
        workspace, _ = make_workspace(work, "ablations", *sizes, "demo", every_scan=True)
    else:
        workspace = open_workspace(url)
    data = TrainingSet.of(workspace)
    table: dict[str, float] = {}
    for name in variants or ABLATIONS:
        variant = ABLATIONS[name](data)
        if variant.config.posed_near_points and not all(one.rows("near") for one in data.scans.scan_sources):
            print(f"{name}: left out, this workspace's expressions have no distances", flush=True)
            continue
        told = digest_json([variant.config.model_dump(mode="json"), minutes, threads, data.digest])[:12]
        path = work / "rows" / f"ablation-{name}-{told}.json"
        row = kept(path, lambda v=variant: _ablate(data, v, minutes, threads))
        print(name, " ".join(f"{figure} {value:.4g}" for figure, value in row.items()), flush=True)
        table |= {f"{name}_{figure}": value for figure, value in row.items()}
    return table


def _ablate(data: TrainingSet, variant: Variant, minutes: float, threads: int) -> dict[str, float]:
    data = data.with_batches(variant.config, variant.template)
    training = variant.config.training.model_copy(update={"threads": threads})
    model = new_model(training, data.data, 0)
    if variant.released_blending:
        mean, pairs = model.identity.anchors_head.mean, model.identity.layout.pairs
        field = ReleasedBlending(training.field.identity, mean, pairs, torch.Generator().manual_seed(0))
        model = replace(model, identity=field)
    if variant.motion == "joint":
        spent = [train_for(training, model, data, minutes, "joint")]
    elif variant.motion == "staged":
        spent = [train_for(training, model, data, minutes / 2, kind) for kind in ("stage1", "stage2")]
    else:
        spent = [train_for(training, model, data, minutes)]
    figures = training_figures(model, replace(data.data, deformation=None))
    row = {"steps": float(sum(one.steps for one in spent)), "space_mean_mm": space_error_mm(model, data)}
    row |= {name: figures[name] for name in figures if name.endswith("_mm")}
    if variant.motion is not None:
        pairs_of_vertices = registered_pairs(data)
        row["posed_vertex_mm"] = pairs_of_vertices.error_mm(model)
        row["posed_surface_mm"] = pairs_of_vertices.surface_mm(model)
    return row


@torch.no_grad()
def space_error_mm(model: TrainedModel, data: TrainingSet) -> float:
    """Mean error of the distance at points of space, both limited to what training limits them to."""
    limit = TrainingConfig().distance_clamp_mm
    wrong = []
    for _ in range(_SPACE_BATCHES):
        batch = next(data.identity)
        prepared = model.identity.prepare(model.identity_codes.codes[torch.as_tensor(batch["subject"])])
        sdf = to_mm(model.identity.sdf(prepared, *flat(to_units(torch.as_tensor(batch["space"])))))
        wrong.append(clamped_distance_error(sdf, torch.as_tensor(batch["space_sdf"]).ravel(), limit))
    return float(torch.cat(wrong).mean())


def _small(outside: Mapping[str, Any] | None = None, **training: Any) -> TrainConfig:
    """The `small` preset with some of its training's values replaced, nested ones by nested dictionaries.

    ``outside`` replaces values beside ``training``.
    """
    told = preset_config("small").train.model_dump(mode="json")
    return TrainConfig.model_validate(told | dict(outside or {}) | {"training": _merged(told["training"], training)})


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    nested = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, Mapping)}
    return below | dict(above) | nested


def _unpaired(template: Template, anchors: int | None = None) -> Template:
    """A template whose anchors are no mirrored pairs, and perhaps the first ones alone."""
    return replace(template, anchors=template.anchors[:anchors], anchor_pairs=0)


_BACKWARD = {"joint": True, "field": {"deformation": {"direction": "backward", "hyper_dim": 2}}}

ABLATIONS: dict[str, Callable[[TrainingSet], Variant]] = {
    "ours": lambda data: Variant(_small()),
    # one anchor has no neighbour, hence no reach: only the background network is left
    "one_global_network": lambda data: Variant(
        _small(field={"identity": {"hidden": [256, 256, 256, 256], "coordinate_gain": 8.0}}),
        _unpaired(data.workspace.template(), 1),
    ),
    "no_symmetry": lambda data: Variant(
        _small(identity_losses={"symm_dist": 0.0}), _unpaired(data.workspace.template())
    ),
    "anchors_16": lambda data: Variant(_small(), with_anchors(data.workspace.template(), 16)),
    "anchors_65": lambda data: Variant(_small(), with_anchors(data.workspace.template(), 65)),
    "no_blends": lambda data: Variant(_small({"blends_per_step": 0})),
    "no_direct_distances": lambda data: Variant(
        _small(
            identity_losses={"near_sdf": 0.0, "space_sdf_direct": 0.0, "space_sdf": 0.01, "normals": 0.3, "grad": 0.1},
            near_gradient_share=1.0,
            space_gradient_share=1.0,
        )
    ),
    "released_blending": lambda data: Variant(_small(), released_blending=True),
    "forward": lambda data: Variant(_small(), motion="staged"),
    "forward_joint": lambda data: Variant(_small(joint=True), motion="joint"),
    "backward": lambda data: Variant(_small(**_BACKWARD), motion="joint"),
    "backward_posed": lambda data: Variant(
        _small({"posed_surface_points": 100, "posed_near_points": 100}, **_BACKWARD), motion="joint"
    ),
    "wider_reach": lambda data: Variant(_small(field={"identity": {"reach_neighbours": 6}})),
    "narrower_reach": lambda data: Variant(_small(field={"identity": {"reach_neighbours": 3}})),
    "paper_weights": lambda data: Variant(_small(identity_losses={"normals": 0.3, "grad": 0.1})),
}
"""What each variant changes; ``ours`` has 39 anchors."""
