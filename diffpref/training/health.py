"""What a preference run should watch: rewards by TRL's names, and both models' errors on chosen and rejected apart.

The loss alone says little: it starts at log 2 and moves by hundredths while t is drawn at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffpref.objectives.alarms import COLLAPSE, NOTHING, Collapse, Saturation
from diffpref.types import Errors

__all__ = ["COLLAPSE", "COLUMNS", "CollapseAlarm", "SaturationAlarm", "pair_table", "summarize"]
BUCKETS = 4
SATURATED = 5.0
"""A pair whose |margin| exceeds this has a gradient below 1 % of its maximum."""
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
    """DDO's alarm."""

    ratios: dict[str, float] = field(default_factory=dict)

    def __call__(self, metrics: Mapping[str, float]) -> str | None:
        """The alarm's text with its remedies, or None while all is well."""
        return Saturation()(metrics, NOTHING)[0]


@dataclass
class CollapseAlarm:
    """The alarm of the other methods, with what it remembers."""

    ratios: dict[str, float] = field(default_factory=dict)

    def __call__(self, metrics: Mapping[str, float]) -> str | None:
        """The alarm's text with its remedies, or None while all is well."""
        text, remembered = Collapse()(metrics, self.ratios)
        self.ratios.update(remembered)
        return text
