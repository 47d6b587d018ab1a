"""Choices that contradict each other where a step's gradient is computed."""

from diffpref.backbones.adapters import Adapter
from diffpref.probes import ProbeChoice


def check_engine(probe: ProbeChoice, adapter: Adapter, *, stored_reference: int) -> None:
    """Raise ValueError for choices that cannot work together, before anything is read."""
    if probe.traits.runs_policy:
        adapter.check_policy_inverts()
    if stored_reference:
        probe.check_stored(stored_reference)
