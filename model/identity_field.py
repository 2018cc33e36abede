"""The identity field: signed distance to a head in its canonical expression (paper, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.activations import activation
from model.anchors_head import AnchorsHead
from model.blending import ActivePairs, Blending, active_pairs, anchor_reach, anchor_weight
from model.codes import IdentityLayout
from model.config import IdentityConfig
from model.grouped_mlp import evaluate, evaluate_with_gradient
from model.grouped_sweeps import Group, Layer
from model.shape_and_motion import ShapeField

_POINTS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class PreparedIdentity:
    """What the field needs of B subjects, computed once however many points follow.

    Attributes:
        anchors: (B, K, 3) model units, head frame.
        layers: all local networks, the codes folded into the tables' lines ``subject * (K + 1) + anchor``.
    """

    anchors: Tensor
    layers: tuple[Layer, ...]


class IdentityField(ShapeField):
    """K local networks at anchors and one in the background, blended by distance.

    Both members of a mirrored pair share weights; the second one sees its local coordinates mirrored at x = 0. With P
    pairs there are K - P + 1 sets of weights. A network's coordinates are measured in its anchor's reach.

    Args:
        config: sizes.
        mean_anchors: (K, 3) model units, head frame, mirrored pairs first, interleaved.
        pairs: number of mirrored pairs.
        generator: where the initial weights are drawn from.
        hyper_dim: coordinates beside a point's three, by which an expression can change the shape itself (MonoNPHM).
    """

    reach: Tensor
    coordinate_scale: Tensor
    network_of: Tensor

    def __init__(
        self,
        config: IdentityConfig,
        mean_anchors: Tensor,
        pairs: int,
        generator: torch.Generator,
        hyper_dim: int = 0,
    ) -> None:
        super().__init__()
        count = len(mean_anchors)
        self.config, self.hyper_dim = config, hyper_dim
        self.layout = IdentityLayout.of(config, count, pairs)
        self.activation = activation(config.activation)
        self.anchors_head = AnchorsHead(mean_anchors, config.global_dim, config.anchor_hidden, generator)
        reach = anchor_reach(mean_anchors, pairs, config.reach_neighbours, config.reach_factor)
        scale = torch.cat([reach, reach.new_full((1,), config.background_reach_units)]).reciprocal()
        scale = config.coordinate_gain * scale[:, None].repeat(1, 3)
        scale[1 : 2 * pairs : 2, 0] *= -1
        self.register_buffer("reach", reach)
        self.register_buffer("coordinate_scale", scale)
        self._network_list = [kind // 2 if kind < 2 * pairs else kind - pairs for kind in range(count + 1)]
        network_of = torch.tensor(self._network_list, dtype=torch.int64, device=mean_anchors.device)
        self.register_buffer("network_of", network_of)
        self._make_weights(count - pairs + 1, generator)

    @property
    def coordinates(self) -> int:
        """Coordinates of a point as the networks see it: three and the hyper coordinates."""
        return 3 + self.hyper_dim

    def _make_weights(self, networks: int, generator: torch.Generator) -> None:
        """Weights on the hidden layer below and on the input (coordinates, global, local code), and constants."""
        config = self.config
        inputs = self.coordinates + config.global_dim + config.local_dim
        widths = [*config.hidden, 1]
        hidden, direct, bias = [], [], []
        for depth, width in enumerate(widths):
            below = widths[depth - 1] if depth > 0 else 0
            sees_input = depth == 0 or depth == config.skip_layer
            fan_in = below + (self.coordinates if sees_input else 0)
            bound = math.sqrt((1.0 if depth == len(config.hidden) else 6.0) / fan_in)

            def uniform(*shape: int, bound: float = bound) -> nn.Parameter:
                return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) * bound)

            if depth > 0:
                hidden.append(uniform(networks, below, width))
            if sees_input:
                direct.append(uniform(networks, inputs, width))
            bias.append(uniform(networks, width, bound=0.0 if depth == len(config.hidden) else 1 / math.sqrt(fan_in)))
        self.hidden_weights = nn.ParameterList(hidden)
        self.input_weights = nn.ParameterList(direct)
        self.biases = nn.ParameterList(bias)

    def prepare(self, z_id: Tensor, anchors: Tensor | None = None) -> PreparedIdentity:
        """Predict anchors and fold the codes into the layers that see the input.

        Args:
            z_id: (B, layout.size) identity codes.
            anchors: (B, K, 3) model units, to be used in place of the predicted ones.

        Returns:
            Differentiable with respect to codes and weights.
        """
        z_global, z_local = self.layout.split(z_id)
        if anchors is None:
            anchors = self.anchors_head(z_global)
        count = self.layout.anchors + 1
        code = torch.cat([z_global[:, None].expand(-1, count, -1), z_local], 2).transpose(0, 1)
        layers: list[Layer] = []
        direct: Iterator[Tensor] = iter(self.input_weights)
        for depth, bias in enumerate(self.biases):
            below = self.hidden_weights[depth - 1] if depth > 0 else None
            if depth not in (0, self.config.skip_layer):
                layers.append(Layer(below, None, bias))
                continue
            weights = next(direct)
            share = math.sqrt(0.5) if depth > 0 else 1.0
            table = torch.baddbmm(
                bias.index_select(0, self.network_of)[:, None],
                code,
                weights[:, self.coordinates :].index_select(0, self.network_of),
                alpha=share,
            )
            table = table.transpose(0, 1).reshape(-1, bias.shape[1])
            layers.append(
                Layer(None if below is None else below * share, weights[:, : self.coordinates] * share, table)
            )
        return PreparedIdentity(anchors, tuple(layers))

    def sdf(self, prepared: PreparedIdentity, points: Tensor, subject_index: Tensor | None = None) -> Tensor:
        """Signed distance, negative inside.

        Args:
            prepared: of B subjects.
            points: (N, 3) model units, head frame; or (N, 3 + hyper_dim), the hyper coordinates being zero otherwise.
            subject_index: (N,) int64 into the B subjects; None means the first for all.

        Returns:
            (N,) model units; differentiable (once) with respect to points, codes and weights. Without gradients any
            number of points takes bounded memory.
        """
        if not torch.is_grad_enabled() and len(points) > _POINTS_AT_ONCE:
            parts = range(0, len(points), _POINTS_AT_ONCE)
            return torch.cat([self.sdf(prepared, *_part(points, subject_index, start)) for start in parts])
        rows = self._rows(prepared, points, subject_index)
        value = evaluate(prepared.layers, self.activation, rows.groups, rows.x, rows.line, self.half_products)[:, 0]
        pairs = len(rows.blending.point)
        return rows.blending.mean(value[:pairs], value[pairs:])

    def sdf_and_gradient(
        self,
        prepared: PreparedIdentity,
        points: Tensor,
        subject_index: Tensor | None = None,
        create_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Signed distance and its gradient with respect to the points' places, hyper coordinates held.

        Arguments as ``sdf``. ``create_graph`` makes both results differentiable (once) with respect to points, codes
        and weights, as the normal and eikonal terms need; without it they are constants.

        Returns:
            (N,) model units and (N, 3).
        """
        if not create_graph:
            with torch.no_grad():
                parts = range(0, max(len(points), 1), _POINTS_AT_ONCE)
                done = [self._with_gradient(prepared, *_part(points, subject_index, start)) for start in parts]
            return torch.cat([value for value, _ in done]), torch.cat([gradient for _, gradient in done])
        return self._with_gradient(prepared, points, subject_index)

    def _with_gradient(
        self, prepared: PreparedIdentity, points: Tensor, subject_index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows = self._rows(prepared, points, subject_index)
        column, local = evaluate_with_gradient(
            prepared.layers, self.activation, rows.groups, rows.x, rows.line, self.half_products
        )
        value, gradient = column[:, 0], local[:, :3] * rows.scale
        pairs = len(rows.blending.point)
        mean = rows.blending.mean(value[:pairs], value[pairs:])
        slope = rows.blending.gradient(
            mean, value[:pairs], gradient[:pairs], rows.weight_gradient, value[pairs:], gradient[pairs:]
        )
        return mean, slope

    def _rows(self, prepared: PreparedIdentity, points: Tensor, subject_index: Tensor | None) -> _Rows:
        points, hyper = points[:, :3], points[:, 3:]
        pairs = active_pairs(points, prepared.anchors, subject_index, self.reach)
        count = self.layout.anchors
        if subject_index is None:
            subject_index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        subject = subject_index.index_select(0, pairs.point)
        # entry by entry, since the gradient of a choice of lines is slow on a CPU
        entries = _entries(subject * count + pairs.anchor)
        centre = prepared.anchors.flatten().index_select(0, entries).reshape(-1, 3)
        offset = points.index_select(0, pairs.point) - centre
        blending, weight_gradient = self._blend(len(points), pairs, offset)
        outside = blending.background_point
        kind = torch.cat([pairs.anchor, pairs.anchor.new_full((len(outside),), count)])
        scale = self.coordinate_scale.index_select(0, kind)
        line = torch.cat([subject, subject_index.index_select(0, outside)]) * (count + 1) + kind
        groups: list[Group] = []
        start = 0
        for anchor, rows in enumerate([*pairs.counts, len(outside)]):
            network = self._network_list[anchor]
            if groups and groups[-1].network == network:
                groups[-1] = Group(network, groups[-1].start, start + rows)
            else:
                groups.append(Group(network, start, start + rows))
            start += rows
        x = torch.cat([offset, points.index_select(0, outside)]) * scale
        if self.hyper_dim:
            hyper = hyper if hyper.shape[1] else points.new_zeros(len(points), self.hyper_dim)
            x = torch.cat([x, hyper.index_select(0, torch.cat([pairs.point, outside]))], 1)
        return _Rows(blending, weight_gradient, x, scale, line, tuple(groups))

    def _blend(self, points: int, pairs: ActivePairs, offset: Tensor) -> tuple[Blending, Tensor]:
        """The weights of all fields at so many points, and the gradients (M, 3) of the pairs' weights."""
        config = self.config
        weight, weight_gradient = anchor_weight(offset, self.reach.index_select(0, pairs.anchor), config.sharpness)
        blending = Blending.of(points, pairs.point, weight, config.background_weight, config.background_limit)
        return blending, weight_gradient


@dataclass(frozen=True)
class _Rows:
    """The active pairs, then one row a point where the background counts, as the networks see them."""

    blending: Blending
    weight_gradient: Tensor
    x: Tensor
    scale: Tensor
    line: Tensor
    groups: tuple[Group, ...]


def _entries(lines: Tensor) -> Tensor:
    """Where the entries of lines (M,) of a table (R, 3) lie in the flat table, (3 M,)."""
    return (3 * lines[:, None] + torch.arange(3, device=lines.device)).flatten()


def _part(points: Tensor, subject_index: Tensor | None, start: int) -> tuple[Tensor, Tensor | None]:
    part = slice(start, start + _POINTS_AT_ONCE)
    return points[part], None if subject_index is None else subject_index[part]
