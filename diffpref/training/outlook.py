"""What a run is about to do, in one line, and what speaks against it: said before the first step."""

import statistics
from pathlib import Path

from diffpref.report.curves import read_metrics, series
from diffpref.training.alarms import FEW, OFTEN
from diffpref.training.drift import FAR

RATES = 5
"""Last logged steps whose rate a resumed run goes by."""


def outlook(*, steps: int, first: int, batch: int, k: int, groups: int, run: Path) -> str:
    """How long the run is, in epochs, images and, where an earlier part of it has measured its rate, hours.

    A second line warns where few groups are seen too often.

    Args:
        steps: of the whole run.
        first: the step that it goes on from.
        batch: groups of a step over all processes.
        k: images of a group.
        groups: how many there are.
        run: its folder, where a resumed run finds its metrics.
    """
    noun, epochs = "pairs" if k == 2 else f"lists of {k}", steps * batch / groups
    line = (
        f"{steps - first} steps of {batch} {noun}: {(steps - first) * batch * k:,} images"
        f"{f', from step {first} on' if first else ''}; {epochs:.3g} epochs of {groups:,} {noun}"
    )
    rates = [rate for _, rate in series(read_metrics(run / "metrics.jsonl")[0], "seconds_per_step")] if first else []
    if rates:
        rate = statistics.median(rates[-RATES:])
        line += f"; about {duration((steps - first) * rate)} at {rate:.3g} s a step"
    if groups >= FEW or epochs <= OFTEN:
        return line
    return (
        f"{line}\nwarning: fewer than {FEW} {noun} are learned by heart after {OFTEN} epochs, which are "
        f"{max(1, int(OFTEN * groups / batch))} steps here: set max_train_steps or num_train_epochs."
    )


def duration(seconds: float) -> str:
    """A time in the largest unit of which it has one: "3.2 hours", "12 minutes", "40 seconds"."""
    for name, unit in (("hours", 3600), ("minutes", 60)):
        if seconds >= unit:
            return f"{seconds / unit:.{0 if seconds >= 10 * unit else 1}f} {name}"
    return f"{seconds:.0f} seconds"


def far(distance: float) -> list[str]:
    """A warning where the data are far from what the base model draws."""
    if distance <= FAR:
        return []
    return [
        f"warning: the base model's error on your images is {distance:.1f} times that on its own samples, so they are "
        "far from what it draws. Check resolution and crop; else fine-tune on the better images first, and expect "
        "drift: a lower learning_rate, fewer steps."
    ]
