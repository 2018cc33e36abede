"""Many small networks at many points, each only where it is needed, with hand-written gradients.

Rows (a point as one network sees it) come sorted by network. Each network is then a chain of plain matrix products over
its own rows, taken in blocks that stay in the cache. Codes never reach the rows: they are folded into tables, the
constant part of the layers that see the input, one line a subject and anchor.

The gradient with respect to the input is computed by one reverse sweep beside the value. Losses on that gradient need
second derivatives; these too are written out (a tangent sweep along the incoming gradient, then one reverse sweep over
both), so that autograd never differentiates twice. Backward of what this module returns is first order only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.activations import Activation

_BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Layer:
    """A layer of all networks of a group.

    Attributes:
        hidden: (S, in, out) weights on the layer before, or None in the first layer.
        coordinates: (S, c, out) weights on the input coordinates, or None.
        constant: (R, out) table to add, one line for each value of ``row``, where there are coordinates, else (S, out).
    """

    hidden: Tensor | None
    coordinates: Tensor | None
    constant: Tensor


@dataclass(frozen=True)
class Group:
    """Rows ``start`` to ``stop`` belong to the network ``network``."""

    network: int
    start: int
    stop: int


def evaluate(
    layers: Sequence[Layer], activation: Activation, groups: Sequence[Group], x: Tensor, row: Tensor
) -> Tensor:
    """Values of the networks.

    Args:
        layers: the last one is linear.
        activation: after every layer but the last.
        groups: which rows belong to which network; together all rows, in order.
        x: (M, c) coordinates.
        row: (M,) int64 line of the tables that holds for the row.

    Returns:
        (M, out). Differentiable (once) with respect to coordinates, tables and weights.
    """
    value, _ = _GroupedMlp.apply(_plan(layers, activation, groups, x, False), x, row, *_tensors(layers))
    return value


def evaluate_with_gradient(
    layers: Sequence[Layer], activation: Activation, groups: Sequence[Group], x: Tensor, row: Tensor
) -> tuple[Tensor, Tensor]:
    """Values (M, 1) and their gradients (M, c) with respect to the coordinates; networks with one output only.

    Arguments as ``evaluate``. Both results are differentiable (once) with respect to coordinates, tables and weights.
    """
    return _GroupedMlp.apply(_plan(layers, activation, groups, x, True), x, row, *_tensors(layers))


@torch.no_grad()
def evaluate_with_jacobian(
    layers: Sequence[Layer], activation: Activation, groups: Sequence[Group], x: Tensor, row: Tensor
) -> tuple[Tensor, Tensor]:
    """Values (M, out) and Jacobians (M, out, c) with respect to the coordinates. Not differentiable."""
    outputs = layers[-1].constant.shape[1]
    value = x.new_empty(len(x), outputs)
    jacobian = x.new_zeros(len(x), outputs, x.shape[1])
    for network, rows in _blocks(groups, x):
        forward = _Forward(layers, activation, network, x[rows], row[rows], slopes=True)
        value[rows] = forward.value
        for output in range(outputs):
            adjoint = _column(layers[-1], network)[:, output].expand(rows.stop - rows.start, -1)
            _reverse(layers, network, adjoint, forward.slopes, jacobian[rows, output], None)
    return value, jacobian


@dataclass(frozen=True)
class _Plan:
    activation: Activation
    groups: tuple[Group, ...]
    shapes: tuple[tuple[bool, bool], ...]
    with_gradient: bool
    save: bool


def _plan(
    layers: Sequence[Layer], activation: Activation, groups: Sequence[Group], x: Tensor, with_gradient: bool
) -> _Plan:
    shapes = tuple((layer.hidden is not None, layer.coordinates is not None) for layer in layers)
    save = torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in _tensors(layers)))
    return _Plan(activation, tuple(groups), shapes, with_gradient, save)


def _tensors(layers: Sequence[Layer]) -> list[Tensor]:
    return [t for layer in layers for t in (layer.hidden, layer.coordinates, layer.constant) if t is not None]


def _layers(shapes: Sequence[tuple[bool, bool]], tensors: Sequence[Tensor]) -> list[Layer]:
    rest = iter(tensors)
    return [
        Layer(next(rest) if has_hidden else None, next(rest) if has_coordinates else None, next(rest))
        for has_hidden, has_coordinates in shapes
    ]


def _blocks(groups: Sequence[Group], x: Tensor) -> list[tuple[int, slice]]:
    """Cut the groups into blocks of rows that fit the cache; on an accelerator groups stay whole."""
    step = _BLOCK_ROWS if x.device.type == "cpu" else max(len(x), 1)
    return [
        (group.network, slice(start, min(start + step, group.stop)))
        for group in groups
        for start in range(group.start, group.stop, step)
    ]


def _column(layer: Layer, network: int) -> Tensor:
    assert layer.hidden is not None
    return layer.hidden[network]


def _linear(layer: Layer, network: int, below: Tensor | None, x: Tensor, row: Tensor) -> Tensor:
    if layer.coordinates is None:
        assert below is not None
        return torch.addmm(layer.constant[network], below, _column(layer, network))
    z = torch.index_select(layer.constant, 0, row)
    z.addmm_(x, layer.coordinates[network])
    return z if below is None else z.addmm_(below, _column(layer, network))


class _Forward:
    """One block's forward sweep: sums before and values after each activation, slopes where asked for."""

    def __init__(
        self, layers: Sequence[Layer], activation: Activation, network: int, x: Tensor, row: Tensor, slopes: bool
    ) -> None:
        self.sums: list[Tensor] = []
        self.slopes: list[Tensor] = []
        below: Tensor | None = None
        for layer in layers[:-1]:
            z = _linear(layer, network, below, x, row)
            self.sums.append(z)
            if slopes:
                below, slope = activation.value_and_slope(z)
                self.slopes.append(slope)
            else:
                below = activation.value(z)
        self.value = _linear(layers[-1], network, below, x, row)


