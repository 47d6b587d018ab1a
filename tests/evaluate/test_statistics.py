"""Win rates against published intervals, the Frechet distance against closed forms, colour and contrast by hand."""

import math

import pytest
import torch

from diffpref.evaluate.statistics import (
    PictureStatistics,
    frechet_distance,
    picture_statistics,
    wilson_interval,
    win_rate,
    within_spread,
)

F64 = torch.float64


def samples(mean: torch.Tensor, root: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """n vectors whose sample mean is exactly `mean` and whose unbiased sample covariance is exactly root root^T."""
    white = torch.randn(n, len(mean), dtype=F64, generator=torch.Generator().manual_seed(seed))
    white = white - white.mean(0)
    white = torch.linalg.qr(white).Q * math.sqrt(n - 1)
    return mean + white @ root.T


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(wins: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(wins, n) == pytest.approx((low, high), abs=5e-5)  # four published digits


def test_wilson_ends_solve_the_score_equation() -> None:
    """At both ends |share - p| is z standard errors of p itself, here for 99 %: z = 2.5758."""
    for end in wilson_interval(33.5, 80, 0.99):
        assert abs(33.5 / 80 - end) / math.sqrt(end * (1 - end) / 80) == pytest.approx(2.575829, abs=1e-5)


@pytest.mark.parametrize(("wins", "n", "confidence"), [(0, 0, 0.95), (-1, 4, 0.95), (5, 4, 0.95), (1, 4, 1.0)])
def test_wilson_refuses_what_is_no_share(wins: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="must be in|at least one"):
        wilson_interval(wins, n, confidence)


def test_ties_count_half() -> None:
    result = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 3.0, 1.0])
    assert (result.rate, result.n) == (0.5, 4)
    assert (result.low, result.high) == wilson_interval(2, 4)
    assert win_rate([2.0, 2.0], [2.0, 1.0]).rate == 0.75


def test_win_rate_is_of_the_first_argument_and_symmetric() -> None:
    tuned, base = [0.9, 0.8, 0.7, 0.1, 0.6], [0.1, 0.2, 0.3, 0.4, 0.5]
    forth, back = win_rate(tuned, base), win_rate(base, tuned)
    assert forth.rate == 0.8
    assert (forth.low, forth.high) == pytest.approx((1 - back.high, 1 - back.low), abs=1e-12)


def test_win_rate_refuses_unequal_lengths_and_nan() -> None:
    with pytest.raises(ValueError, match="2 tuned and 1 base"):
        win_rate([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="nan"):
        win_rate([1.0, math.nan], [1.0, 1.0])


# The tolerance 1e-9 is relative to values near 10: float64 rounding over a QR and an SVD of a few dozen rows.
def test_frechet_in_one_dimension() -> None:
    """(mu_a - mu_b)^2 + (s_a - s_b)^2."""
    a = samples(torch.tensor([1.0], dtype=F64), torch.tensor([[3.0]], dtype=F64), 40)
    b = samples(torch.tensor([-1.5], dtype=F64), torch.tensor([[0.5]], dtype=F64), 25, seed=1)
    assert frechet_distance(a, b) == pytest.approx(2.5**2 + 2.5**2, abs=1e-9)


def test_frechet_of_a_shift_is_its_squared_length() -> None:
    a = torch.randn(50, 6, dtype=F64, generator=torch.Generator().manual_seed(3))
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, -1.0], dtype=F64)
    assert frechet_distance(a, a + shift) == pytest.approx(shift.square().sum().item(), abs=1e-9)


def test_frechet_of_commuting_covariances() -> None:
    """Same eigenvectors: the covariance term is the sum of (s_a - s_b)^2 over the axes."""
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(4))).Q
    s_a, s_b = torch.tensor([1.0, 2.0, 3.0], dtype=F64), torch.tensor([2.5, 0.1, 1.0], dtype=F64)
    zero = torch.zeros(3, dtype=F64)
    a, b = samples(zero, rotation * s_a, 60), samples(zero, rotation * s_b, 30, seed=5)
    assert frechet_distance(a, b) == pytest.approx((s_a - s_b).square().sum().item(), abs=1e-9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """In two dimensions tr (AB)^(1/2) = sqrt(tr(AB) + 2 sqrt(det A det B)), by Cayley-Hamilton."""
    root_a = torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=F64)
    root_b = torch.tensor([[1.0, -0.7], [0.0, 1.5]], dtype=F64)
    mean = torch.tensor([0.3, -0.2], dtype=F64)
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    cross = math.sqrt((cov_a @ cov_b).trace() + 2 * math.sqrt(cov_a.det() * cov_b.det()))
    expected = mean.square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    a, b = samples(mean, root_a, 33), samples(torch.zeros(2, dtype=F64), root_b, 20, seed=6)
    assert frechet_distance(a, b) == pytest.approx(expected.item(), abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), abs=1e-9)


def test_frechet_with_fewer_vectors_than_dimensions() -> None:
    """Both sets on one line of 50 dimensions: the one-dimensional formula holds, and equal sets are at distance 0."""
    line = torch.zeros(50, dtype=F64)
    line[7] = 1.0
    a = torch.tensor([[-1.0], [1.0]], dtype=F64) * line
    b = torch.tensor([[0.0], [2.0], [4.0]], dtype=F64) * line
    assert frechet_distance(a, b) == pytest.approx(4.0 + (math.sqrt(2) - 2) ** 2, abs=1e-9)
    wide = torch.randn(5, 50, generator=torch.Generator().manual_seed(7))
    assert 0 <= frechet_distance(wide, wide) < 1e-9
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(a[:1], b)


def test_picture_statistics_of_flat_and_split_pictures() -> None:
    flat = torch.tensor([51, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    split = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    split[..., :4] = 255
    result = picture_statistics(torch.cat([flat, split]))
    assert result.colour[0].tolist() == pytest.approx([0.2, 0.4, 1.0])
    assert result.colour[1].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert result.contrast.tolist() == pytest.approx([0.0, 0.5], abs=1e-12)  # half black, half white: 1/2


def test_contrast_weighs_the_channels_as_luma() -> None:
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        x[:, channel, :4] = 255
        assert picture_statistics(x).contrast.item() == pytest.approx(weight / 2)


def test_within_spread_counts_standard_deviations() -> None:
    """Real contrasts 0.2 and 0.4: mean 0.3, standard deviation sqrt(0.02) = 0.1414."""
    colour = torch.tensor([[0.4, 0.5, 0.6], [0.6, 0.7, 0.8]])
    real = PictureStatistics(colour, torch.tensor([0.2, 0.4]))
    near = within_spread(PictureStatistics(colour[:1], torch.tensor([0.4])), real)
    assert near.inside
    assert near.z["contrast"] == pytest.approx(0.1 / math.sqrt(0.02), rel=1e-6)
    assert near.z["red"] == pytest.approx(-0.1 / math.sqrt(0.02), rel=1e-6)
    far = within_spread(PictureStatistics(colour[:1], torch.tensor([0.05])), real)
    assert not far.inside
    assert far.largest == pytest.approx(0.25 / math.sqrt(0.02), rel=1e-6)
    with pytest.raises(ValueError, match="no spread"):
        within_spread(real, PictureStatistics(colour, torch.tensor([0.2, 0.2])))
    with pytest.raises(ValueError, match="at least two"):
        within_spread(real, PictureStatistics(colour[:1], torch.tensor([0.2])))
