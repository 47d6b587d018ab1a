"""Several rewards' scores of one prompt's pictures as one number a picture, as ranks, and how far two rewards agree.

Axes: r rewards, k candidates of one prompt, n pictures of any number of prompts. Scores are higher where better; all
arithmetic is in float64. `weights` say how much each reward counts against the others; left out, all count the same.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def win_count(scores: Float[Tensor, "r k"], *, weights: Float[Tensor, " r"] | None = None) -> Float[Tensor, " k"]:
    """The share of its comparisons that a picture wins, in [0, 1]: phi_i = C_i / (r (k - 1)).

    C_i counts the rewards and opponents that picture i beats; a tie counts for nobody, so that phi may sum to less
    than k / 2. Only the order within each reward matters. arXiv 2410.18013 (Syn-Pic), Algorithm 1.
    """
    scores, weights = _checked(scores, weights)
    # One division, at the end: with equal weights the sums are whole numbers, and equal counts give equal phi.
    wins = (_margins(scores) > 0).double().sum(2)
    return weights @ wins / (weights.sum() * (scores.shape[1] - 1))


def win_prob(
    scores: Float[Tensor, "r k"], *, temperatures: Float[Tensor, " r"], weights: Float[Tensor, " r"] | None = None
) -> Float[Tensor, " k"]:
    """The mean probability that a picture beats another one, in [0, 1]; a tie counts half.

    phi_i = mean over rewards r and opponents j of sigmoid((R_ri - R_rj) / T_r). arXiv 2502.02588 (CaPO), the
    calibrated reward, which has no T: it is the unit in which each reward's difference is a Bradley-Terry logit.

    Args:
        temperatures: above 0, in the unit of each reward's scores. Towards 0 it becomes `win_count`, towards infinity
            every picture has 1/2.
    """
    scores, weights = _checked(scores, weights)
    temperatures = _per_reward("temperatures", temperatures, scores)
    if not (temperatures > 0).all():
        raise ValueError(f"temperatures must be above 0, got {temperatures.tolist()}.")
    beats = torch.sigmoid(_margins(scores) / temperatures[:, None, None])
    others = beats.sum(2) - 0.5  # less the picture against itself
    return weights @ others / (weights.sum() * (scores.shape[1] - 1))


def mean_z(
    scores: Float[Tensor, "r k"],
    *,
    mean: Float[Tensor, " r"],
    std: Float[Tensor, " r"],
    weights: Float[Tensor, " r"] | None = None,
) -> Float[Tensor, " k"]:
    """The mean over rewards of (R - mean) / std, in standard deviations; unbounded, around 0.

    Args:
        mean: of each reward over the whole data set.
        std: likewise; above 0.
    """
    scores, weights = _checked(scores, weights)
    mean, std = _per_reward("mean", mean, scores), _per_reward("std", std, scores)
    if not (std > 0).all():
        raise ValueError(f"std must be above 0, got {std.tolist()}: leave out a reward that is the same everywhere.")
    return weights @ ((scores - mean[:, None]) / std[:, None]) / weights.sum()


def pareto(scores: Float[Tensor, "r k"], *, weights: Float[Tensor, " r"] | None = None) -> Float[Tensor, " k"]:
    """(k - front) / (k - 1), in [0, 1]: 1 on the first front, less on each front that follows.

    A picture is beaten by one that is as good in every reward and better in one. The first front holds the pictures
    that none beats, the second those that none beats once the first is taken away, and so on (non-dominated sorting:
    Deb et al. 2002, NSGA-II). Where every reward has the same order without ties this is `win_count`.

    Args:
        weights: only whether a weight is 0 matters; that reward is left out.
    """
    scores, weights = _checked(scores, weights)
    used = scores[weights > 0]
    margins = _margins(used)
    beats = (margins >= 0).all(0) & (margins > 0).any(0)
    value, left = torch.ones_like(scores[0]), torch.ones_like(scores[0], dtype=torch.bool)
    for front in range(scores.shape[1]):
        first = left & ~(beats & left[:, None]).any(0)
        value[first] = (scores.shape[1] - 1 - front) / (scores.shape[1] - 1)
        left = left & ~first
    assert not left.any(), "each round takes one picture or more"
    return value


def ranks(phi: Float[Tensor, " k"], z: Float[Tensor, " k"], ids: Sequence[str]) -> Int[Tensor, " k"]:
    """Each picture's rank: 1 is the highest phi; ties in phi go by the higher z, then by the lower id as text.

    Args:
        z: `mean_z` of the same pictures.
        ids: one a picture, all different, so that the order never hangs on the order of the arguments.
    """
    if len(ids) != len(phi):
        raise ValueError(f"ranks need one id a picture, got {len(ids)} for {len(phi)} pictures.")
    if len(set(ids)) != len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise ValueError(f"ids must be different, got {twice!r} twice: give each picture its own id.")
    for name, values in (("phi", phi), ("z", z)):
        _finite(name, values)
    # A sum in another order differs in the last bits, which must not decide instead of the next rule.
    keys = [(-round(p, 12), -round(s, 12), name) for p, s, name in zip(phi.tolist(), z.tolist(), ids, strict=True)]
    rank = torch.empty(len(keys), dtype=torch.int64)
    rank[sorted(range(len(keys)), key=keys.__getitem__)] = torch.arange(1, len(keys) + 1)
    return rank


def _checked(scores: Tensor, weights: Tensor | None) -> tuple[Float[Tensor, "r k"], Float[Tensor, " r"]]:
    if scores.shape[0] < 1 or scores.shape[1] < 2:
        raise ValueError(f"one reward and two pictures or more can be compared, got {list(scores.shape)} [r, k].")
    _finite("scores", scores)
    scores = scores.double()
    weights = torch.ones_like(scores[:, 0]) if weights is None else _per_reward("weights", weights, scores)
    if not ((weights >= 0).all() and weights.sum() > 0):
        raise ValueError(f"weights must be 0 or above, and one of them above 0, got {weights.tolist()}.")
    return scores, weights


def _per_reward(name: str, values: Tensor, scores: Tensor) -> Float[Tensor, " r"]:
    assert len(values) == len(scores), f"{name} must hold one number a reward"
    _finite(name, values)
    return values.to(scores)


def _finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(f"{name} must be finite, got {values.tolist()}: leave out pictures that have no score.")


def _margins(scores: Float[Tensor, "r k"]) -> Float[Tensor, "r k k"]:
    """R_ri - R_rj at [r, i, j]."""
    return scores[:, :, None] - scores[:, None, :]
