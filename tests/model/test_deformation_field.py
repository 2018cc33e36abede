"""The expression field against a plain network and finite differences."""

from __future__ import annotations

import math

import torch

from model.config import DeformationConfig
from model.deformation_field import DeformationField

CONFIG = DeformationConfig(expression_dim=6, compressed_dim=5, hidden=(16, 12, 16), skip_layer=2)


def test_fast_field_is_the_plain_one_and_its_jacobian_is_right() -> None:
    generator = torch.Generator().manual_seed(0)
    field = DeformationField(CONFIG, 20, 4, generator).double()
    z_id, z_ex = torch.randn(3, 20).double(), torch.randn(3, 6).double()
    anchors = torch.randn(3, 4, 3).double()
    points = torch.randn(40, 3).double().requires_grad_()
    index = torch.randint(0, 3, (40,))
    prepared = field.prepare(z_id, anchors, z_ex)
    moved = field.displacement(prepared, points, index)

    compressed = torch.cat([z_id, anchors.flatten(1)], 1) @ field.compress_weight + field.compress_bias
    given = torch.cat([points * CONFIG.coordinate_gain, compressed[index], z_ex[index]], 1)
    silu = torch.nn.functional.silu
    h = silu(given @ field.input_weights[0] + field.biases[0])
    h = silu(h @ field.hidden_weights[0] + field.biases[1])
    skip = torch.cat([field.hidden_weights[1], field.input_weights[1]])
    h = silu(torch.cat([h, given], 1) @ skip / math.sqrt(2) + field.biases[2])
    expected = h @ field.hidden_weights[2] + field.biases[3]
    assert torch.allclose(moved, expected, atol=1e-12)

    value, jacobian = field.displacement_and_jacobian(prepared, points, index)
    assert torch.allclose(value, expected, atol=1e-12)
    for axis in range(3):
        (row,) = torch.autograd.grad(expected[:, axis].sum(), points, retain_graph=True)
        assert torch.allclose(jacobian[:, axis], row, atol=1e-12)
