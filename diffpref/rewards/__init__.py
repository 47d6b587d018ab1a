"""Rewards: functions that say how good each picture is for its prompt; found by name, or the user's own."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

Reward: TypeAlias = Callable[[list[Image.Image], list[str]], Tensor]
"""(pictures, one prompt a picture) -> scores "n" in float32 on the CPU; higher is better."""

NAMES = {"emoji_hand": "diffpref.rewards.emoji_hand:load"}
"""The package's own rewards: the name -> a function of the device that returns the reward."""

_FORMS = 'or your own function as "module:function" or "path/to/file.py:function"'


@dataclass(frozen=True)
class CheckedReward:
    """A reward whose every answer is checked; `function` may return a tensor, an array or any sequence of numbers."""

    name: str
    function: Callable[[list[Image.Image], list[str]], object]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """One score a picture, in float32 on the CPU.

        Raises:
            ValueError: not one prompt a picture, or not one finite number a picture in the answer.
        """
        if len(images) != len(prompts):
            raise ValueError(f"a reward needs one prompt a picture, got {len(prompts)} for {len(images)} pictures.")
        scores = torch.tensor(self._numbers(self.function(list(images), list(prompts))), dtype=torch.float32)
        if len(scores) != len(images):
            raise ValueError(
                f"reward {self.name!r} returned {len(scores)} scores for {len(images)} pictures: "
                "it must return one number a picture, in the pictures' order."
            )
        bad = [i for i, score in enumerate(scores.tolist()) if not math.isfinite(score)]
        if bad:
            raise ValueError(
                f"reward {self.name!r} returned {scores[bad[0]].item()} for picture {bad[0]} "
                f"({prompts[bad[0]]!r:.80}): every score must be a finite number in float32's range."
            )
        return scores

    def _numbers(self, answer: object) -> list[float]:
        if isinstance(answer, (Tensor, np.ndarray)):
            answer = answer.tolist()  # one copy from the device, not one a number
        if isinstance(answer, (str, bytes, Mapping)) or not isinstance(answer, Iterable):
            raise ValueError(
                f"reward {self.name!r} returned {type(answer).__name__} {answer!r:.80}: "
                "it must return a sequence of numbers, one a picture."
            )
        return [self._number(value, i) for i, value in enumerate(answer)]

    def _number(self, value: Any, i: int) -> float:
        try:
            if not isinstance(value, (str, bytes)):
                return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
        raise ValueError(
            f"reward {self.name!r} returned {type(value).__name__} {value!r:.80} for picture {i}: "
            "every score must be one number."
        )


def find_reward(name: str, device: str | torch.device = "cpu") -> CheckedReward:
    """The reward of that name: one of `NAMES`, or the user's function, which is checked at every call.

    Args:
        name: like "emoji_hand", "my_package.rewards:brightness" or "rewards/mine.py:brightness"; the user's function
            takes (list of PIL pictures, list of prompts) and returns one number a picture.
        device: where the package's own rewards compute; a user's function chooses its own.

    Raises:
        ValueError: no such name, a module or file that cannot be imported, or something in it that is no function.
    """
    if name in NAMES:
        make = _attribute(name, NAMES[name])
        return CheckedReward(name, make(torch.device(device)))
    if ":" not in name:
        raise ValueError(f"reward must be one of {sorted(NAMES)}, {_FORMS}; got {name!r}.")
    return CheckedReward(name, _attribute(name, name))


def _attribute(name: str, address: str) -> Callable[..., Any]:
    where, _, attribute = address.rpartition(":")
    if not where or not attribute:
        raise ValueError(f"reward must be one of {sorted(NAMES)}, {_FORMS}; got {name!r}.")
    module = _from_file(name, Path(where).expanduser()) if where.endswith(".py") else _from_module(name, where)
    if not hasattr(module, attribute):
        raise ValueError(f"reward {name!r}: {where} has no {attribute!r}; name a function that it defines.")
    function = getattr(module, attribute)
    if not callable(function):
        raise ValueError(f"reward {name!r}: {attribute} is {type(function).__name__} and cannot be called.")
    return function


def _from_module(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as problem:
        raise ValueError(
            f"reward {name!r}: module {module} cannot be imported ({type(problem).__name__}: {problem}); "
            'install it, or name its file as "path/to/file.py:function".'
        ) from problem


def _from_file(name: str, path: Path) -> ModuleType:
    """The file as a module that its own classes can be pickled from; read once, whatever it is called by."""
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"reward {name!r}: there is no file {path}; the path starts from the working directory.")
    module_name = f"diffpref_reward_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None, "a path that ends in .py has a loader"
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        del sys.modules[module_name]
        raise ValueError(
            f"reward {name!r}: {path} cannot be imported ({type(problem).__name__}: {problem}); repair it first."
        ) from problem
    return module
