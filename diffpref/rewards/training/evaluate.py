"""How well does a reward predict preferences? Accuracy, log-loss, and PickScore's rule for ties; for any reward.

Axes: n pairs, 2 the images of a pair.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffpref.data.bad_row import BadRow
from diffpref.data.decode import decode
from diffpref.data.rows import Preferences
from diffpref.evaluate.statistics import WinRate, wilson_interval
from diffpref.files.identity import hash_bit
from diffpref.rewards.checked import CheckedReward
from diffpref.rewards.training.losses import cross_entropy

THRESHOLDS = tuple(i / 10 for i in range(11))
"""Among which PickScore's threshold for a tie is chosen, as differences of the two probabilities."""


@dataclass(frozen=True)
class Predictions:
    """What a reward says of pairs, and what people said."""

    logits: Float[Tensor, " n"]
    """log P(first is preferred) / P(second is) of the reward, in nats, float64."""
    labels: Float[Tensor, "n 2"]
    """The probability that each is preferred: 1 and 0, or 0.5 twice for a tie."""
    prompts: tuple[str, ...]

    def ties(self) -> Bool[Tensor, " n"]:
        """Where people saw no difference."""
        return self.labels[:, 0] == self.labels[:, 1]

    def part(self, chosen: Bool[Tensor, " n"]) -> "Predictions":
        """Some of the pairs."""
        prompts = tuple(prompt for prompt, keep in zip(self.prompts, chosen.tolist(), strict=True) if keep)
        return Predictions(self.logits[chosen], self.labels[chosen], prompts)


def predict(reward: CheckedReward, preferences: Preferences, *, batch_size: int) -> Predictions:
    """The reward's predictions for every two images of each row; each image is scored once.

    Args:
        batch_size: rows whose images are decoded and scored at once.

    Raises:
        ValueError: an image that is missing or cannot be decoded, or what the reward refuses.
    """
    first: list[float] = []
    second: list[float] = []
    labels: list[float] = []
    prompts: list[str] = []
    for start in range(0, len(preferences), batch_size):
        rows = [preferences[p] for p in range(start, min(start + batch_size, len(preferences)))]
        images = []
        for row in rows:
            try:
                images += [decode(image) for image in row.images]
            except BadRow as problem:
                raise ValueError(f"{row.where}: {problem}") from None
        scores = reward(images, [row.prompt for row in rows for _ in row.images]).tolist()
        for row in rows:
            own, scores = scores[: len(row.images)], scores[len(row.images) :]
            for i, j in combinations(range(len(own)), 2):
                first.append(own[i])
                second.append(own[j])
                labels.append(0.5 * ((row.scores[i] > row.scores[j]) + (row.scores[i] >= row.scores[j])))
                prompts.append(row.prompt)
    logits = reward.pair_logit(torch.tensor(first), torch.tensor(second)).double()
    y = torch.tensor(labels, dtype=torch.float64)
    return Predictions(logits, torch.stack([y, 1 - y], 1), tuple(prompts))


def accuracy(found: Predictions) -> WinRate:
    """How often the reward prefers what people preferred; ties of theirs are left out, ties of the reward's count half.

    The interval is Wilson's of 95 %.

    Raises:
        ValueError: nothing but ties.
    """
    decided = found.part(~found.ties())
    n = len(decided.logits)
    if not n:
        raise ValueError("every pair is a tie: there is no preference to predict.")
    toward = decided.logits * (decided.labels[:, 0] - decided.labels[:, 1])
    right = 0.5 * ((toward > 0).double() + (toward >= 0).double()).sum().item()
    low, high = wilson_interval(right, n)
    return WinRate(right / n, low, high, n)


def log_loss(found: Predictions) -> float:
    """The mean of -log P(what people preferred), ties left out, in nats; log 2 = 0.693 says nothing was learned."""
    decided = found.part(~found.ties())
    scores = torch.stack([decided.logits, torch.zeros_like(decided.logits)], 1)
    return cross_entropy(scores, decided.labels).mean().item()


def tie_accuracy(found: Predictions, threshold: float) -> float:
    """The mean of 1 for a right prediction, 0.5 where one side only says tie, else 0; in [0, 1].

    The reward predicts a tie where |P(first) - P(second)| = tanh(|logit| / 2) <= threshold
    (yuvalkirstain/PickScore:trainer/scripts/eval_preference_predictor.py, get_pred and calc_score)."""
    difference = torch.tanh(found.logits / 2)
    predicted = torch.where(difference.abs() <= threshold, 0.0, difference.sign())
    said = torch.sign(found.labels[:, 0] - found.labels[:, 1])
    # Verdicts are -1, 0 (tie) and 1: equal is right, opposite is wrong, and one step apart is half right.
    return (1 - (predicted - said).abs() / 2).mean().item()


def best_threshold(found: Predictions) -> float:
    """The threshold with the highest `tie_accuracy`; the lowest of equal ones."""
    return max(THRESHOLDS, key=lambda threshold: (tie_accuracy(found, threshold), -threshold))


def halves(prompts: Sequence[str]) -> Bool[Tensor, " n"]:
    """True for about half of the prompts, by a bit of each prompt's hash: all pairs of a prompt are on one side."""
    bits = [hash_bit(prompt, byte=1) for prompt in prompts]
    return torch.tensor(bits, dtype=torch.bool)


def report(found: Predictions, validation: Predictions | None = None) -> dict[str, object]:
    """All figures as they go into a JSON file.

    Args:
        validation: the pairs on which the threshold for ties is chosen; without them, half of the prompts."""
    right = accuracy(found)
    figures: dict[str, object] = {
        "pairs": len(found.logits),
        "ties": int(found.ties().sum()),
        "accuracy_without_ties": {"rate": right.rate, "low": right.low, "high": right.high, "n": right.n},
        "log_loss_without_ties": log_loss(found),
    }
    if found.ties().any():
        side = halves(found.prompts)
        chosen_on = "the validation pairs" if validation else "the other half of the prompts"
        fitted = validation or found.part(side)
        scored = found if validation else found.part(~side)
        if len(fitted.logits) and len(scored.logits):
            threshold = best_threshold(fitted)
            value = tie_accuracy(scored, threshold)
            assert math.isfinite(value)
            figures["accuracy_with_ties"] = {
                "rate": value,
                "pairs": len(scored.logits),
                "threshold": threshold,
                "threshold_chosen_on": chosen_on,
            }
    return figures
