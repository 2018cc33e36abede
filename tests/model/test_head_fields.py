"""A head with its codes given: both directions of the deformation behind one interface."""

import pytest
import torch
from torch import Tensor

from model.config import DeformationConfig, IdentityConfig
from model.deformation_field import DeformationField
from model.head_fields import HeadFields
from model.identity_field import IdentityField

DIRECTIONS = {
    "forward": DeformationConfig(expression_dim=3, compressed_dim=6, hidden=(16, 16), skip_layer=None),
    "backward": DeformationConfig(
        direction="backward", hyper_dim=2, expression_dim=3, compressed_dim=6, hidden=(16, 16), skip_layer=None
    ),
}


def some_fields(direction: str) -> tuple[HeadFields, Tensor, Tensor, Tensor]:
    """Random fields that move points by some hundredths, codes (1, D) and (1, 3), and points (40, 3)."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(5, 3, generator=generator) - 0.5
    anchors[1], anchors[3] = anchors[0] * torch.tensor([-1, 1, 1]), anchors[2] * torch.tensor([-1, 1, 1])
    config = DIRECTIONS[direction]
    small = IdentityConfig(global_dim=4, local_dim=3, hidden=(16, 16))
    identity = IdentityField(small, anchors, 2, generator, config.hyper_dim)
    deformation = DeformationField(config, identity.layout.size, 5, generator)
    z, e = torch.randn(1, identity.layout.size, generator=generator), torch.randn(1, 3, generator=generator)
    return HeadFields(identity, deformation), z, e, torch.rand(40, 3, generator=generator) - 0.5


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_head_for_each_point_is_the_shared_head_many_times(direction: str) -> None:
    fields, z, e, x = some_fields(direction)
    shared, each = fields.bind(z, e), fields.bind(z.expand(40, -1), e.expand(40, -1))
    assert torch.allclose(shared.sdf(x), each.sdf(x), atol=1e-6)
    assert torch.allclose(shared.displacement(x), each.displacement(x), atol=1e-6)
    assert torch.allclose(shared.jacobian(x), each.jacobian(x), atol=1e-5)
    slow = torch.autograd.functional.jacobian(lambda p: p + shared.displacement(p[None])[0], x[0])
    assert torch.allclose(shared.jacobian(x)[0], slow, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_two_ways_undo_each_other(direction: str) -> None:
    fields, z, e, x = some_fields(direction)
    bound = fields.bind(z, e)
    there = bound.posed(x)
    back = bound.canonical(there.place)
    assert there.found.all()
    assert back.found.all()
    assert (there.place - x).norm(dim=1).min() > 1e-3
    assert torch.allclose(back.place, x, atol=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_distance_of_posed_points_and_its_derivatives(direction: str) -> None:
    """Against differences of the distance with the place found anew, so that no derivative can be lost on the way."""
    fields, z, e, posed = some_fields(direction)
    fields.identity.double()
    fields.deformation.double()
    z, e, posed = z.double(), e.double(), posed.double()

    def distance(z: Tensor, e: Tensor, posed: Tensor) -> Tensor:
        bound = fields.bind(z, e)
        return bound.distance(posed, bound.canonical(posed).place)

    inputs = [one.clone().requires_grad_() for one in (z, e, posed)]
    got = torch.autograd.grad(distance(*inputs).sum(), inputs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for place, one in enumerate((z, e, posed)):
            way = torch.randn(one.shape, generator=generator).double()
            ends = [
                distance(*(other + sign * 1e-3 * way if n == place else other for n, other in enumerate((z, e, posed))))
                for sign in (1, -1)
            ]
            expected = float((ends[0] - ends[1]).sum()) / 2e-3
            assert abs(float((got[place] * way).sum()) - expected) < 2e-2 * abs(expected) + 1e-2


def test_hyper_coordinates_change_the_shape_alone() -> None:
    fields, z, e, posed = some_fields("backward")
    bound = fields.bind(z, e)
    came_from = fields.deformation.canonical(bound.prepared_deformation, posed)
    assert torch.allclose(came_from[:, :3], bound.canonical(posed).place, atol=1e-6)
    distance = bound.distance(posed, posed)
    assert torch.allclose(distance, bound.sdf(came_from))
    assert (distance - bound.sdf(came_from[:, :3])).abs().max() > 1e-3


def test_each_point_has_its_own_derivatives_by_codes() -> None:
    fields, z, _, x = some_fields("forward")
    x = x[:6]
    copies = z.expand(6, -1).clone().requires_grad_(True)
    (fast,) = torch.autograd.grad(fields.bind(copies, torch.zeros(6, 3)).sdf(x).sum(), copies)
    slow = torch.autograd.functional.jacobian(lambda code: fields.bind(code, torch.zeros(1, 3)).sdf(x), z)[:, 0]
    assert torch.allclose(fast, slow, atol=1e-5)
