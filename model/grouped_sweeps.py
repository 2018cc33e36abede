"""The sweeps of many small networks over one block of rows: forward, back to the coordinates, and back to everything.

A block is a stretch of rows of one network, small enough for the cache. Intermediate results live in buffers that all
blocks share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.activations import Activation

_BLOCK_NUMBERS = 1 << 18
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

    @property
    def width(self) -> int:
        """Its outputs."""
        return self.constant.shape[1]


@dataclass(frozen=True)
class Group:
    """Rows ``start`` to ``stop`` belong to the network ``network``."""

    network: int
    start: int
    stop: int


@dataclass(frozen=True)
class Products:
    """Matrix products between hidden layers, in bfloat16 if ``half``."""

    half: bool

    def of(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """out = a b."""
        return out.copy_(a.bfloat16() @ b.bfloat16()) if self.half else torch.mm(a, b, out=out)

    def plus(self, constant: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """out = constant + a b."""
        return self.of(a, b, out).add_(constant) if self.half else torch.addmm(constant, a, b, out=out)

    def onto(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Add a b to z."""
        return z.add_(a.bfloat16() @ b.bfloat16()) if self.half else z.addmm_(a, b)


class Buffers:
    """Memory that the blocks of one pass share, by what it is used for."""

    def __init__(self, layers: Sequence[Layer], groups: Sequence[Group], x: Tensor) -> None:
        self.blocks = _blocks(layers, groups, x)
        self._like = x
        self._most = max((rows.stop - rows.start for _, rows in self.blocks), default=0)
        self._held: dict[tuple[str, int, int], Tensor] = {}

    def get(self, use: str, place: int, rows: int, width: int) -> Tensor:
        """A buffer (rows, width) for a use and a place, the same memory at every call."""
        key = (use, place, width)
        if key not in self._held:
            self._held[key] = self._like.new_empty(self._most, width)
        return self._held[key][:rows]


