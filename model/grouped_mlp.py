"""Many small networks at many points, each only where it is needed, with hand-written gradients.

Rows (a point as one network sees it) come sorted by network. Each network is then a chain of plain matrix products over
its own rows, taken in blocks that stay in the cache. Codes never reach the rows: they are folded into tables, the
constant part of the layers that see the input, one line a subject and anchor.

The gradient with respect to the input is computed by one reverse sweep beside the value. Losses on that gradient need
second derivatives; these too are written out (a tangent sweep along the incoming gradient, then one reverse sweep over
both), so that autograd never differentiates twice. Backward of what this module returns is first order only.

With ``half`` the products between hidden layers are taken in bfloat16; coordinates, sums and activations stay float32,
since a head is 2 units wide and bfloat16 has 8 bits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.activations import Activation

_BLOCK_NUMBERS = 1 << 19
_LEAST_ROWS, _MOST_ROWS = 512, 4096
_ROWS_A_RUN = 16


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
    layers: Sequence[Layer],
    activation: Activation,
    groups: Sequence[Group],
    x: Tensor,
    row: Tensor,
    half: bool = False,
) -> Tensor:
    """Values of the networks.

    Args:
        layers: the last one is linear.
        activation: after every layer but the last.
        groups: which rows belong to which network; together all rows, in order.
        x: (M, c) coordinates.
        row: (M,) int64 line of the tables that holds for the row.
        half: see the module.

    Returns:
        (M, out). Differentiable (once) with respect to coordinates, tables and weights.
    """
    value, _ = _GroupedMlp.apply(_plan(layers, activation, groups, x, False, half), x, row, *_tensors(layers))
    return value


def evaluate_with_gradient(
    layers: Sequence[Layer],
    activation: Activation,
    groups: Sequence[Group],
    x: Tensor,
    row: Tensor,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """Values (M, 1) and their gradients (M, c) with respect to the coordinates; networks with one output only.

    Arguments as ``evaluate``. Both results are differentiable (once) with respect to coordinates, tables and weights.
    """
    return _GroupedMlp.apply(_plan(layers, activation, groups, x, True, half), x, row, *_tensors(layers))


@torch.no_grad()
def evaluate_with_jacobian(
    layers: Sequence[Layer], activation: Activation, groups: Sequence[Group], x: Tensor, row: Tensor
) -> tuple[Tensor, Tensor]:
    """Values (M, out) and Jacobians (M, out, c) with respect to the coordinates. Not differentiable."""
    outputs = layers[-1].constant.shape[1]
    value = x.new_empty(len(x), outputs)
    jacobian = x.new_zeros(len(x), outputs, x.shape[1])
    products = Products(False)
    for network, rows in _blocks(layers, groups, x):
        forward = _Forward(layers, activation, products, network, x[rows], row[rows], slopes=True)
        value[rows] = forward.value
        for output in range(outputs):
            adjoint = _hidden(layers[-1], network)[:, output].expand(rows.stop - rows.start, -1)
            _reverse(layers, products, network, adjoint, forward.slopes, jacobian[rows, output], None)
    return value, jacobian


@dataclass(frozen=True)
class Products:
    """Matrix products between hidden layers, in bfloat16 if ``half``."""

    half: bool

    def of(self, a: Tensor, b: Tensor) -> Tensor:
        """a b."""
        return (a.bfloat16() @ b.bfloat16()).float() if self.half else a @ b

    def plus(self, constant: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """constant + a b."""
        return self.of(a, b).add_(constant) if self.half else torch.addmm(constant, a, b)

    def onto(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Add a b to z."""
        return z.add_(self.of(a, b)) if self.half else z.addmm_(a, b)


@dataclass(frozen=True)
class _Plan:
    activation: Activation
    groups: tuple[Group, ...]
    shapes: tuple[tuple[bool, bool], ...]
    with_gradient: bool
    save: bool
    products: Products


def _plan(
    layers: Sequence[Layer],
    activation: Activation,
    groups: Sequence[Group],
    x: Tensor,
    with_gradient: bool,
    half: bool,
) -> _Plan:
    shapes = tuple((layer.hidden is not None, layer.coordinates is not None) for layer in layers)
    save = torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in _tensors(layers)))
    return _Plan(activation, tuple(groups), shapes, with_gradient, save, Products(half))


def _tensors(layers: Sequence[Layer]) -> list[Tensor]:
    return [t for layer in layers for t in (layer.hidden, layer.coordinates, layer.constant) if t is not None]


def _layers(shapes: Sequence[tuple[bool, bool]], tensors: Sequence[Tensor]) -> list[Layer]:
    rest = iter(tensors)
    return [
        Layer(next(rest) if has_hidden else None, next(rest) if has_coordinates else None, next(rest))
        for has_hidden, has_coordinates in shapes
    ]