def _reverse(
    layers: Sequence[Layer],
    network: int,
    adjoint: Tensor,
    slopes: Sequence[Tensor],
    gradient: Tensor,
    keep: Sequence[Tensor] | None,
) -> None:
    """Add to ``gradient`` (m, c) what ``adjoint`` (m, h), of the last hidden values, makes of the coordinates.

    ``keep`` receives the adjoint of each hidden layer's values.
    """
    for depth in range(len(layers) - 2, -1, -1):
        if keep is not None:
            keep[depth].copy_(adjoint)
        through = adjoint * slopes[depth]
        layer = layers[depth]
        if layer.coordinates is not None:
            gradient.addmm_(through, layer.coordinates[network].t())
        if depth > 0:
            adjoint = through @ _column(layer, network).t()


class _GroupedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, row: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        layers = _layers(plan.shapes, tensors)
        value = x.new_empty(len(x), layers[-1].constant.shape[1])
        gradient = x.new_zeros(x.shape) if plan.with_gradient else None
        widths = [layer.constant.shape[1] for layer in layers[:-1]]
        sums = [x.new_empty(len(x), width) for width in widths] if plan.save else []
        adjoints = [x.new_empty(len(x), width) for width in widths] if plan.save and plan.with_gradient else []
        for network, rows in _blocks(plan.groups, x):
            forward = _Forward(layers, plan.activation, network, x[rows], row[rows], slopes=plan.with_gradient)
            value[rows] = forward.value
            for kept, z in zip(sums, forward.sums, strict=False):
                kept[rows] = z
            if gradient is not None:
                adjoint = _column(layers[-1], network)[:, 0].expand(rows.stop - rows.start, -1)
                keep = [kept[rows] for kept in adjoints] if plan.save else None
                _reverse(layers, network, adjoint, forward.slopes, gradient[rows], keep)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.counts = len(sums), len(adjoints)
        ctx.save_for_backward(x, row, *tensors, *sums, *adjoints)
        return value, gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, value_bar: Tensor | None, gradient_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x, row, *saved = ctx.saved_tensors
        cut = len(saved) - sum(ctx.counts)
        tensors, sums, adjoints = saved[:cut], saved[cut : cut + ctx.counts[0]], saved[cut + ctx.counts[0] :]
        layers = _layers(plan.shapes, tensors)
        needs = ctx.needs_input_grad[3:]
        bars = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
        x_bar = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        if value_bar is None:
            value_bar = x.new_zeros(len(x), layers[-1].constant.shape[1])
        if not plan.with_gradient:
            gradient_bar = None
        for network, rows in _blocks(plan.groups, x):
            block = _Backward(plan, layers, bars, network, x[rows], row[rows])
            block.sweep(
                [z[rows] for z in sums],
                [adjoint[rows] for adjoint in adjoints],
                value_bar[rows],
                None if gradient_bar is None else gradient_bar[rows],
                None if x_bar is None else x_bar[rows],
            )
        return None, x_bar, None, *bars


