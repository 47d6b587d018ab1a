"""The choice of a mode: the fastest whose memory fits, from what one candidate was measured to hold."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffpref.engine.memory import GIB

MODES = ("joint", "deferred", "two-pass")
TRANSIENT = 1.15
"""A backward's own temporaries, as a factor on what the graph holds."""
PLAN = "plan"
"""The plan's key in a checkpoint's run.json."""


@dataclass(frozen=True)
class Work:
    """What a step has to hold: bytes, and the size of a batch."""

    candidate: int
    """Bytes of one candidate's graph without checkpointing."""
    checkpointed: int | None
    """The same with checkpointing; None where the network has none."""
    gradient: int
    """Bytes of one gradient of all trained parameters, in float32."""
    groups: int
    k: int
    lora: bool
    cut: bool = True
    """Whether a batch may be cut: no module mixes its samples."""
    batch: int = 0
    """Candidates of one batch, where a group's are spread over several: joint then runs them once in each."""

    @property
    def joint(self) -> int:
        """Candidates of joint's graph."""
        return self.batch or self.groups * self.k


@dataclass(frozen=True)
class Plan:
    """How the steps of a run are computed."""

    mode: str
    micro_batch: int
    """Candidates of one graph."""
    checkpointing: bool
    need: int
    """Bytes that graphs and scratches take at most, estimated."""
    budget: int
    fits: bool

    def line(self) -> str:
        """The choice, for people."""
        count = "1 candidate" if self.micro_batch == 1 else f"{self.micro_batch} candidates"
        at_a_time = "a batch" if self.mode == "joint" else count
        extra = ", with gradient checkpointing" if self.checkpointing else ""
        line = (
            f"loss_mode {self.mode}: {at_a_time} in one graph{extra}; about {gib(self.need)} of {gib(self.budget)} GiB"
        )
        return line if self.fits else f"{line}, which may not fit: lower resolution or rank, or free memory"


def gib(count: int) -> str:
    """Bytes as GiB, to three figures where they are few."""
    return f"{count / GIB:.2f}" if count >= GIB / 10 else f"{count / GIB:.3g}"


def read_plan(checkpoint: Path) -> Plan | None:
    """The plan that a checkpoint was trained with, where it has one."""
    saved = json.loads((checkpoint / "run.json").read_text()).get(PLAN)
    return None if saved is None else Plan(**saved)


def need(work: Work, mode: str, micro_batch: int, *, checkpointing: bool) -> int:
    """Bytes of the graphs and scratches of a mode, at most at once."""
    one = work.candidate if not checkpointing or work.checkpointed is None else work.checkpointed
    held = int(TRANSIENT * one) * (work.joint if mode == "joint" else min(micro_batch, work.groups * work.k))
    if mode == "deferred":
        held += max(work.k - micro_batch, 0) * work.gradient
    return held


def micro_batches(work: Work, mode: str) -> list[int]:
    """The sizes that make a difference, from the largest: whole groups first, then shares of one."""
    if mode == "joint":
        return [work.joint]
    whole = [groups * work.k for groups in range(work.groups, 0, -1)]
    return whole + list(range(work.k - 1, 0, -1))


def choose(work: Work, *, mode: str, micro_batch: int, checkpointing: bool, budget: int) -> Plan:
    """The plan for the settings: the mode that is asked for, or for `auto` the fastest that fits.

    Joint has the best shapes and no extra work. Deferred has no extra work either, but needs scratches where less than
    a group fits, which only LoRA's small gradients allow. Checkpointing and two passes both run every forward once
    more; two passes have no scratch, whatever the length of a list.

    Args:
        micro_batch: candidates of one graph; 0 for the most that fit.
        checkpointing: it is on already and stays on.
        budget: bytes for graphs and scratches.

    Raises:
        ValueError: a mode that is asked for and cannot fit; with the estimate.
    """
    options = list(_options(work, mode, micro_batch, checkpointing))
    plans = [
        Plan(name, size, gc, used := need(work, name, size, checkpointing=gc), budget, used <= budget)
        for name, size, gc in options
    ]
    best = next((plan for plan in plans if plan.fits), None)
    if best is not None:
        return best
    least = min(plans, key=lambda plan: plan.need)
    if mode == "auto":
        return least
    hints = [] if checkpointing else ["gradient_checkpointing: true"]
    hints += ["micro_batch: 1"] if micro_batch > 1 and mode != "joint" else []
    hints += ["loss_mode: auto"] if mode == "joint" else []
    raise ValueError(
        f"loss_mode {mode} needs about {gib(least.need)} GiB for {least.micro_batch} candidates in one graph, and "
        f"{gib(budget)} GiB are there: set {' or '.join([*hints, 'a lower resolution'])}."
    )


def _options(work: Work, mode: str, micro_batch: int, checkpointing: bool) -> Iterator[tuple[str, int, bool]]:
    """(mode, micro-batch, checkpointing) in the order of speed."""

    def sizes(name: str) -> list[int]:
        return [micro_batch] if micro_batch and name != "joint" else micro_batches(work, name)

    if mode != "auto":
        # A mode that is asked for is taken as it is asked for: checkpointing is a setting of its own.
        yield from ((mode, size, checkpointing) for size in sizes(mode))
        return
    # Whole groups need no scratch; a part of one needs scratches as large as the trained weights.
    whole = [size for size in sizes("deferred") if size >= work.k]
    parts = [size for size in sizes("deferred") if size < work.k and work.lora]
    joint = [] if work.batch and work.cut else [work.joint]
    order: list[tuple[str, list[int], bool]] = [
        ("joint", joint, False),
        ("deferred", whole + parts, False),
        # From here on every candidate's forward is computed twice: by checkpointing, or in a pass of its own.
        ("joint", joint, True),
        ("deferred", whole, True),
        ("two-pass", sizes("two-pass"), False),
        ("deferred", parts, True),
        ("two-pass", sizes("two-pass"), True),
    ]
    for name, few, gc in order:
        if (gc and work.checkpointed is None) or (checkpointing and not gc) or (name != "joint" and not work.cut):
            continue
        yield from ((name, size, gc) for size in few)