def _blocks(layers: Sequence[Layer], groups: Sequence[Group], x: Tensor) -> list[tuple[int, slice]]:
    """Cut the groups into blocks of rows that fit the cache; on an accelerator groups stay whole."""
    widest = max(layer.constant.shape[1] for layer in layers)
    step = min(max(_BLOCK_NUMBERS // widest, _LEAST_ROWS), _MOST_ROWS) if x.device.type == "cpu" else max(len(x), 1)
    return [
        (group.network, slice(start, min(start + step, group.stop)))
        for group in groups
        for start in range(group.start, group.stop, step)
    ]


def _hidden(layer: Layer, network: int) -> Tensor:
    assert layer.hidden is not None
    return layer.hidden[network]


def _linear(layer: Layer, products: Products, network: int, below: Tensor | None, x: Tensor, row: Tensor) -> Tensor:
    if layer.coordinates is None:
        assert below is not None
        return products.plus(layer.constant[network], below, _hidden(layer, network))
    z = torch.index_select(layer.constant, 0, row)
    z.addmm_(x, layer.coordinates[network])
    return z if below is None else products.onto(z, below, _hidden(layer, network))


class _Forward:
    """One block's forward sweep: the values, what the activations keep, and their slopes where asked for."""

    def __init__(
        self,
        layers: Sequence[Layer],
        activation: Activation,
        products: Products,
        network: int,
        x: Tensor,
        row: Tensor,
        slopes: bool,
    ) -> None:
        self.kept: list[Tensor] = []
        self.slopes: list[Tensor] = []
        below: Tensor | None = None
        for layer in layers[:-1]:
            below, kept = activation.value(_linear(layer, products, network, below, x, row))
            self.kept.append(kept)
            if slopes:
                self.slopes.append(activation.derivatives(kept, value=False)[1])
        self.value = _linear(layers[-1], products, network, below, x, row)


def _reverse(
    layers: Sequence[Layer],
    products: Products,
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
            adjoint = products.of(through, _hidden(layer, network).t())


class _GroupedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, row: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        layers = _layers(plan.shapes, tensors)
        value = x.new_empty(len(x), layers[-1].constant.shape[1])
        gradient = x.new_zeros(x.shape) if plan.with_gradient else None
        widths = [layer.constant.shape[1] for layer in layers[:-1]]
        kept = [x.new_empty(len(x), width) for width in widths] if plan.save else []
        adjoints = [x.new_empty(len(x), width) for width in widths] if plan.save and plan.with_gradient else []
        for network, rows in _blocks(layers, plan.groups, x):
            at = x[rows], row[rows]
            forward = _Forward(layers, plan.activation, plan.products, network, *at, slopes=plan.with_gradient)
            value[rows] = forward.value
            for whole, part in zip(kept, forward.kept, strict=False):
                whole[rows] = part
            if gradient is not None:
                adjoint = _hidden(layers[-1], network)[:, 0].expand(rows.stop - rows.start, -1)
                keep = [whole[rows] for whole in adjoints] if plan.save else None
                _reverse(layers, plan.products, network, adjoint, forward.slopes, gradient[rows], keep)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.counts = len(kept), len(adjoints)
        ctx.save_for_backward(x, row, *tensors, *kept, *adjoints)
        return value, gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, value_bar: Tensor | None, gradient_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x, row, *saved = ctx.saved_tensors
        cut = len(saved) - sum(ctx.counts)
        tensors, kept, adjoints = saved[:cut], saved[cut : cut + ctx.counts[0]], saved[cut + ctx.counts[0] :]
        layers = _layers(plan.shapes, tensors)
        needs = ctx.needs_input_grad[3:]
        bars = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
        x_bar = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        if value_bar is None:
            value_bar = x.new_zeros(len(x), layers[-1].constant.shape[1])
        if not plan.with_gradient:
            gradient_bar = None
        runs = _Runs(row)
        for network, rows in _blocks(layers, plan.groups, x):
            block = _Backward(plan, layers, bars, network, x[rows], runs, rows)
            block.sweep(
                [whole[rows] for whole in kept],
                [whole[rows] for whole in adjoints],
                value_bar[rows],
                None if gradient_bar is None else gradient_bar[rows],
                None if x_bar is None else x_bar[rows],
            )
        return None, x_bar, None, *bars


class _Runs:
    """Stretches of rows that have the same line of the tables, so that their gradients can be summed in one go."""

    def __init__(self, row: Tensor) -> None:
        self._row = row
        self._starts: list[int] | None = None
        if row.device.type == "cpu":  # elsewhere scattered sums are quick
            cuts = (row[1:] != row[:-1]).nonzero()[:, 0]
            if len(cuts) * _ROWS_A_RUN < len(row):
                self._starts = [0, *(cuts + 1).tolist()]
                self._lines = row[self._starts].tolist()

    def add(self, table: Tensor, rows: slice, values: Tensor) -> None:
        """Add values (m, h) of some rows to their lines of a table."""
        if self._starts is None:
            table.index_add_(0, self._row[rows], values)
            return
        place = bisect_right(self._starts, rows.start) - 1
        start = rows.start
        while start < rows.stop:
            stop = min(self._starts[place + 1] if place + 1 < len(self._starts) else rows.stop, rows.stop)
            table[self._lines[place]] += values[start - rows.start : stop - rows.start].sum(0)
            start, place = stop, place + 1


class _Backward:
    """One block's share of the gradients, added to ``bars``, which lie as the layers' tensors do."""

    def __init__(
        self,
        plan: _Plan,
        layers: Sequence[Layer],
        bars: Sequence[Tensor | None],
        network: int,
        x: Tensor,
        runs: _Runs,
        rows: slice,
    ) -> None:
        self.activation, self.products = plan.activation, plan.products
        self.layers, self.network, self.x, self.runs, self.rows = layers, network, x, runs, rows
        self.bars: list[tuple[Tensor | None, Tensor | None, Tensor | None]] = []
        rest = iter(bars)
        for has_hidden, has_coordinates in plan.shapes:
            self.bars.append((next(rest) if has_hidden else None, next(rest) if has_coordinates else None, next(rest)))

    def sweep(
        self,
        kept: Sequence[Tensor],
        adjoints: Sequence[Tensor],
        value_bar: Tensor,
        direction: Tensor | None,
        x_bar: Tensor | None,
    ) -> None:
        """Carry the gradients of values (m, out) and of spatial gradients (``direction``, (m, c)) to all inputs."""
        values, slopes, bends, tangents = self._forward(kept, direction)
        last = len(self.layers) - 1
        weight_bar, _, constant_bar = self.bars[last]
        if weight_bar is not None:
            self.products.onto(weight_bar[self.network], values[-1].t(), value_bar)
            if direction is not None:
                weight_bar[self.network, :, 0] += tangents[-1].sum(0)
        if constant_bar is not None:
            constant_bar[self.network] += value_bar.sum(0)
        bar = value_bar @ _hidden(self.layers[last], self.network).t()
        for depth in range(last - 1, -1, -1):
            sum_bar = bar.mul_(slopes[depth])
            through = None
            if direction is not None:
                sum_bar.addcmul_(adjoints[depth], bends[depth])
                through = slopes[depth].mul_(adjoints[depth])
            self._add_weights(depth, values, tangents, sum_bar, through, direction)
            layer = self.layers[depth]
            if x_bar is not None and layer.coordinates is not None:
                x_bar.addmm_(sum_bar, layer.coordinates[self.network].t())
            if depth > 0:
                bar = self.products.of(sum_bar, _hidden(layer, self.network).t())

    def _forward(
        self, kept: Sequence[Tensor], direction: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Hidden values and slopes; along a direction also the slopes' changes and the values' tangents."""
        values: list[Tensor] = []
        slopes: list[Tensor] = []
        bends: list[Tensor] = []
        tangents: list[Tensor] = []
        for depth, of_layer in enumerate(kept):
            if direction is None:
                value, slope = self.activation.derivatives(of_layer)
                assert value is not None
            else:
                value, slope, curvature = self.activation.second_derivatives(of_layer)
                tangent = self._tangent(depth, tangents, direction)
                bends.append(curvature.mul_(tangent))
                tangents.append(tangent.mul_(slope))
            values.append(value)
            slopes.append(slope)
        return values, slopes, bends, tangents

    def _tangent(self, depth: int, tangents: Sequence[Tensor], direction: Tensor) -> Tensor:
        """How the sums before an activation change along the direction."""
        layer = self.layers[depth]
        if layer.coordinates is None:
            return self.products.of(tangents[-1], _hidden(layer, self.network))
        seen = direction @ layer.coordinates[self.network]
        return seen if depth == 0 else self.products.onto(seen, tangents[-1], _hidden(layer, self.network))

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
            self.products.onto(hidden_bar[self.network], values[depth - 1].t(), sum_bar)
            if through is not None:
                self.products.onto(hidden_bar[self.network], tangents[depth - 1].t(), through)
        if coordinates_bar is not None:
            coordinates_bar[self.network].addmm_(self.x.t(), sum_bar)
            if through is not None and direction is not None:
                coordinates_bar[self.network].addmm_(direction.t(), through)
        if constant_bar is not None:
            if self.layers[depth].coordinates is not None:
                self.runs.add(constant_bar, self.rows, sum_bar)
            else:
                constant_bar[self.network] += sum_bar.sum(0)
