"""The numbers of an evaluation: win rates with their intervals, the Frechet distance, colour and contrast."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class WinRate:
    """A share of wins in [0, 1] over n comparisons, and the ends of its interval."""

    rate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"


def wilson_interval(wins: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a binomial share (Wilson 1927), both ends in [0, 1]; `wins` may count ties as halves."""
    if n < 1:
        raise ValueError(f"an interval needs at least one comparison, got n = {n}.")
    if not 0 <= wins <= n:
        raise ValueError(f"wins must be in [0, n], got {wins} of {n}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = wins / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n wins the exact ends are 0 and 1; rounding must not move them.
    return (0.0 if wins == 0 else centre - half), (1.0 if wins == n else centre + half)


def win_rate(tuned: Sequence[float], base: Sequence[float]) -> WinRate:
    """How often `tuned` scores higher than `base`, pair by pair; a tie counts half; 95 % Wilson interval."""
    if len(tuned) != len(base):
        raise ValueError(f"a win rate needs one base score a tuned score, got {len(tuned)} tuned and {len(base)} base.")
    if any(math.isnan(score) for score in (*tuned, *base)):
        raise ValueError("a score is nan: it neither wins nor loses; remove the pair or repair the judge.")
    wins = sum(0.5 * ((t > b) + (t >= b)) for t, b in zip(tuned, base, strict=True))
    low, high = wilson_interval(wins, len(tuned))
    return WinRate(wins / len(tuned), low, high, len(tuned))


def _factor(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "r d"]]:
    """The mean, and R with R^T R = the unbiased covariance."""
    if len(x) < 2:
        raise ValueError(f"a covariance needs at least two vectors, got {len(x)}.")
    x = x.double()
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r").R


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500, eq. 6), in float64.

    With S = R^T R the last trace is the sum of the singular values of R_a R_b^T: no matrix square root, and fewer
    vectors than dimensions are as exact as many. It is the squared distance, in the features' squared units."""
    (mean_a, root_a), (mean_b, root_b) = _factor(a), _factor(b)
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * shared
    return max(0.0, ((mean_a - mean_b).square().sum() + spread).item())


@dataclass(frozen=True)
class PictureStatistics:
    """One row a picture: the mean red, green and blue, and the standard deviation of luma over pixels, in [0, 1]."""

    colour: Float[Tensor, "n 3"]
    contrast: Float[Tensor, " n"]


def picture_statistics(images: UInt8[Tensor, "n 3 h w"]) -> PictureStatistics:
    """Mean colour and contrast of each picture; luma is that of Rec. 601, 0.299 R + 0.587 G + 0.114 B."""
    x = images.double() / 255
    luma = torch.einsum("nchw,c->nhw", x, torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype))
    return PictureStatistics(x.mean((2, 3)), luma.flatten(1).std(1, correction=0))


@dataclass(frozen=True)
class Spread:
    """How far samples lie from real pictures: z-scores named red, green, blue and contrast."""

    z: dict[str, float]

    @property
    def inside(self) -> bool:
        """True when every z-score is in [-1, 1]: within one standard deviation of the real pictures."""
        return all(abs(z) <= 1 for z in self.z.values())

    @property
    def largest(self) -> float:
        """The largest absolute z-score, in standard deviations over the real pictures."""
        return max(abs(z) for z in self.z.values())


def within_spread(samples: PictureStatistics, real: PictureStatistics) -> Spread:
    """z = (mean over samples - mean over real pictures) / standard deviation over real pictures, per statistic.

    Raises:
        ValueError: fewer than two real pictures, or a statistic that is the same in all of them.
    """
    if len(real.contrast) < 2 or len(samples.contrast) < 1:
        raise ValueError(
            "a spread needs at least two real pictures and one sample, "
            f"got {len(real.contrast)} and {len(samples.contrast)}."
        )
    ours, theirs = (torch.cat([s.colour, s.contrast[:, None]], 1).double() for s in (samples, real))
    scale = theirs.std(0)
    if not (scale > 0).all():
        raise ValueError("the real pictures all have the same colour or contrast: there is no spread to lie within.")
    z = (ours.mean(0) - theirs.mean(0)) / scale
    return Spread(dict(zip(("red", "green", "blue", "contrast"), z.tolist(), strict=True)))
