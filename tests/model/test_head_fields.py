import torch

from model.config import DeformationConfig, IdentityConfig
from model.deformation_field import DeformationField
from model.head_fields import HeadFields
from model.identity_field import IdentityField


def test_a_head_for_each_point_is_the_shared_head_many_times() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.rand(5, 3, generator=generator) - 0.5
    anchors[1], anchors[3] = anchors[0] * torch.tensor([-1, 1, 1]), anchors[2] * torch.tensor([-1, 1, 1])
    identity = IdentityField(IdentityConfig(global_dim=4, local_dim=3, hidden=(16, 16)), anchors, 2, generator)
    deformation = DeformationField(
        DeformationConfig(expression_dim=5, compressed_dim=6, hidden=(16, 16), skip_layer=None),
        identity.layout.size,
        5,
        generator,
    )
    fields = HeadFields(identity, deformation)
    z, e = torch.randn(1, identity.layout.size, generator=generator), torch.randn(1, 5, generator=generator)
    x = torch.rand(40, 3, generator=generator) - 0.5
    shared, each = fields.bind(z, e), fields.bind(z.expand(40, -1), e.expand(40, -1))
    assert torch.allclose(shared.sdf(x), each.sdf(x), atol=1e-6)
    assert torch.allclose(shared.displacement(x), each.displacement(x), atol=1e-6)
    assert torch.allclose(shared.posed_jacobian(x), each.posed_jacobian(x), atol=1e-5)
    slow = torch.autograd.functional.jacobian(lambda p: p + shared.displacement(p[None])[0], x[0])
    assert torch.allclose(shared.posed_jacobian(x)[0], slow, atol=1e-5)


def test_each_point_has_its_own_derivatives_by_codes() -> None:
    generator = torch.Generator().manual_seed(1)
    anchors = torch.rand(4, 3, generator=generator) - 0.5
    identity = IdentityField(IdentityConfig(global_dim=4, local_dim=3, hidden=(16, 16)), anchors, 0, generator)
    z = torch.randn(1, identity.layout.size, generator=generator)
    x = torch.rand(6, 3, generator=generator) - 0.5
    deformation = DeformationField(DeformationConfig(expression_dim=2), identity.layout.size, 4, generator)
    fields = HeadFields(identity, deformation)
    copies = z.expand(6, -1).clone().requires_grad_(True)
    (fast,) = torch.autograd.grad(fields.bind(copies, torch.zeros(6, 2)).sdf(x).sum(), copies)
    slow = torch.autograd.functional.jacobian(lambda code: fields.bind(code, torch.zeros(1, 2)).sdf(x), z)[:, 0]
    assert torch.allclose(fast, slow, atol=1e-5)
