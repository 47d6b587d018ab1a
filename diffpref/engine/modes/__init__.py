"""The orders in which a step's gradient can be summed: every mode is exact, they differ in memory and speed."""

import dataclasses
from collections.abc import Mapping

from diffpref.engine.modes.auto import Auto
from diffpref.engine.modes.base import Cut, Mode, Work
from diffpref.engine.modes.deferred import Deferred
from diffpref.engine.modes.joint import Joint
from diffpref.engine.modes.two_pass import TwoPass

__all__ = ["LOSS_MODES", "MODES", "Auto", "Cut", "Deferred", "Joint", "Mode", "TwoPass", "Work", "members", "name_of"]
MODES: Mapping[str, type[Mode]] = {"joint": Joint, "deferred": Deferred, "two-pass": TwoPass}
"""What `auto` chooses from, equally fast ones in this order."""
LOSS_MODES: Mapping[str, type] = {"auto": Auto, **MODES}
"""The names in a config."""


def members(auto: Auto) -> tuple[Mode, ...]:
    """The modes to choose from, with the settings that they have in common with the choice."""
    given = {f.name: getattr(auto, f.name) for f in dataclasses.fields(auto)}
    return tuple(
        kind(**{f.name: given[f.name] for f in dataclasses.fields(kind) if f.name in given})  # type: ignore[arg-type]
        for kind in MODES.values()
    )


def name_of(mode: Mode) -> str:
    """The mode's name in logs and checkpoints."""
    return next((name for name, kind in MODES.items() if kind is type(mode)), type(mode).__name__)
