"""What a preference run should watch: rewards by TRL's names, and both models' errors on chosen and rejected apart.

The loss alone says little: it starts at log 2 and moves by hundredths while t is drawn at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffpref.types import Errors

BUCKETS = 4
SATURATED = 5.0
"""A pair whose |margin| exceeds this has a gradient below 1 % of its maximum."""
COLLAPSE = 1.1
"""Errors this many times the reference's, on chosen and rejected alike, ruin pictures."""
DISCRIMINATED = 0.75
COLUMNS = (
    "loss",
    "chosen",
    "rejected",
    "chosen_policy",
    "chosen_reference",
    "rejected_policy",
    "rejected_reference",
    "t",
)


def pair_table(errors: Errors, scores: Tensor, loss: Tensor, t_fraction: Tensor, beta: float) -> Tensor:
    """One row of `COLUMNS` for each group, detached: best candidate against worst, rewards in nats (beta log_ratio)."""
    best, worst = scores.argmax(1, keepdim=True), scores.argmin(1, keepdim=True)
    rewards = beta * errors.log_ratio

    def at(values: Tensor, place: Tensor) -> Tensor:
        return values.gather(1, place)[:, 0]

    columns = [loss, at(rewards, best), at(rewards, worst)]
    columns += [at(values, place) for place in (best, worst) for values in (errors.policy, errors.reference)]
    return torch.stack([column.detach().float() for column in (*columns, t_fraction)], 1)


def summarize(table: Tensor) -> dict[str, float]:
    """The metrics of the groups in a table, from all processes and all steps since the last summary."""
    column: dict[str, Tensor] = dict(zip(COLUMNS, table.double().cpu().unbind(1), strict=True))
    margin = column["chosen"] - column["rejected"]
    correct = (margin > 0).double() + 0.5 * (margin == 0).double()
    metrics = {
        "loss": column["loss"].mean(),
        "rewards/chosen": column["chosen"].mean(),
        "rewards/rejected": column["rejected"].mean(),
        "rewards/margins": margin.mean(),
        "rewards/accuracies": correct.mean(),
        "saturated": (margin.abs() > SATURATED).double().mean(),
    }
    for name, q in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
        metrics[f"margins/{name}"] = margin.quantile(q)
    for side in ("chosen", "rejected"):
        policy, reference = column[f"{side}_policy"].mean(), column[f"{side}_reference"].mean()
        metrics[f"error/{side}/policy"], metrics[f"error/{side}/reference"] = policy, reference
        metrics[f"error/{side}/ratio"] = policy / reference
    told = (column["chosen"] > 0).double() + (column["rejected"] < 0).double()
    told += 0.5 * ((column["chosen"] == 0).double() + (column["rejected"] == 0).double())
    metrics["rewards/discrimination"] = told.mean() / 2
    bucket = (column["t"] * BUCKETS).long().clamp(0, BUCKETS - 1)
    for index in range(BUCKETS):
        if (inside := bucket == index).any():
            low, high = 1000 * index // BUCKETS, 1000 * (index + 1) // BUCKETS - 1
            metrics[f"accuracy/t_{low:03d}_{high:03d}"] = correct[inside].mean()
    return {name: float(value) for name, value in metrics.items()}


@runtime_checkable
class Alarm(Protocol):
    """Says when a run goes wrong, from its metrics."""

    ratios: dict[str, float]
    """What it remembers from summary to summary, by name; it goes into checkpoints."""

    def __call__(self, metrics: Mapping[str, float]) -> str | None:
        """The alarm's text with its remedies, or None while all is well."""
        ...


@dataclass
class SaturationAlarm:
    """Says when DDO tells real from fake too easily: a useful round stays between 0.6 and 0.75.

    The share of images, real and fake each against zero, whose log-ratio has the right sign; 0.5 at step 0."""

    ratios: dict[str, float] = field(default_factory=dict)

    def __call__(self, metrics: Mapping[str, float]) -> str | None:
        """The alarm's text with its remedies, or None while all is well."""
        share = metrics["rewards/discrimination"]
        if share <= DISCRIMINATED:
            return None
        return (
            f"Saturated: the policy tells {share:.0%} of real and fake images apart, more than a round should "
            f"({DISCRIMINATED:.0%}); from here samples get worse. End the round earlier (max_train_steps), lower "
            "learning_rate, or look for what else tells them apart: size, compression, mirroring."
        )


@dataclass
class CollapseAlarm:
    """Says when the policy has come to fit both pictures of a pair worse than the reference does.

    Diffusion-DPO only asks that the rejected error grow faster than the chosen one; unchecked, both grow until the
    pictures are noise (the failure that users report most). The ratios are smoothed over the last few summaries."""

    ratios: dict[str, float] = field(default_factory=dict)

    def __call__(self, metrics: Mapping[str, float]) -> str | None:
        """The alarm's text with its remedies, or None while all is well."""
        for side in ("chosen", "rejected"):
            now = metrics[f"error/{side}/ratio"]
            self.ratios[side] = 0.5 * self.ratios.get(side, now) + 0.5 * now
        chosen, rejected = self.ratios["chosen"], self.ratios["rejected"]
        if chosen <= COLLAPSE or rejected <= COLLAPSE:
            return None
        return (
            f"Collapse: the policy's error is {chosen:.2f} times the reference's on chosen and {rejected:.2f} times on "
            "rejected pictures, so both get worse and samples turn to smears. Go back to an earlier checkpoint and "
            "lower learning_rate, raise beta, or set anchor (try 1.0), which holds the chosen error down."
        )
