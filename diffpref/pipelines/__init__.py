"""What a person does with a finished run in diffusers: load it, draw with more or less of it, pick, and compare.

Each name is imported when it is first used: the backbones need this package's EDM pipeline and nothing else of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffpref.pipelines.best_of import BestOf
    from diffpref.pipelines.comparison import compare
    from diffpref.pipelines.edm import EDMPipeline
    from diffpref.pipelines.guided import preference_guidance
    from diffpref.pipelines.loading import load

__all__ = ["BestOf", "EDMPipeline", "compare", "load", "preference_guidance"]
_HOMES = {
    "BestOf": "best_of",
    "EDMPipeline": "edm",
    "compare": "comparison",
    "load": "loading",
    "preference_guidance": "guided",
}


def __getattr__(name: str) -> Any:
    """The public name, imported now and kept."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
