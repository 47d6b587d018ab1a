"""kohya's LoRA file, which sd-scripts, A1111 and ComfyUI read: its names, with each layer's alpha."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from diffpref.backbones.adapters.kohya import fused_layers, save_kohya
from diffpref.backbones.adapters.lora_stack import Layers
from diffpref.export.target import Trained
from diffpref.export.tensors import layers_apart


@dataclass(frozen=True)
class Kohya:
    """A LoRA by kohya's names with alpha; of SD3 by the names of Stability's code, as sd-scripts trains them."""

    suffix: ClassVar[str] = ".safetensors"

    def check(self, trained: Trained) -> None:
        trained.lora("a LoRA file of kohya's names")
        _form(trained)(trained)

    def write(self, trained: Trained, place: Path, dtype: torch.dtype | None) -> Sequence[str]:
        layers, version = _form(trained)(trained)
        save_kohya(layers_apart(layers, dtype), version, place)
        return ()


def _unet(trained: Trained) -> tuple[Layers, str]:
    family: Any = trained.family
    return trained.even(), family.version(trained.network)


def _joint(trained: Trained) -> tuple[Layers, str]:
    return fused_layers(trained.lora("kohya")), "sd3"


FORMS: Mapping[str, Callable[[Trained], tuple[Layers, str]]] = {"SD15": _unet, "SDXL": _unet, "SD3": _joint}
"""The layers as kohya's names want them, and its name of the base model's version, by the family's class."""


def _form(trained: Trained) -> Callable[[Trained], tuple[Layers, str]]:
    family = type(trained.family).__name__
    if family not in FORMS:
        raise ValueError(f"kohya has no names for a LoRA of {family}: export it with --to diffusers or --to peft.")
    return FORMS[family]
