"""The fast identity field against the plain one, and what its blending promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.blending import active_pairs, anchor_weight
from model.config import PAPER_FIELD, IdentityConfig
from model.deformation_field import DeformationField
from model.identity_field import IdentityField
from tests.model.plain_field import plain_sdf

CONFIGS = {
    "silu": IdentityConfig(global_dim=8, local_dim=4, hidden=(16, 16), anchor_hidden=(12,), coordinate_gain=2.0),
    "softplus with skip": IdentityConfig(
        global_dim=8, local_dim=4, hidden=(16, 9, 16), skip_layer=2, anchor_hidden=(12,), activation="softplus100"
    ),
}


def mean_anchors(pairs: int = 5, middle: int = 3) -> Tensor:
    """Anchors of a made-up head, model units: mirrored pairs interleaved, then some on the middle plane."""
    generator = torch.Generator().manual_seed(3)
    side = torch.rand(pairs, 3, generator=generator) * torch.tensor([0.3, 0.6, 0.6]) - torch.tensor([0.4, 0.3, 0.3])
    both = torch.stack([side, side * torch.tensor([-1.0, 1.0, 1.0])], 1).reshape(-1, 3)
    centre = torch.rand(middle, 3, generator=generator) * 0.6 - 0.3
    centre[:, 0] = 0
    return torch.cat([both, centre])


HYPER_DIMS = (0, 2)


def a_field(config: IdentityConfig, hyper_dim: int = 0) -> tuple[IdentityField, Tensor, Tensor, Tensor]:
    """A field with random weights in float64, codes of two people, points, and whose each point is."""
    generator = torch.Generator().manual_seed(0)
    field = IdentityField(config, mean_anchors(), 5, generator, hyper_dim).double()
    reach = torch.cat([field.reach, field.reach.new_full((1,), config.background_reach_units)])
    # what was rounded to single precision when the field was made, as exact as the rest
    field.coordinate_scale = field.coordinate_scale.sign() * (config.coordinate_gain / reach)[:, None]
    z_id = 0.5 * torch.randn(2, field.layout.size, generator=generator, dtype=torch.float64)
    points = torch.rand(60, 3, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    subject = torch.randint(0, 2, (60,), generator=generator)
    hyper = torch.randn(60, hyper_dim, generator=generator, dtype=torch.float64)
    points = torch.cat([points, hyper], 1)
    return field, z_id, points, subject


@pytest.mark.parametrize("hyper_dim", HYPER_DIMS)
@pytest.mark.parametrize("name", CONFIGS)
def test_fast_field_is_the_plain_one(name: str, hyper_dim: int) -> None:
    field, z_id, points, subject = a_field(CONFIGS[name], hyper_dim)
    with torch.no_grad():
        expected = plain_sdf(field, z_id, points, subject)
        assert torch.allclose(field.sdf(field.prepare(z_id), points, subject), expected, atol=1e-9)
        single = field.float()
        got = single.sdf(single.prepare(z_id.float()), points.float(), subject)
    assert torch.allclose(got, expected.float(), atol=1e-5)


@pytest.mark.parametrize("hyper_dim", HYPER_DIMS)
@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_and_its_derivatives_are_those_of_autograd(name: str, hyper_dim: int) -> None:
    field, z_id, points, subject = a_field(CONFIGS[name], hyper_dim)
    generator = torch.Generator().manual_seed(1)
    pull, twist = torch.randn(60, generator=generator).double(), torch.randn(60, 3, generator=generator).double()
    z_id.requires_grad_()
    points.requires_grad_()
    wanted = [z_id, points, *field.parameters()]

    plain = plain_sdf(field, z_id, points, subject)
    (plain_gradient,) = torch.autograd.grad(plain.sum(), points, create_graph=True)
    plain_gradient = plain_gradient[:, :3]  # hyper coordinates are held
    expected = torch.autograd.grad((plain * pull).sum() + (plain_gradient * twist).sum(), wanted)

    value, gradient = field.sdf_and_gradient(field.prepare(z_id), points, subject, create_graph=True)
    got = torch.autograd.grad((value * pull).sum() + (gradient * twist).sum(), wanted)
    close = 1e-8 if name == "silu" else 1e-5  # autograd takes softplus for linear beyond 20, where 2e-9 is missing
    assert torch.allclose(gradient, plain_gradient, atol=close)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, atol=close * float(other.abs().max() + 1))


def test_value_alone_has_the_same_derivatives() -> None:
    field, z_id, points, subject = a_field(CONFIGS["silu"])
    z_id.requires_grad_()
    wanted = [z_id, *field.parameters()]
    expected = torch.autograd.grad(plain_sdf(field, z_id, points, subject).square().sum(), wanted)
    got = torch.autograd.grad(field.sdf(field.prepare(z_id), points, subject).square().sum(), wanted)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9 * float(other.abs().max() + 1))


def test_points_without_hyper_coordinates_have_them_at_zero() -> None:
    field, z_id, points, subject = a_field(CONFIGS["silu"], 2)
    bare = field.sdf(field.prepare(z_id), points[:, :3], subject)
    points[:, 3:] = 0
    assert torch.equal(bare, field.sdf(field.prepare(z_id), points, subject))


def test_many_points_in_parts_are_the_same() -> None:
    field, z_id, _, _ = a_field(CONFIGS["silu"])
    points = torch.rand(70000, 3, dtype=torch.float64) - 0.5
    with torch.no_grad():
        prepared = field.prepare(z_id[:1])
        whole = field.sdf(prepared, points)
        value, _ = field.sdf_and_gradient(prepared, points)
        tail = field.sdf(prepared, points[-100:])
    assert torch.allclose(whole, value, atol=1e-12)
    assert torch.allclose(whole[-100:], tail, atol=1e-12)


def test_mirrored_person_has_the_mirrored_head() -> None:
    """Pairs share weights: swapping their codes and mirroring the points changes their fields not at all."""
    field, z_id, points, _ = a_field(CONFIGS["silu"])
    z_global, local = field.layout.split(z_id[:1])
    swap = torch.arange(field.layout.anchors + 1)
    swap[:10] ^= 1
    mirrored_id = torch.cat([z_global, local[:, swap].flatten(1)], 1)
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    anchors = mean_anchors().double()[None]
    # only points that no middle anchor reaches: those networks and the background are not mirrored
    far = ((points[:, None] - anchors[0, 10:]).norm(dim=2) > field.reach[10:]).all(1)
    pairs = active_pairs(points[far], anchors, None, field.reach)
    assert len(pairs.point) > 0
    with torch.no_grad():
        for side, codes, here in ((0, z_id[:1], points), (1, mirrored_id, points * flip)):
            prepared = field.prepare(codes, anchors)
            rows = field._rows(prepared, here[far], None)
            in_pairs = pairs.anchor < 10
            if side == 0:
                one = sorted(rows.x[: len(in_pairs)][in_pairs].tolist())
            else:
                other = sorted(rows.x[: len(in_pairs)][in_pairs].tolist())
    assert torch.allclose(torch.tensor(one), torch.tensor(other))


def test_weight_and_slope_vanish_where_an_anchor_is_dropped() -> None:
    reach = torch.tensor([0.25], dtype=torch.float64)
    for share, bound in ((0.999, 1e-4), (0.99999, 1e-8), (1.0, 0.0), (1.3, 0.0)):
        weight, slope = anchor_weight(torch.tensor([[share * 0.25, 0, 0]], dtype=torch.float64), reach, 4.0)
        assert float(weight) <= bound
        assert float(slope.abs().max()) <= 40 * bound**0.5 * 0.25


def test_far_space_belongs_to_the_background() -> None:
    field, z_id, _, _ = a_field(CONFIGS["silu"])
    far = torch.tensor([[5.0, 5.0, 5.0], [-4.0, 0.0, 3.0]], dtype=torch.float64)
    with torch.no_grad():
        values, gradients = field.sdf_and_gradient(field.prepare(z_id), far)
    assert torch.isfinite(values).all()
    assert (gradients.norm(dim=1) > 1e-3).all(), "far space must not be a plateau"


def test_paper_sizes_have_the_papers_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(39, 3, generator=generator)
    identity = IdentityField(PAPER_FIELD.identity, anchors, 16, generator)
    deformation = DeformationField(PAPER_FIELD.deformation, identity.layout.size, 39, generator)
    networks = [*identity.hidden_weights, *identity.input_weights, *identity.biases]
    compress = deformation.compress_weight.numel() + deformation.compress_bias.numel()
    assert identity.layout.size == 1344
    assert sum(p.numel() for p in networks) == 2_901_648
    assert sum(p.numel() for p in identity.anchors_head.parameters()) == 112_501
    assert compress == 46_784
    assert sum(p.numel() for p in deformation.parameters()) - compress == 1_315_096
