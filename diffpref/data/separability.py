"""Can chosen and rejected images be told apart one by one, and is it who drew them that tells? (after arXiv 2504.02193)

Training on pairs from two generators can learn "draw like the first one". Separability alone is no fault, as a good
reward is linear in features too; separability that is gone inside one generator is.

Axes: n pairs, d features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diffpref.evaluate.statistics import wilson_interval
from diffpref.files.identity import content_key

FOLDS = 5
FEWEST = 200
"""Pairs below which accuracies are too low by chance to be told: at 100 pairs by about 0.05."""
RIDGE = 1e-2
"""Share of the mean variance that is added to every direction."""
SEPARABLE, GAP, NAME = 0.75, 0.10, 0.70
"""From where on: the accuracy of the probe, what of it is lost inside one generator, the accuracy of the name alone."""


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers about images that the rule has not seen, and its 95 % interval."""

    share: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.share:.1%} [{self.low:.1%}, {self.high:.1%}] (n = {self.n})"


@dataclass(frozen=True)
class Separability:
    """What tells the chosen images apart."""

    probe: Accuracy
    """A linear rule on single images."""
    inside: Accuracy | None
    """The same on pairs by one generator; None where there are too few."""
    name: Accuracy | None
    """Of the rule "the generator that wins more often is chosen"; None where generators are not known."""

    @property
    def by_generator(self) -> bool:
        """Whether who drew the images tells them apart, more than what they are."""
        lost = self.inside is not None and self.probe.share - self.inside.share >= GAP
        return (self.probe.share >= SEPARABLE and lost) or (self.name is not None and self.name.share >= NAME)

    def lines(self) -> list[str]:
        """For people, with a warning where one is due."""
        inside = f"too few pairs (below {FEWEST})" if self.inside is None else str(self.inside)
        lines = [f"a linear look at single images: {self.probe}"]
        if self.name is None:
            return [*lines, "the data do not say which generator drew what: this cannot tell style from quality"]
        lines += [f"the same inside one generator: {inside}", f"the generator's name alone: {self.name}"]
        if self.by_generator:
            within = "" if self.inside is None else f", {self.inside.share:.0%} within one generator"
            lines.append(
                "warning: chosen and rejected differ mostly by who drew them: a linear look at single images tells "
                f"them apart in {self.probe.share:.0%} of cases{within}, and the generator's name alone in "
                f"{self.name.share:.0%}. Training will learn that style. Use same_generator: true in the pack, or more "
                "images of one generator."
            )
        return lines


def require_pairs(count: int) -> None:
    """Raise ValueError where there are too few pairs to say anything."""
    if count < FEWEST:
        raise ValueError(f"separability needs {FEWEST} pairs or more, got {count}: on few it is too low by chance.")


def measure(
    chosen: Float[Tensor, "n d"],
    rejected: Float[Tensor, "n d"],
    prompts: Sequence[str],
    models: Sequence[tuple[str, str]] | None = None,
) -> Separability:
    """What tells chosen from rejected; no prompt is in the data that a rule learns from and in those that test it.

    Args:
        models: which generator drew the chosen and the rejected image of each pair; None where that is not known.

    Raises:
        ValueError: fewer than `FEWEST` pairs, or fewer prompts than folds.
    """
    require_pairs(len(chosen))
    folds = _folds(prompts)
    probe = _accuracy(_probe(F.normalize(chosen.double()), F.normalize(rejected.double())), folds, per_pair=2)
    if models is None:
        return Separability(probe, None, None)
    one = torch.tensor([better == worse for better, worse in models])
    inside = None
    if int(one.sum()) >= FEWEST:
        same = F.normalize(chosen[one].double()), F.normalize(rejected[one].double())
        inside = _accuracy(_probe(*same), folds[one], per_pair=2)
    return Separability(probe, inside, _accuracy(_by_name(models), folds, per_pair=1))


def _folds(prompts: Sequence[str]) -> Tensor:
    """The fold of each pair, "n": all pairs of a prompt are in one, which one follows from the prompts alone."""
    order = sorted(set(prompts), key=content_key)
    if len(order) < FOLDS:
        raise ValueError(f"separability needs {FOLDS} prompts or more, got {len(order)}: it tests on other prompts.")
    place = {prompt: number % FOLDS for number, prompt in enumerate(order)}
    return torch.tensor([place[prompt] for prompt in prompts])


Rule = Callable[[Bool[Tensor, " n"], Bool[Tensor, " n"]], float]
"""(pairs to learn from, pairs to test on) -> how many answers about the latter are right, ties as halves."""


def _accuracy(rule: Rule, folds: Tensor, *, per_pair: int) -> Accuracy:
    right = sum(rule(folds != fold, folds == fold) for fold in range(FOLDS) if bool((folds == fold).any()))
    n = per_pair * len(folds)
    return Accuracy(right / n, *wilson_interval(right, n), n)


def _probe(chosen: Float[Tensor, "n d"], rejected: Float[Tensor, "n d"]) -> Rule:
    """Linear discriminant with a ridge: w = (S + r tr(S)/d I)^-1 (m_chosen - m_rejected), S pooled within the two."""

    def right(learn: Bool[Tensor, " n"], test: Bool[Tensor, " n"]) -> float:
        means = chosen[learn].mean(0), rejected[learn].mean(0)
        inner = torch.cat([chosen[learn] - means[0], rejected[learn] - means[1]])
        scatter = inner.T @ inner / max(len(inner) - 2, 1)
        ridge = RIDGE * scatter.trace() / len(scatter) * torch.eye(len(scatter), dtype=scatter.dtype)
        w = torch.linalg.solve(scatter + ridge, means[0] - means[1])
        middle = w @ (means[0] + means[1]) / 2
        return float(((chosen[test] @ w) > middle).sum() + ((rejected[test] @ w) < middle).sum())

    return right


def _by_name(models: Sequence[tuple[str, str]]) -> Rule:
    """The generator with the larger share of wins, among pairs of two generators, is taken for the chosen one."""

    def right(learn: Bool[Tensor, " n"], test: Bool[Tensor, " n"]) -> float:
        wins: dict[str, list[int]] = {}
        for (better, worse), used in zip(models, learn.tolist(), strict=True):
            if used and better != worse:
                wins.setdefault(better, []).append(1)
                wins.setdefault(worse, []).append(0)
        share = {name: sum(results) / len(results) for name, results in wins.items()}
        tested = [pair for pair, used in zip(models, test.tolist(), strict=True) if used]
        gaps = [share.get(better, 0.5) - share.get(worse, 0.5) for better, worse in tested]
        return sum(0.5 if gap == 0 else float(gap > 0) for gap in gaps)

    return right
