"""Alarms of every run, whatever its method: drift, margins that are spent, and few pairs seen too often.

A method's own alarm is in `diffpref/objectives/alarms.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from diffpref.types import Alarm

DRIFT = 1.3
"""The policy's error on the base model's own samples, over the reference's, from which on images break."""
FEW, OFTEN = 500, 10
"""Fewer groups than this are learned by heart after so many epochs."""
SPENT = 0.5
"""Share of pairs with a saturated margin above which a run has nothing more to learn."""
WORSE = 1.1
"""Held-out chosen images whose error is this many times the reference's get worse."""

Alarmed = tuple[str | None, Mapping[str, float]]


@dataclass(frozen=True)
class Drifted:
    """Says when the policy loses what the base model could draw, which the margin and an `sft` loss hide.

    >>> Drifted()({"drift": 1.07}, {})
    (None, {})
    """

    limit: float = DRIFT

    def __call__(self, metrics: Mapping[str, float], remembered: Mapping[str, float]) -> Alarmed:
        """The alarm's text, or None while all is well or nothing was measured."""
        drift = metrics.get("drift", 1.0)
        if drift <= self.limit:
            return None, remembered
        return (
            f"Drift: on the base model's own samples the policy's error is {drift:.2f} times the base's (well: up to "
            f"{self.limit}), so it loses what the base could draw, and images break. Go back to an earlier checkpoint, "
            "take fewer steps (max_train_steps), lower learning_rate, or raise beta."
        ), remembered


@dataclass(frozen=True)
class Spent:
    """Says when most pairs have a margin so large that they teach nothing more; smoothed over the last summaries.

    >>> Spent()({"saturated": 0.25}, {})
    (None, {'saturated': 0.25})
    """

    limit: float = SPENT

    def __call__(self, metrics: Mapping[str, float], remembered: Mapping[str, float]) -> Alarmed:
        """The alarm's text, or None while all is well; and the smoothed share."""
        now = metrics["saturated"]
        share = 0.5 * remembered.get("saturated", now) + 0.5 * now
        if share <= self.limit:
            return None, {"saturated": share}
        return (
            f"Spent: {share:.0%} of the training pairs have a margin above 5 nats and teach nothing more, while the "
            "policy goes on away from the base. End the run here or take an earlier checkpoint, lower learning_rate, "
            "or bring more pairs."
        ), {"saturated": share}


@dataclass(frozen=True)
class Repeated:
    """Says, once, that few groups were seen so often that they are learned by heart.

    >>> Repeated(48)({"epoch": 10.0}, {})
    (None, {})
    """

    groups: int
    """Groups that the run learns from."""
    few: int = FEW
    often: int = OFTEN

    def __call__(self, metrics: Mapping[str, float], remembered: Mapping[str, float]) -> Alarmed:
        """The alarm's text at the first summary behind the last epoch that is well; and that it was said."""
        if remembered or self.groups >= self.few or metrics["epoch"] <= self.often:
            return None, remembered
        return (
            f"Repetition: {metrics['epoch']:.0f} epochs of {self.groups} pairs. Fewer than {self.few} are learned by "
            f"heart after {self.often}: set max_train_steps or num_train_epochs lower (docs/which-method.md has a "
            "table), or bring more pairs."
        ), {"told": 1.0}


@dataclass(frozen=True)
class NotGeneral:
    """Says when held-out chosen images get worse while those of training get better.

    >>> NotGeneral()({"heldout/error/chosen/ratio": 1.02, "error/chosen/ratio": 0.97}, {})
    (None, {})
    """

    limit: float = WORSE

    def __call__(self, metrics: Mapping[str, float], remembered: Mapping[str, float]) -> Alarmed:
        """The alarm's text, or None while all is well or no row was held out."""
        held, trained = metrics.get("heldout/error/chosen/ratio", 1.0), metrics["error/chosen/ratio"]
        if held <= self.limit or trained >= 1:
            return None, remembered
        return (
            f"Held-out images get worse ({held:.2f} times the base's error on their better images) while those of "
            f"training get better ({trained:.2f} times): the run learns its images by heart. Take an earlier "
            "checkpoint, or fewer steps."
        ), remembered


def alarms_of(*, groups: int) -> list[Alarm]:
    """The alarms of a run that learns from so many groups."""
    return [Drifted(), Spent(), Repeated(groups), NotGeneral()]
