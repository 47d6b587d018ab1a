"""Alarms: what a method watches its run for, as values; pure functions of a summary and of what was remembered."""

from collections.abc import Mapping
from dataclasses import dataclass

COLLAPSE = 1.1
"""Errors this many times the reference's, on chosen and rejected alike, ruin images."""
NOTHING: Mapping[str, float] = {}
"""What an alarm remembers before the first summary."""


@dataclass(frozen=True)
class Collapse:
    """Says when the policy has come to fit both images of a pair worse than the reference does.

    Diffusion-DPO only asks that the rejected error grow faster than the chosen one; unchecked, both grow until the
    images are noise (the failure that users report most). The ratios are smoothed over the last few summaries.

    >>> Collapse()({"error/chosen/ratio": 1.0, "error/rejected/ratio": 1.4}, NOTHING)
    (None, {'chosen': 1.0, 'rejected': 1.4})
    """

    limit: float = COLLAPSE
    """How many times the reference's errors are too many, above 1."""

    def __call__(
        self, metrics: Mapping[str, float], remembered: Mapping[str, float]
    ) -> tuple[str | None, Mapping[str, float]]:
        """The alarm's text with its remedies, or None while all is well; and the smoothed ratios."""
        smooth: dict[str, float] = {}
        for side in ("chosen", "rejected"):
            now = metrics[f"error/{side}/ratio"]
            smooth[side] = 0.5 * remembered.get(side, now) + 0.5 * now
        chosen, rejected = smooth["chosen"], smooth["rejected"]
        if chosen <= self.limit or rejected <= self.limit:
            return None, smooth
        return (
            f"Collapse: the policy's error is {chosen:.2f} times the reference's on chosen and {rejected:.2f} times on "
            "rejected pictures, so both get worse and samples turn to smears. Go back to an earlier checkpoint and "
            "lower learning_rate, raise beta, or set anchor (try 1.0), which holds the chosen error down."
        ), smooth


@dataclass(frozen=True)
class Saturation:
    """Says when DDO tells real from fake too easily: a useful round stays between 0.6 and 0.75.

    It reads the share of images, real and fake each against zero, whose log-ratio has the right sign; 0.5 at step 0.

    >>> Saturation()({"rewards/discrimination": 0.7}, NOTHING)
    (None, {})
    """

    limit: float = 0.75
    """The largest share that is well, in [0.5, 1]."""

    def __call__(
        self, metrics: Mapping[str, float], remembered: Mapping[str, float]
    ) -> tuple[str | None, Mapping[str, float]]:
        """The alarm's text with its remedies, or None while all is well; and nothing new to remember."""
        share = metrics["rewards/discrimination"]
        if share <= self.limit:
            return None, remembered
        return (
            f"Saturated: the policy tells {share:.0%} of real and fake images apart, more than a round should "
            f"({self.limit:.0%}); from here samples get worse. End the round earlier (max_train_steps), lower "
            "learning_rate, or look for what else tells them apart: size, compression, mirroring."
        ), remembered