def _blocks(layers: Sequence[Layer], groups: Sequence[Group], x: Tensor) -> list[tuple[int, slice]]:
    """Cut the groups into blocks of rows that fit the cache; on an accelerator groups stay whole."""
    widest = max(layer.width for layer in layers)
    step = min(max(_BLOCK_NUMBERS // widest, _LEAST_ROWS), _MOST_ROWS) if x.device.type == "cpu" else max(len(x), 1)
    return [
        (group.network, slice(start, min(start + step, group.stop)))
        for group in groups
        for start in range(group.start, group.stop, step)
    ]


@dataclass(frozen=True)
class Networks:
    """What all sweeps of a pass share."""

    layers: Sequence[Layer]
    activation: Activation
    products: Products
    buffers: Buffers

    def hidden(self, depth: int, network: int) -> Tensor:
        """The weights (in, out) of a layer on the one before."""
        weights = self.layers[depth].hidden
        assert weights is not None
        return weights[network]

    def linear(self, depth: int, network: int, below: Tensor | None, x: Tensor, row: Tensor, out: Tensor) -> Tensor:
        """A layer before its activation."""
        layer = self.layers[depth]
        if layer.coordinates is None:
            assert below is not None
            return self.products.plus(layer.constant[network], below, self.hidden(depth, network), out)
        torch.index_select(layer.constant, 0, row, out=out)
        out.addmm_(x, layer.coordinates[network])
        return out if below is None else self.products.onto(out, below, self.hidden(depth, network))

    def forward(
        self, network: int, x: Tensor, row: Tensor, value: Tensor, kept: Sequence[Tensor] | None, slopes: bool
    ) -> list[Tensor]:
        """Put the networks' values into ``value`` and what the activations keep into ``kept``; returns the slopes."""
        found: list[Tensor] = []
        below: Tensor | None = None
        for depth, layer in enumerate(self.layers[:-1]):
            rows, width, side = len(x), layer.width, depth % 2
            z = self.buffers.get("sum", side, rows, width) if kept is None else kept[depth]
            self.linear(depth, network, below, x, row, z)
            if self.activation.keeps_value:
                below = self.activation.value(z, z)
                if slopes:
                    found.append(self.activation.derivatives(z, z, self.buffers.get("slope", depth, rows, width))[1])
            elif slopes:
                space = self.buffers.get("value", side, rows, width), self.buffers.get("slope", depth, rows, width)
                below, slope = self.activation.derivatives(z, *space)
                found.append(slope)
            else:
                below = self.activation.value(z, z if kept is None else self.buffers.get("value", side, rows, width))
        self.linear(len(self.layers) - 1, network, below, x, row, value)
        return found

    def reverse(
        self, network: int, output: int, slopes: Sequence[Tensor], gradient: Tensor, keep: Sequence[Tensor] | None
    ) -> None:
        """Add the gradient of an output with respect to the coordinates to ``gradient`` (m, c).

        ``keep`` receives the adjoint of each hidden layer's values.
        """
        last = len(self.layers) - 1
        adjoint = self.hidden(last, network)[:, output].expand(len(gradient), -1)
        if keep is not None:
            adjoint = keep[last - 1].copy_(adjoint)
        for depth in range(last - 1, -1, -1):
            layer = self.layers[depth]
            through = torch.mul(adjoint, slopes[depth], out=self.buffers.get("through", 0, len(gradient), layer.width))
            if layer.coordinates is not None:
                gradient.addmm_(through, layer.coordinates[network].t())
            if depth > 0:
                width = self.layers[depth - 1].width
                out = self.buffers.get("adjoint", 0, len(gradient), width) if keep is None else keep[depth - 1]
                adjoint = self.products.of(through, self.hidden(depth, network).t(), out)


class Runs:
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


class Backward:
    """One block's share of the gradients of weights and tables, added to ``bars``, which lie as the layers' tensors do.

    Args:
        networks: as in the forward pass.
        bars: weights on the layer before, weights on the coordinates and constants of each layer; None where unwanted.
        network: which one the block belongs to.
        x: (m, c) the block's coordinates.
        runs: of all rows.
        rows: the block's.
    """

    def __init__(
        self,
        networks: Networks,
        bars: Sequence[tuple[Tensor | None, Tensor | None, Tensor | None]],
        network: int,
        x: Tensor,
        runs: Runs,
        rows: slice,
    ) -> None:
        self.networks, self.bars, self.network, self.x, self.runs, self.rows = networks, bars, network, x, runs, rows
        self.values: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.bends: list[Tensor] = []
        self.tangents: list[Tensor] = []

    def sweep(
        self,
        kept: Sequence[Tensor],
        adjoints: Sequence[Tensor],
        value_bar: Tensor,
        direction: Tensor | None,
        x_bar: Tensor | None,
    ) -> None:
        """Carry the gradients of values (m, out) and of spatial gradients (``direction``, (m, c)) to all inputs."""
        self._forward(kept, direction)
        networks, network = self.networks, self.network
        last = len(networks.layers) - 1
        weight_bar, _, constant_bar = self.bars[last]
        if weight_bar is not None:
            networks.products.onto(weight_bar[network], self.values[-1].t(), value_bar)
            if direction is not None:
                weight_bar[network, :, 0] += self.tangents[-1].sum(0)
        if constant_bar is not None:
            constant_bar[network] += value_bar.sum(0)
        bar = torch.mm(value_bar, networks.hidden(last, network).t(), out=self._buffer("bar", last % 2, last - 1))
        for depth in range(last - 1, -1, -1):
            sum_bar = bar.mul_(self.slopes[depth])
            through = None
            if direction is not None:
                sum_bar.addcmul_(adjoints[depth], self.bends[depth])
                through = self.slopes[depth].mul_(adjoints[depth])
            self._add_weights(depth, sum_bar, through, direction)
            layer = networks.layers[depth]
            if x_bar is not None and layer.coordinates is not None:
                x_bar.addmm_(sum_bar, layer.coordinates[network].t())
            if depth > 0:
                out = self._buffer("bar", depth % 2, depth - 1)
                bar = networks.products.of(sum_bar, networks.hidden(depth, network).t(), out)

    def _buffer(self, use: str, place: int, depth: int) -> Tensor:
        return self.networks.buffers.get(use, place, len(self.x), self.networks.layers[depth].width)

    def _forward(self, kept: Sequence[Tensor], direction: Tensor | None) -> None:
        """Hidden values and slopes; along a direction also the slopes' changes and the values' tangents."""
        for depth, of_layer in enumerate(kept):
            space = self._buffer("value", depth, depth), self._buffer("slope", depth, depth)
            if direction is None:
                value, slope = self.networks.activation.derivatives(of_layer, *space)
            else:
                bend = self._buffer("bend", depth, depth)
                value, slope, bend = self.networks.activation.second_derivatives(of_layer, *space, bend)
                tangent = self._tangent(depth, direction)
                self.bends.append(bend.mul_(tangent))
                self.tangents.append(tangent.mul_(slope))
            self.values.append(value)
            self.slopes.append(slope)

    def _tangent(self, depth: int, direction: Tensor) -> Tensor:
        """How the sums before an activation change along the direction."""
        networks, coordinates = self.networks, self.networks.layers[depth].coordinates
        out = self._buffer("tangent", depth, depth)
        if coordinates is None:
            return networks.products.of(self.tangents[-1], networks.hidden(depth, self.network), out)
        torch.mm(direction, coordinates[self.network], out=out)
        return (
            out if depth == 0 else networks.products.onto(out, self.tangents[-1], networks.hidden(depth, self.network))
        )

    def _add_weights(self, depth: int, sum_bar: Tensor, through: Tensor | None, direction: Tensor | None) -> None:
        hidden_bar, coordinates_bar, constant_bar = self.bars[depth]
        onto = self.networks.products.onto
        if hidden_bar is not None:
            onto(hidden_bar[self.network], self.values[depth - 1].t(), sum_bar)
            if through is not None:
                onto(hidden_bar[self.network], self.tangents[depth - 1].t(), through)
        if coordinates_bar is not None:
            coordinates_bar[self.network].addmm_(self.x.t(), sum_bar)
            if through is not None and direction is not None:
                coordinates_bar[self.network].addmm_(direction.t(), through)
        if constant_bar is not None:
            if self.networks.layers[depth].coordinates is not None:
                self.runs.add(constant_bar, self.rows, sum_bar)
            else:
                constant_bar[self.network] += sum_bar.sum(0)
