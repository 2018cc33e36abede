"""Each loss by hand, and the same sum however many points are given gradients."""

from __future__ import annotations

import math

import pytest
import torch

from model.codes import IdentityLayout
from model.config import IdentityConfig, IdentityLossWeights, TrainingConfig
from model.identity_field import IdentityField
from model.losses import (
    IdentitySamplesBatch,
    clamped_distance_error,
    eikonal_error,
    identity_losses,
    middle_distance,
    normal_error,
    off_surface,
    symmetry_distance,
    total,
    weighted_mean,
)


def test_terms_by_hand() -> None:
    gradient = torch.tensor([[3.0, 0, 4.0], [0, 0, 1.0]])
    assert eikonal_error(gradient).tolist() == pytest.approx([4.0, 0.0], abs=1e-5)
    normal = torch.tensor([[0, 0, 1.0], [0, 0, 1.0]])
    on_face = normal_error(gradient, normal, torch.tensor([True, True]), 0.75, 0.5)
    off_face = normal_error(gradient, normal, torch.tensor([False, False]), 0.75, 0.5)
    assert on_face.tolist() == pytest.approx([math.sqrt(18), 0.0], abs=1e-5)
    assert off_face.tolist() == pytest.approx([0.375, 0.0], abs=1e-5)
    told, sdf = torch.tensor([0.3, -0.02, 0.3]), torch.tensor([0.2, 0.01, -0.3])
    assert clamped_distance_error(sdf, told, 0.1).tolist() == pytest.approx([0.0, 0.03, 0.2])
    assert off_surface(torch.tensor([0.0, -0.1])).tolist() == pytest.approx([1.0, math.exp(-1)])
    assert float(weighted_mean(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0]))) == 2.0
    assert float(weighted_mean(torch.tensor([1.0]), torch.tensor([0.0]))) == 0.0


def test_code_terms_see_their_parts_alone() -> None:
    layout = IdentityLayout(global_dim=2, local_dim=3, anchors=4, pairs=1)
    z_id = torch.zeros(1, layout.size)
    z_id[0, layout.slice_of_local(0)] = 1.0
    assert float(symmetry_distance(z_id, layout)) == pytest.approx(math.sqrt(3))
    assert float(middle_distance(z_id, layout)) == 0.0
    z_id[0, layout.slice_of_local(1)] = 1.0
    z_id[0, layout.slice_of_local(3)] = 2.0
    z_id[0, layout.slice_of_local(4)] = 9.0
    assert float(symmetry_distance(z_id, layout)) == pytest.approx(0.0, abs=1e-5)
    assert float(middle_distance(z_id, layout)) == pytest.approx(6.0)


def test_values_do_not_depend_on_which_points_are_given_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(5, 3, generator=generator) - 0.5
    field = IdentityField(IdentityConfig(global_dim=4, local_dim=3, hidden=(8, 8)), anchors, 2, generator)
    z_id = torch.randn(2, field.layout.size, generator=generator)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) - 0.5

    batch = IdentitySamplesBatch(
        anchors=drawn(2, 5, 3),
        surface=drawn(2, 20, 3),
        normal=drawn(2, 20, 3),
        surface_weight=drawn(2, 20) + 1,
        face=drawn(2, 20) > 0,
        near=drawn(2, 10, 3),
        near_sdf=drawn(2, 10),
        near_weight=drawn(2, 10) + 1,
        space=drawn(2, 6, 3),
        space_sdf=drawn(2, 6),
        space_weight=drawn(2, 6) + 1,
    )
    whole = TrainingConfig(surface_gradient_share=1, near_gradient_share=1, space_gradient_share=1)
    none = TrainingConfig(surface_gradient_share=0)
    half = TrainingConfig(surface_gradient_share=0.5, near_gradient_share=0.2)
    every, without, some = (
        identity_losses(field, field.prepare(z_id), z_id, batch, config) for config in (whole, none, half)
    )
    assert {"normals", "grad"} == set(every) - set(without)
    for name in without:
        assert float(every[name]) == pytest.approx(float(without[name]), rel=1e-5)
        assert float(some[name]) == pytest.approx(float(without[name]), rel=1e-5)
    weights = IdentityLossWeights()
    expected = sum(getattr(weights, name) * float(value) for name, value in every.items())
    assert float(total(every, weights)) == pytest.approx(expected, rel=1e-5)
    assert "middle_dist" not in every, "a weight of zero leaves the term out"
