"""D3PO against the official code's numbers and explicit Gaussian densities of a sampler step; and where it is flat."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from diffpref.errors import prediction_error
from diffpref.objectives import D3PO, DPO
from diffpref.types import Errors

LOG_2 = math.log(2)
Style = Literal["clamp", "ppo", "none"]
STYLES: list[Style] = ["clamp", "ppo", "none"]
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
reals = st.floats(-3, 3)


def double(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def errors_of(log_ratio: object, requires_grad: bool = False) -> Errors:
    r = double(log_ratio)
    return Errors(policy=(1 - 2 * r).requires_grad_(requires_grad), reference=torch.ones_like(r))


def gradient_of(objective: D3PO, log_ratio: object, scores: object) -> Tensor:
    """With respect to the log-ratios."""
    errors = errors_of(log_ratio, requires_grad=True)
    return -2 * torch.autograd.grad(objective(errors, double(scores)).sum(), errors.policy)[0]


def test_golden_numbers() -> None:
    """methods.md 12."""
    scores = double([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    loss = D3PO()(errors_of([[0.05, -0.05], [0.5, -0.5], [0.5, -0.5]]), scores)
    torch.testing.assert_close(loss, double([0.6881597, 0.6831640, 0.6931472]), rtol=0, atol=5e-8)
    assert D3PO() == D3PO(beta=0.1, clip=0.1, clip_style="clamp")
    assert D3PO.candidates == "chain_pairs" and D3PO.scaling == "none"


@pytest.mark.parametrize("shift", [0.001, 0.03, 1.0])
@pytest.mark.parametrize("clip", [0.1, 0.3])
def test_is_the_clipped_ratio_of_explicit_gaussian_densities(shift: float, clip: float) -> None:
    """The official code's formula, from the densities of a stored next latent, mean over its elements."""
    generator = torch.Generator().manual_seed(0)
    latent, reference = (torch.randn(5, 2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    # Towards the latent, so that its ratio rises, or away from it.
    way = double([[1, -1], [-1, 1], [1, 1], [-1, -1], [1, -1]]).reshape(5, 2, 1, 1, 1)
    policy, std = reference + shift * way * (latent - reference), double([0.3, 0.5, 1.0, 0.7, 0.8])
    densities = (Normal(mean, std.reshape(5, 1, 1, 1, 1)).log_prob(latent) for mean in (policy, reference))
    log_ratio = next(densities).flatten(2).mean(2) - next(densities).flatten(2).mean(2)
    rho = log_ratio.exp().clamp(1 - clip, 1 + clip)
    scores = double([[1, 0], [0, 1], [3, 2], [-5, 4], [2, 2]])
    h = double([[1, -1], [-1, 1], [1, -1], [-1, 1], [0, 0]])
    expected = -torch.log(torch.sigmoid(2.0 * (h[:, 0] * rho[:, 0].log() + h[:, 1] * rho[:, 1].log())))

    errors = Errors(*(prediction_error(mean, latent, std**-2) for mean in (policy, reference)))
    torch.testing.assert_close(D3PO(beta=2.0, clip=clip)(errors, scores), expected, rtol=1e-12, atol=1e-12)
    inside = (log_ratio.exp() - 1).abs() < clip
    assert inside.all() if shift == 0.001 else inside.any() and not inside.all() if shift == 0.03 else not inside.any()


@quick
@given(reals, reals, st.sampled_from([[1.0, 0.0], [0.2, 0.9], [-7.0, -7.0]]), st.floats(0.01, 10))
def test_without_a_clip_it_is_dpo_on_the_step(r0: float, r1: float, scores: list[float], beta: float) -> None:
    errors, scores_ = errors_of([[r0, r1]]), double([scores])
    torch.testing.assert_close(
        D3PO(beta, clip_style="none")(errors, scores_), DPO(beta)(errors, scores_), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("style", STYLES)
@quick
@given(st.floats(-0.09, 0.09), st.floats(-0.09, 0.09))
def test_inside_the_clip_all_styles_agree(style: Style, r0: float, r1: float) -> None:
    errors, scores = errors_of([[r0, r1]]), double([[0.0, 1.0]])
    assert torch.equal(D3PO(clip_style=style)(errors, scores), D3PO(clip_style="none")(errors, scores))


# Log-ratios of the better and the worse picture, and whether each keeps its gradient in the two clipped styles.
DRIFTS = [
    # better up and worse down is won; the other way round has drifted the wrong way
    ((0.5, -0.5), (False, False), (False, False)),
    ((-0.5, 0.5), (False, False), (True, True)),
    ((0.5, 0.5), (False, False), (False, True)),
    ((-0.5, -0.5), (False, False), (True, False)),
    # just in and just out: log 1.1 = 0.0953, log 0.9 = -0.1054
    ((0.095, -0.105), (True, True), (True, True)),
    ((0.096, -0.106), (False, False), (False, False)),
    ((-0.105, 0.095), (True, True), (True, True)),
    ((-0.106, 0.096), (False, False), (True, True)),
    ((0.1, -0.1), (False, True), (False, True)),
    ((-0.1, 0.1), (True, False), (True, True)),
]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("drift", "clamp", "ppo"), DRIFTS)
def test_where_the_gradient_is_0(
    drift: tuple[float, float], clamp: tuple[bool, bool], ppo: tuple[bool, bool], flipped: bool
) -> None:
    order = -1 if flipped else 1
    kept: tuple[tuple[Style, tuple[bool, bool]], ...] = (("clamp", clamp), ("ppo", ppo), ("none", (True, True)))
    for style, expected in kept:
        gradient = gradient_of(D3PO(clip_style=style), [list(drift)[::order]], [[1.0, 0.0][::order]])[0][
            [1, 0] if flipped else [0, 1]
        ]
        assert tuple((gradient != 0).tolist()) == expected, style
        # What is left pulls the better one up and the worse one down.
        assert gradient[0] <= 0 <= gradient[1]


@quick
@given(reals, reals)
def test_ppo_is_the_worse_of_clamped_and_unclamped(r0: float, r1: float) -> None:
    """Each log-ratio counts for what it gains at most: the pessimistic minimum of PPO, term by term."""
    low, high = math.log(0.9), math.log(1.1)
    gain = min(r0, min(max(r0, low), high)) + min(-r1, -min(max(r1, low), high))
    got = D3PO(beta=1.5, clip_style="ppo")(errors_of([[r0, r1]]), double([[1.0, 0.0]]))
    assert got.item() == pytest.approx(math.log1p(math.exp(-1.5 * gain)), rel=1e-10)
    assert got >= D3PO(beta=1.5)(errors_of([[r0, r1]]), double([[1.0, 0.0]])) - 1e-15


@pytest.mark.parametrize("style", STYLES)
def test_equal_scores_prefer_neither(style: Style) -> None:
    at = [[0.05, -0.02], [0.5, -0.5], [-0.5, 0.5]]
    loss = D3PO(clip_style=style)(errors_of(at), double([[0.3, 0.3]] * 3))
    torch.testing.assert_close(loss, double([LOG_2] * 3), rtol=0, atol=1e-15)
    assert torch.equal(gradient_of(D3PO(clip_style=style), at, [[0.3, 0.3]] * 3), double([[0.0, 0.0]] * 3))


@pytest.mark.parametrize("style", STYLES)
def test_only_the_order_of_the_scores_counts(style: Style) -> None:
    losses = D3PO(clip_style=style)(errors_of([[0.07, -0.3]] * 3), double([[1e-6, 0.0], [-3.0, -900.0], [1.0, 0.0]]))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("style", STYLES)
def test_gradcheck(style: Style) -> None:
    """Inside and outside the clip, away from its edges."""
    at = double([[0.05, -0.03], [0.5, -0.02], [-0.4, 0.3], [0.08, 0.6]])
    reference = torch.ones_like(at).requires_grad_()
    scores = double([[1, 0], [0, 1], [1, 0], [0, 0]])
    objective = D3PO(beta=3.0, clip_style=style)
    policy = (1 - 2 * at).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, r: objective(Errors(p, r), scores), (policy, reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("drift", [1e4, 1e30])
def test_extreme_drifts(drift: float, dtype: torch.dtype) -> None:
    policy = torch.tensor([[0.0, drift], [drift, 0.0]], dtype=dtype, requires_grad=True)
    scores = torch.tensor([[1.0, 0.0]] * 2, dtype=dtype)
    # The better picture at a ratio of 1 and the worse one at 0 (won), and the other way round (lost).
    bound, far = -0.1 * math.log(0.9), 0.1 * drift / 2
    for style, won, lost in (("clamp", bound, bound), ("ppo", bound, far), ("none", far, far)):
        loss = D3PO(clip_style=style)(Errors(policy, torch.zeros_like(policy)), scores)
        assert torch.autograd.grad(loss.sum(), policy)[0].isfinite().all()
        expected = double([math.log1p(math.exp(-won)), lost + math.log1p(math.exp(-lost))])
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-12)


def test_bounds_hold_in_half_precision_scores() -> None:
    errors = Errors(policy=torch.tensor([[0.9, 1.1]]), reference=torch.ones(1, 2))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        loss = D3PO()(errors, torch.tensor([[1.0, 0.0]]).to(dtype))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(D3PO()(errors, torch.tensor([[1.0, 0.0]])).item(), rel=1e-7)


# --- what it refuses


@pytest.mark.parametrize("k", [1, 3])
def test_compares_two(k: int) -> None:
    with pytest.raises(ValueError, match=f"D3PO compares two candidates, got {k}: turn ranked lists into pairs"):
        D3PO()(errors_of([[0.1] * k]), double([[0.0] * k]))


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_positive(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta must be above 0, got {beta}"):
        D3PO(beta=beta)


@pytest.mark.parametrize("clip", [0.0, -0.1, 1.0, math.nan])
def test_clip_must_be_in_0_1(clip: float) -> None:
    with pytest.raises(ValueError, match=rf"clip must be in \(0, 1\), got {clip}"):
        D3PO(clip=clip)


def test_clip_style_must_be_known() -> None:
    objective = D3PO()
    object.__setattr__(objective, "clip_style", "soft")  # the constructor's own types are checked in tests, before this
    with pytest.raises(ValueError, match="clip_style must be one of clamp, ppo, none, got 'soft'"):
        objective.__post_init__()