class _Backward:
    """One block's share of the gradients, added to ``bars``, which lie as the layers' tensors do."""

    def __init__(
        self,
        plan: _Plan,
        layers: Sequence[Layer],
        bars: Sequence[Tensor | None],
        network: int,
        x: Tensor,
        row: Tensor,
    ) -> None:
        self.activation = plan.activation
        self.layers, self.network, self.x, self.row = layers, network, x, row
        self.bars: list[tuple[Tensor | None, Tensor | None, Tensor | None]] = []
        rest = iter(bars)
        for has_hidden, has_coordinates in plan.shapes:
            self.bars.append((next(rest) if has_hidden else None, next(rest) if has_coordinates else None, next(rest)))

    def sweep(
        self,
        sums: Sequence[Tensor],
        adjoints: Sequence[Tensor],
        value_bar: Tensor,
        direction: Tensor | None,
        x_bar: Tensor | None,
    ) -> None:
        """Carry the gradients of values (m, out) and of spatial gradients (``direction``, (m, c)) to all inputs."""
        values, slopes, bends, tangents = self._hidden(sums, direction)
        last = len(self.layers) - 1
        weight_bar, _, constant_bar = self.bars[last]
        if weight_bar is not None:
            weight_bar[self.network].addmm_(values[-1].t(), value_bar)
            if direction is not None:
                weight_bar[self.network, :, 0] += tangents[-1].sum(0)
        if constant_bar is not None:
            constant_bar[self.network] += value_bar.sum(0)
        bar = value_bar @ _column(self.layers[last], self.network).t()
        for depth in range(last - 1, -1, -1):
            sum_bar = bar * slopes[depth]
            through = None
            if direction is not None:
                sum_bar.addcmul_(adjoints[depth], bends[depth])
                through = adjoints[depth] * slopes[depth]
            self._add_weights(depth, values, tangents, sum_bar, through, direction)
            layer = self.layers[depth]
            if x_bar is not None and layer.coordinates is not None:
                x_bar.addmm_(sum_bar, layer.coordinates[self.network].t())
            if depth > 0:
                bar = sum_bar @ _column(layer, self.network).t()

    def _hidden(
        self, sums: Sequence[Tensor], direction: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Hidden values and slopes; along a direction also the slopes' changes and the values' tangents."""
        values: list[Tensor] = []
        slopes: list[Tensor] = []
        bends: list[Tensor] = []
        tangents: list[Tensor] = []
        for depth, z in enumerate(sums):
            if direction is None:
                value, slope = self.activation.value_and_slope(z)
            else:
                value, slope, curvature = self.activation.value_slope_curvature(z)
                layer = self.layers[depth]
                parts = []
                if layer.coordinates is not None:
                    parts.append(direction @ layer.coordinates[self.network])
                if depth > 0:
                    below = _column(layer, self.network)
                    parts = [torch.addmm(parts[0], tangents[-1], below) if parts else tangents[-1] @ below]
                bends.append(curvature * parts[0])
                tangents.append(slope * parts[0])
            values.append(value)
            slopes.append(slope)
        return values, slopes, bends, tangents

    def _add_weights(
        self,
        depth: int,
        values: Sequence[Tensor],
        tangents: Sequence[Tensor],
        sum_bar: Tensor,
        through: Tensor | None,
        direction: Tensor | None,
    ) -> None:
        hidden_bar, coordinates_bar, constant_bar = self.bars[depth]
        if hidden_bar is not None:
            hidden_bar[self.network].addmm_(values[depth - 1].t(), sum_bar)
            if through is not None:
                hidden_bar[self.network].addmm_(tangents[depth - 1].t(), through)
        if coordinates_bar is not None:
            coordinates_bar[self.network].addmm_(self.x.t(), sum_bar)
            if through is not None and direction is not None:
                coordinates_bar[self.network].addmm_(direction.t(), through)
        if constant_bar is not None:
            if self.layers[depth].coordinates is not None:
                constant_bar.index_add_(0, self.row, sum_bar)
            else:
                constant_bar[self.network] += sum_bar.sum(0)
