import pytest
import torch
from torch import Tensor

from model.root_finding import find_canonical, implicit_canonical, posed_jacobian, safe_inverse


def twist(x: Tensor, code: Tensor) -> Tensor:
    """A twist about y, a stretch and a smooth bump: analytic, invertible for moderate codes."""
    angle = code[0] * x[:, 1]
    cos, sin = torch.cos(angle), torch.sin(angle)
    turned = torch.stack([cos * x[:, 0] + sin * x[:, 2], x[:, 1], cos * x[:, 2] - sin * x[:, 0]], 1)
    bump = 0.1 * code[1] * torch.exp(-(x**2).sum(1) / 0.1)
    return turned - x + bump[:, None] * torch.tensor([0.3, -1.0, 0.5], dtype=x.dtype)


def points(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 0.5) * 1.2


@pytest.mark.parametrize(("turn", "bump"), [(0.0, 0.0), (0.8, 1.0), (-1.2, 0.5)])
def test_finds_where_posed_points_come_from(turn: float, bump: float) -> None:
    code = torch.tensor([turn, bump])
    x = points(2000)
    roots = find_canonical(lambda p: twist(p, code), x + twist(x, code))
    assert roots.converged.float().mean() > 0.999
    assert (roots.canonical - x).norm(dim=1)[roots.converged].max() < 1e-4


def test_without_deformation_nothing_is_iterated() -> None:
    x = points(50)
    roots = find_canonical(lambda p: 0 * p, x)
    assert roots.steps == 0
    assert roots.converged.all()
    assert torch.equal(roots.canonical, x)


def test_a_warm_start_saves_steps() -> None:
    code, near = torch.tensor([0.8, 1.0]), torch.tensor([0.79, 0.99])
    x = points(500)
    posed = x + twist(x, code)
    cold = find_canonical(lambda p: twist(p, code), posed)
    warm = find_canonical(
        lambda p: twist(p, code), posed, start=find_canonical(lambda p: twist(p, near), posed).canonical
    )
    assert warm.steps < cold.steps
    assert torch.allclose(cold.canonical, warm.canonical, atol=1e-4)


def test_converged_points_leave_the_batch() -> None:
    sizes: list[int] = []
    code = torch.tensor([0.8, 1.0])

    def counted(p: Tensor) -> Tensor:
        sizes.append(len(p))
        return twist(p, code)

    x = points(1000)
    posed = x + twist(x, code)
    posed[:900] = torch.tensor([0.0, 0.0, 0.0]) + twist(torch.zeros(1, 3), code)
    find_canonical(counted, posed, start=torch.cat([torch.zeros(900, 3), posed[900:]]))
    assert sizes[0] == 1000
    assert max(sizes[1:]) <= 100


def test_points_without_a_root_are_marked() -> None:
    def flatten(p: Tensor) -> Tensor:  # everything lands on the plane y = 0
        return torch.stack([torch.zeros_like(p[:, 0]), -p[:, 1], torch.zeros_like(p[:, 0])], 1)

    posed = torch.tensor([[0.1, 0.0, 0.2], [0.1, 0.3, 0.2]])
    roots = find_canonical(flatten, posed)
    assert roots.converged.tolist() == [True, False]
    assert torch.isfinite(roots.canonical).all()


def test_jacobian_and_inverse_against_autograd() -> None:
    code = torch.tensor([0.8, 1.0], dtype=torch.float64)
    x = points(5, dtype=torch.float64)
    J = posed_jacobian(lambda p: twist(p, code), x)
    slow = torch.stack([torch.autograd.functional.jacobian(lambda q: q + twist(q[None], code)[0], p) for p in x])
    assert torch.allclose(J, slow)
    assert torch.allclose(safe_inverse(J), torch.linalg.inv(J))
    assert torch.equal(safe_inverse(torch.zeros(1, 3, 3)), torch.eye(3)[None])


def test_implicit_gradients_match_finite_differences() -> None:
    x = points(20, dtype=torch.float64)
    truth = torch.tensor([0.7, 0.8], dtype=torch.float64)
    observed = x + twist(x, truth)

    def solve(code: Tensor, shift: Tensor) -> Tensor:
        moved = observed + shift
        bound = code.detach()
        roots = find_canonical(lambda p: twist(p, bound), moved, tolerance=1e-13, max_steps=40)
        inverse = safe_inverse(posed_jacobian(lambda p: twist(p, bound), roots.canonical))
        reposed = roots.canonical + twist(roots.canonical, code)
        return implicit_canonical(roots.canonical, reposed, moved, inverse)

    code = torch.tensor([0.6, 0.9], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([0.01, -0.02, 0.005], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, (code, shift), eps=1e-6, atol=1e-6)
