"""What a preference run should watch: rewards by TRL's names, and both models' errors on chosen and rejected apart.

The loss alone says little: it starts at log 2 and moves by hundredths while t is drawn at random.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.types import Errors

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
    for side in ("chosen", "rejected"):
        metrics[f"rewards/effective_share/{side}"] = effective_share(column[side])
    metrics |= _by_time(column, correct)
    found = {name: float(value) for name, value in metrics.items()}
    return {**found, "drop": drop(found["error/chosen/ratio"], found["error/rejected/ratio"])}


def effective_share(rewards: Float[Tensor, " n"]) -> Tensor:
    """How evenly the change is spread over images: exp(entropy of softmax(rewards)) / n, in (0, 1].

    Near 1 nothing has moved, or everything alike; near 1 / n one image carries the update. For rewards from
    N(m, s^2) it is exp(-s^2 / 2), so that it depends on beta: compare it within a run. After DID (2505.23761), whose
    entropy of policy over reference this is on the images at hand.

    >>> effective_share(torch.zeros(4, dtype=torch.float64))
    tensor(1.0000, dtype=torch.float64)

    Args:
        rewards: beta log_ratio of each image, in nats.
    """
    weights = rewards.log_softmax(0)
    return (-(weights.exp() * weights).sum()).exp() / len(rewards)


def drop(chosen: float, rejected: float) -> float:
    """How much faster the rejected error grows than the chosen one moves, from both ratios of policy over reference.

    (rejected - 1) / max(|chosen - 1|, 0.001): large where the margin comes from rejected images alone (the drastic drop
    of 3D-Properties, 2406.07327).

    >>> drop(1.5, 4.0)
    6.0
    """
    return (rejected - 1) / max(abs(chosen - 1), 1e-3)


def _by_time(column: Mapping[str, Tensor], correct: Tensor) -> dict[str, Tensor]:
    """Accuracy, rewards and ratios in each quarter of the schedule that has groups: a mean hides where it happens."""
    bucket = (column["t"] * BUCKETS).long().clamp(0, BUCKETS - 1)
    metrics: dict[str, Tensor] = {}
    for index in range(BUCKETS):
        if not (inside := bucket == index).any():
            continue
        low, high = 1000 * index // BUCKETS, 1000 * (index + 1) // BUCKETS - 1
        name = f"t_{low:03d}_{high:03d}"
        metrics[f"accuracy/{name}"] = correct[inside].mean()
        for side in ("chosen", "rejected"):
            policy, reference = (column[f"{side}_{model}"][inside].mean() for model in ("policy", "reference"))
            metrics[f"rewards/{side}/{name}"] = column[side][inside].mean()
            metrics[f"error/{side}/ratio/{name}"] = policy / reference
    return metrics
