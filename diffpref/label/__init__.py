"""Synthetic preference data: images of any prompts by any generators, scored by rewards, packed for training.

The package can be called: `from diffpref import label; label(config)` does the run of `diffpref.label.engine.label`. A
function beside a package of the same name would be lost at the first import of the package.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffpref.label.config import LabelConfig


class _Callable(ModuleType):
    def __call__(self, config: "LabelConfig", *, say: Callable[[str], None] = print) -> Path:
        from diffpref.label.engine import label

        return label(config, say=say)


sys.modules[__name__].__class__ = _Callable
