"""peft's folder: adapter_config.json and adapter_model.safetensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file

from diffpref.backbones.adapters.lora_file import PEFT_FILE
from diffpref.backbones.adapters.lora_names import PEFT_PREFIX
from diffpref.backbones.adapters.lora_stack import tensors_of
from diffpref.export.target import Trained
from diffpref.export.tensors import layers_apart


@dataclass(frozen=True)
class PEFT:
    """A folder for peft: `PeftModel.from_pretrained(pipe.unet, FOLDER)`."""

    suffix: ClassVar[str] = ""

    def check(self, trained: Trained) -> None:
        trained.lora("a folder of peft")

    def write(self, trained: Trained, place: Path, dtype: torch.dtype | None) -> Sequence[str]:
        from peft import LoraConfig

        layers = layers_apart(trained.even(), dtype)
        one = next(iter(layers.values()))
        alpha = one.scale * one.rank
        # peft declares a whole number; it and the files take any.
        whole: Any = round(alpha) if abs(alpha - round(alpha)) < 1e-6 else alpha
        base = trained.family.checkpoint.source
        config = LoraConfig(
            r=one.rank,
            lora_alpha=whole,
            target_modules=sorted(layers),
            base_model_name_or_path=base,
            inference_mode=True,
        )
        config.save_pretrained(str(place))
        save_file(
            {PEFT_PREFIX + name: part for name, part in tensors_of(layers).items()}, place / PEFT_FILE, {"format": "pt"}
        )
        return ()
