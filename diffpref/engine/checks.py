"""Choices that contradict each other where a step's gradient is computed."""

from diffpref.backbones.adapters import Adapter
from diffpref.engine.modes import Auto, Mode, name_of
from diffpref.probes import ProbeChoice


def check_engine(mode: Mode | Auto, probe: ProbeChoice, adapter: Adapter, *, stored_reference: int) -> None:
    """Raise ValueError for choices that cannot work together, before anything is read."""
    if not isinstance(mode, Auto | Mode):
        lacking = sorted(name for name in vars(Mode) if name[:1] != "_" and not hasattr(mode, name))
        raise ValueError(f"loss_mode {name_of(mode)} lacks {', '.join(lacking)}: see diffpref/engine/modes/base.py.")
    if probe.traits.runs_policy:
        adapter.check_policy_inverts()
    if stored_reference:
        probe.check_stored(stored_reference)
