"""RMS norms under mixes, against the formula row by row."""

import pytest
import torch
from torch import Tensor, nn

from taskmix_composer.kernels.native import library
from taskmix_composer.kernels.norms import scale_norms
from taskmix_server.engine.vllm.deltas import MaskedTask, SiteDelta
from taskmix_server.engine.vllm.layers import CurrentStep, Scale, mixed_norm, torch_scale_norms
from taskmix_server.engine.vllm.sites import Part, Site, SiteKind
from taskmix_server.engine.vllm.slots import Slots
from taskmix_server.engine.vllm.steps import Planner, ResidentVariant
from taskmix_server.engine.vllm.weights import Segment

WIDTH, NAME, EPSILON = 48, "model.norm", 1e-5
SCALES = [torch_scale_norms, *([scale_norms] if library.available() else [])]


class Norm(nn.Module):
    """As vLLM's, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH), requires_grad=False)
        self.variance_epsilon = EPSILON
        self.num_calls = 0

    def forward(self, x: Tensor, residual: Tensor | None = None) -> object:
        self.num_calls += 1
        if residual is not None:
            x = residual.add_(x)
        out = normalized(x, self.weight.expand(len(x), -1))
        return out if residual is None else (out, residual)


def normalized(x: Tensor, weights: Tensor) -> Tensor:
    wide = x.double()
    scaled = wide / (wide.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weights.double()
    return scaled.to(x.dtype)


class World:
    """A norm that one task changes, and steps over rows that are mixed by half, fully or not."""

    def __init__(self, scale: Scale) -> None:
        torch.manual_seed(5)
        self.norm, self.current = Norm(), CurrentStep()
        self.change = torch.randn(WIDTH)
        vectors = ((Segment(0, WIDTH, 0), self.change),)
        self.task = MaskedTask("task", (), {NAME: SiteDelta((), (), vectors)}, 0)
        site = Site(NAME, SiteKind.NORM, (Part(NAME, 0, WIDTH),), self.norm)
        self.run = mixed_norm(site, self.current, scale)

    def begin(self, coefficients: list[float]) -> Tensor:
        """A step whose rows have these coefficients; what each row's weight is then."""
        variants = {
            index: ResidentVariant(((self.task, torch.tensor([value])),))
            for index, value in enumerate(coefficients, start=1)
            if value
        }
        ids = [index if value else 0 for index, value in enumerate(coefficients, start=1)]
        planner = Planner(1, torch.device("cpu"), Slots((self.task,)))
        self.current.begin(planner.step(ids, ids, variants))
        return self.norm.weight + torch.tensor(coefficients)[:, None] * self.change


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("coefficients", [[0.5, -1.0, 2.0], [0.5, 0.0, 2.0]], ids=["all", "some"])
@pytest.mark.parametrize("has_residual", [False, True])
def test_rows_have_weights_of_their_own(
    scale: Scale, coefficients: list[float], has_residual: bool
) -> None:
    world = World(scale)
    weights = world.begin(coefficients)
    x, residual = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    summed = x + residual if has_residual else x
    wanted = normalized(summed, weights)
    base = normalized(summed, world.norm.weight.expand(3, -1))
    if has_residual:
        out, kept = world.run(x.clone(), residual)
        assert torch.equal(kept, summed)
    else:
        out = world.run(x.clone())
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)
    for row, coefficient in enumerate(coefficients):
        assert torch.equal(out[row], base[row]) or coefficient, "the base's row has other bits"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("coefficients", "num_calls"), [([1.0, 2.0], 0), ([1.0, 0.0], 1), ([0.0, 0.0], 1)]
)
def test_the_base_computes_only_where_a_row_needs_it(
    scale: Scale, coefficients: list[float], num_calls: int
) -> None:
    world = World(scale)
    world.begin(coefficients)
    world.run(torch.randn(2, WIDTH), torch.randn(2, WIDTH))
    assert world.norm.num_calls == num_calls
