"""Probes: where on the path policy and reference are compared; one choice a file."""

from diffpref.probes.batch import AnyBatch, Batch, StepBatch
from diffpref.probes.forward import Forward
from diffpref.probes.inversion import Inversion
from diffpref.probes.stage import ProbeChoice, Prober, Stage, Traits
from diffpref.probes.transition import Transition

__all__ = [
    "PROBES",
    "AnyBatch",
    "Batch",
    "Forward",
    "Inversion",
    "ProbeChoice",
    "Prober",
    "Stage",
    "StepBatch",
    "Traits",
    "Transition",
]

PROBES: dict[str, type] = {"forward": Forward, "inversion": Inversion, "transition": Transition}
"""The names in a config. Your own needs no line here: `probe: my_file.py:Name`."""
