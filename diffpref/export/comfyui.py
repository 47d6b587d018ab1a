"""ComfyUI's LoRA file: kohya's names for UNets, diffusers' for SD3, at scale 1."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from diffpref.backbones.adapters.lora import ADAPTER
from diffpref.backbones.adapters.lora_file import LORA_FILE
from diffpref.backbones.adapters.lora_stack import holding
from diffpref.export.target import Trained
from diffpref.export.tensors import layers_apart


@dataclass(frozen=True)
class ComfyUI:
    """A LoRA for ComfyUI's models/loras, which A1111 and diffusers read as well."""

    suffix: ClassVar[str] = ".safetensors"

    def check(self, trained: Trained) -> None:
        trained.lora("a LoRA file for ComfyUI")

    def write(self, trained: Trained, place: Path, dtype: torch.dtype | None) -> Sequence[str]:
        # ComfyUI knows no alpha beside diffusers' names, so the scale is in the matrices.
        layers = layers_apart(trained.at_scale_one(), dtype)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            trained.family.save_lora(holding(trained.network, layers, adapter=ADAPTER), Path(folder))
            os.replace(Path(folder) / LORA_FILE, place)
        return ()
