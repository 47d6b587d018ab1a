"""Measures: functions that say in one number how bad a set of pictures is; found by name, or the user's own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from diffpref.demo.fashion import fashion_frechet, load_classifier, load_real_features
from diffpref.settings.dotted import FORMS, is_address, load_callable

Measure: TypeAlias = Callable[[list[Image.Image], list[str]], float]
"""(pictures, one prompt a picture) -> one finite number for all of them; lower is better."""

_SIDE = 28


def _known() -> str:
    names = f"measure must be one of {sorted(NAMES)}"
    return f"{names}, or your own function as {FORMS}"


@dataclass(frozen=True)
class CheckedMeasure:
    """A measure whose every answer is checked; `function` may return any number, also as a tensor or an array."""

    name: str
    function: Callable[[list[Image.Image], list[str]], object]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> float:
        """One number for all pictures; lower is better.

        Raises:
            ValueError: no picture, not one prompt a picture, or an answer that is not one finite number.
        """
        if len(images) != len(prompts):
            raise ValueError(f"a measure needs one prompt a picture, got {len(prompts)} for {len(images)} pictures.")
        if not images:
            raise ValueError("a measure needs pictures, got none: sample some first.")
        answer: Any = self.function(list(images), list(prompts))
        try:
            value = None if isinstance(answer, (str, bytes)) else float(answer)
        except (TypeError, ValueError, RuntimeError):
            value = None
        if value is None:
            raise ValueError(
                f"measure {self.name!r} returned {type(answer).__name__} {answer!r:.80}: "
                "it must return one number for all pictures, where lower is better."
            )
        if not math.isfinite(value):
            raise ValueError(f"measure {self.name!r} returned {value} for {len(images)} pictures: it must be finite.")
        return value


class FashionFrechet:
    """The squared Frechet distance to the 60,000 training pictures of Fashion-MNIST, in the embedded classifier's
    features; it does not look at the prompts, and compares only between equal numbers of pictures."""

    def __init__(self, device: torch.device) -> None:
        self.classifier = load_classifier().to(device)
        self.real = load_real_features("train")
        self.device = device

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> float:
        """The distance of at least two grey pictures of 28 x 28.

        Raises:
            ValueError: fewer than two pictures, or one of another size.
        """
        grey = np.stack([self._grey(image, number) for number, image in enumerate(images)])
        x = torch.from_numpy(grey)[:, None].float() / 127.5 - 1
        return fashion_frechet(self.classifier, x.to(self.device), self.real)

    def _grey(self, image: Image.Image, number: int) -> np.ndarray:
        if image.size != (_SIDE, _SIDE):
            raise ValueError(
                f"fashion_frechet measures pictures of {_SIDE} x {_SIDE} pixels, picture {number} is "
                f"{image.width} x {image.height}: use it with a model of Fashion-MNIST."
            )
        return np.array(image.convert("L"))


NAMES: dict[str, Callable[[torch.device], Measure]] = {"fashion_frechet": FashionFrechet}
"""The package's own measures: the name -> what makes it on a device."""


def find_measure(name: str, device: str | torch.device = "cpu") -> CheckedMeasure:
    """The measure of that name: one of `NAMES`, or the user's function, which is checked at every call.

    Args:
        name: like "fashion_frechet", "my_package.measures:fid" or "measures/mine.py:fid"; the user's function takes
            (list of PIL pictures, list of prompts) and returns one number, lower is better.
        device: where the package's own measures compute; a user's function chooses its own.

    Raises:
        ValueError: no such name, a module or file that cannot be imported, or something in it that is no function.
    """
    if name in NAMES:
        return CheckedMeasure(name, NAMES[name](torch.device(device)))
    if not is_address(name):
        raise ValueError(f"{_known()}; got {name!r}.")
    return CheckedMeasure(name, load_callable("measure", name))
