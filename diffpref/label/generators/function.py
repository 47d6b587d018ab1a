"""Generator `function`: a user's function that makes a function of prompts and seeds."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffpref.label.generators.drawn import Drawn, drawn
from diffpref.label.generators.pipeline import Pipeline
from diffpref.settings.dotted import load_callable

WITHOUT_PIPELINE = {
    f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    for f in dataclasses.fields(Pipeline)
    if f.name != "cpu_offload"
} | {"pretrained_model_name_or_path": ""}
"""What a plan holds of the pipeline where there is none."""


@dataclass(frozen=True)
class Function:
    """A function of yours."""

    function: str
    """module:function or file.py:function; called with (device), it returns a function of (prompts, seeds) that returns
    one PIL image per prompt."""

    def settings(self) -> Mapping[str, Any]:
        return {**WITHOUT_PIPELINE, "function": self.function.rpartition(":")[2]}

    def contents(self, hashes: Callable[[Path], str]) -> Mapping[str, str]:
        source = inspect.getsourcefile(load_callable("generator", self.function))
        return {"source": hashes(Path(source)) if source else ""}

    def check(self, name: str) -> None:
        load_callable("generator", self.function)

    def open(self, device: torch.device, name: str) -> "FunctionGenerator":
        return FunctionGenerator(load_callable("generator", self.function)(device), name)


class FunctionGenerator:
    """A user's function of (prompts, seeds), whose every answer is checked."""

    def __init__(self, function: Callable[[list[str], list[int]], Any], name: str) -> None:
        self.function, self.name = function, name

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawn]:
        """One image per prompt.

        Raises:
            ValueError: another number of answers, or an answer that is no image.
        """
        answers = list(self.function(list(prompts), list(seeds)))
        if len(answers) != len(prompts):
            raise ValueError(f"generator {self.name!r} returned {len(answers)} images for {len(prompts)} prompts.")
        for answer in answers:
            if not isinstance(answer, Image.Image | np.ndarray):
                raise ValueError(f"generator {self.name!r} returned {type(answer).__name__}: it must return images.")
        return [drawn(answer) for answer in answers]
