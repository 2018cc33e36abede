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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.activations import Activation
from model.grouped_sweeps import Backward, Buffers, Group, Layer, Networks, Products, Runs


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
    outputs = layers[-1].width
    value = x.new_empty(len(x), outputs)
    jacobian = x.new_zeros(len(x), outputs, x.shape[1])
    networks = Networks(layers, activation, Products(False), Buffers(layers, groups, x))
    for network, rows in networks.buffers.blocks:
        slopes = networks.forward(network, x[rows], row[rows], value[rows], None, slopes=True)
        for output in range(outputs):
            networks.reverse(network, output, slopes, jacobian[rows, output], None)
    return value, jacobian


@dataclass(frozen=True)
class _Plan:
    activation: Activation
    groups: tuple[Group, ...]
    shapes: tuple[tuple[bool, bool], ...]
    with_gradient: bool
    save: bool
    products: Products

    def networks(self, tensors: Sequence[Tensor], x: Tensor) -> Networks:
        layers = [Layer(*parts) for parts in self.arranged(tensors)]  # type: ignore[arg-type]
        return Networks(layers, self.activation, self.products, Buffers(layers, self.groups, x))

    def arranged(self, tensors: Sequence[Tensor | None]) -> list[tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """What belongs to the layers' tensors, in their order, by layer."""
        rest = iter(tensors)
        return [
            (next(rest) if has_hidden else None, next(rest) if has_coordinates else None, next(rest))
            for has_hidden, has_coordinates in self.shapes
        ]


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


class _GroupedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, row: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        networks = plan.networks(tensors, x)
        widths = [layer.width for layer in networks.layers]
        value = x.new_empty(len(x), widths[-1])
        gradient = x.new_zeros(x.shape) if plan.with_gradient else None
        kept = [x.new_empty(len(x), width) for width in widths[:-1]] if plan.save else []
        adjoints = [x.new_empty(len(x), width) for width in widths[:-1]] if plan.save and plan.with_gradient else []
        for network, rows in networks.buffers.blocks:
            own = [whole[rows] for whole in kept] if plan.save else None
            slopes = networks.forward(network, x[rows], row[rows], value[rows], own, plan.with_gradient)
            if gradient is not None:
                keep = [whole[rows] for whole in adjoints] if plan.save else None
                networks.reverse(network, 0, slopes, gradient[rows], keep)
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
        networks = plan.networks(tensors, x)
        needs = ctx.needs_input_grad[3:]
        bars = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
        x_bar = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        if value_bar is None:
            value_bar = x.new_zeros(len(x), networks.layers[-1].width)
        if not plan.with_gradient:
            gradient_bar = None
        runs = Runs(row)
        for network, rows in networks.buffers.blocks:
            Backward(networks, plan.arranged(bars), network, x[rows], runs, rows).sweep(
                [whole[rows] for whole in kept],
                [whole[rows] for whole in adjoints],
                value_bar[rows],
                None if gradient_bar is None else gradient_bar[rows],
                None if x_bar is None else x_bar[rows],
            )
        return None, x_bar, None, *bars
