"""The choice of a mode: the fastest whose memory fits, from what one candidate was measured to hold."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffpref.engine.memory import GIB
from diffpref.engine.modes import MODES, Auto, Mode, Work, members, name_of

PLAN = "plan"
"""The plan's key in a checkpoint's run.json."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the steps of a run are computed."""

    mode: Mode
    micro_batch: int
    """Candidates of one graph."""
    checkpointing: bool
    need: int
    """Bytes that graphs and scratches take at most, estimated."""
    budget: int
    fits: bool

    @property
    def name(self) -> str:
        """The mode's name."""
        return name_of(self.mode)

    def line(self) -> str:
        """The choice, for people."""
        extra = ", with gradient checkpointing" if self.checkpointing else ""
        line = (
            f"loss_mode {self.name}: {self.mode.describe(self.micro_batch)} in one graph{extra}; "
            f"about {gib(self.need)} of {gib(self.budget)} GiB"
        )
        return line if self.fits else f"{line}, which may not fit: lower resolution or rank, or free memory"

    def mapping(self) -> dict[str, Any]:
        """The plan as a checkpoint's run.json holds it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"mode": self.name}


def gib(count: int) -> str:
    """Bytes as GiB, to three figures where they are few."""
    return f"{count / GIB:.2f}" if count >= GIB / 10 else f"{count / GIB:.3g}"


def read_plan(checkpoint: Path) -> Plan | None:
    """The plan that a checkpoint was trained with, where it has one that names a mode of the package."""
    saved = json.loads((checkpoint / "run.json").read_text()).get(PLAN)
    if saved is None or saved["mode"] not in MODES:
        return None
    return Plan(**{**saved, "mode": MODES[saved["mode"]]()})


def choose(choice: Mode | Auto, work: Work, *, checkpointing: bool, budget: int) -> Plan:
    """The plan for the settings: the mode that is asked for, or for `auto` the fastest that fits.

    A mode is as fast as it has few forwards: those of its own, and one more with checkpointing. Among equals one
    without scratches is faster, then the first in the table, then the larger graph.

    Args:
        checkpointing: it is on already and stays on.
        budget: bytes for graphs and scratches.

    Raises:
        ValueError: a mode that is asked for and cannot fit; with the estimate.
    """
    automatic = isinstance(choice, Auto)
    options = _fastest_first(choice, work, checkpointing) if automatic else _as_asked(choice, work, checkpointing)
    plans = [
        Plan(
            mode=mode,
            micro_batch=size,
            checkpointing=on,
            need=(used := mode.need(work, size, checkpointing=on)),
            budget=budget,
            fits=used <= budget,
        )
        for mode, size, on in options
    ]
    best = next((plan for plan in plans if plan.fits), None)
    if best is not None:
        return best
    least = min(plans, key=lambda plan: plan.need)
    if automatic:
        return least
    hints = [] if checkpointing else ["gradient_checkpointing: true"]
    hints += ["micro_batch: 1"] if least.mode.cuts and least.micro_batch > 1 else []
    hints += [] if least.mode.cuts else ["loss_mode: auto"]
    raise ValueError(
        f"loss_mode {least.name} needs about {gib(least.need)} GiB for {least.micro_batch} candidates in one graph, "
        f"and {gib(budget)} GiB are there: set {' or '.join([*hints, 'a lower resolution'])}."
    )


Option = tuple[Mode, int, bool]
"""Mode, micro-batch, checkpointing."""


def _as_asked(mode: Mode, work: Work, checkpointing: bool) -> list[Option]:
    """A mode that is asked for is taken as it is asked for: checkpointing is a setting of its own."""
    return [(mode, size, checkpointing) for size in mode.sizes(work)]


def _fastest_first(choice: Auto, work: Work, checkpointing: bool) -> list[Option]:
    """All that could be done, in the order of speed."""
    forms = [True] if checkpointing else [False, True]
    options = [
        (mode, size, on)
        for mode in members(choice)
        if _sensible(mode, work)
        for on in forms
        if not on or work.checkpointed is not None
        for size in mode.sizes(work)
        # A part of a group needs scratches as large as the trained weights: never worth it where those are the network.
        if work.cheap_scratch or not mode.scratches(work.k, size)
    ]
    # Stable: the table's order and that of the sizes decide between equals.
    return sorted(options, key=lambda option: _cost(*option, work))


def _sensible(mode: Mode, work: Work) -> bool:
    """Whether the batch may be cut, or where it may, whether the mode does no work twice that others do once."""
    return work.cut if mode.cuts else not (work.cut and mode.repeats(work))


def _cost(mode: Mode, size: int, on: bool, work: Work) -> tuple[int, bool]:
    return mode.extra_forwards + on, mode.scratches(work.k, size) > 0
