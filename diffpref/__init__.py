"""Preference fine-tuning of diffusion models.

Each public name is imported when it is first used, so that `import diffpref` loads no torch. `diffpref.train` is a
function and `diffpref.label` can be called, whatever was imported before: the command `python -m diffpref.train` is a
file that only runs, and the package `diffpref.label` is its own function.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffpref.errors import compare, prediction_error
    from diffpref.inversion import invert
    from diffpref.label.config import LabelConfig
    from diffpref.label.engine import label
    from diffpref.objectives import D3PO, DDO, DPO, RankDPO, SmPO
    from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
    from diffpref.probe import forward_probe, inversion_probe, transition_probe
    from diffpref.rewards import find_reward
    from diffpref.training.config import TrainConfig
    from diffpref.training.loop import train
    from diffpref.training.policy import load_policy
    from diffpref.transition import Ancestral, FlowSDE, finish, sample_chain
    from diffpref.types import Backbone, Candidates, Errors, Objective, Probe

__version__ = "0.1.0"
__all__ = [
    "D3PO",
    "DDO",
    "DPO",
    "Ancestral",
    "Backbone",
    "Candidates",
    "Errors",
    "FlowSDE",
    "GaussianPath",
    "LabelConfig",
    "Objective",
    "Probe",
    "RankDPO",
    "SmPO",
    "TrainConfig",
    "compare",
    "edm",
    "find_reward",
    "finish",
    "forward_probe",
    "inversion_probe",
    "invert",
    "label",
    "load_policy",
    "prediction_error",
    "rectified_flow",
    "sample_chain",
    "train",
    "transition_probe",
    "variance_preserving",
]
_HOMES = {
    "errors": ("compare", "prediction_error"),
    "inversion": ("invert",),
    "label.config": ("LabelConfig",),
    "label": ("label",),
    "objectives": ("D3PO", "DDO", "DPO", "RankDPO", "SmPO"),
    "path": ("GaussianPath", "edm", "rectified_flow", "variance_preserving"),
    "probe": ("forward_probe", "inversion_probe", "transition_probe"),
    "rewards": ("find_reward",),
    "training.config": ("TrainConfig",),
    "training.loop": ("train",),
    "training.policy": ("load_policy",),
    "transition": ("Ancestral", "FlowSDE", "finish", "sample_chain"),
    "types": ("Backbone", "Candidates", "Errors", "Objective", "Probe"),
}


def __getattr__(name: str) -> Any:
    """The public name, imported now and kept."""
    for home, names in _HOMES.items():
        if name in names:
            module = import_module(f"{__name__}.{home}")
            value = module if home == name else getattr(module, name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
