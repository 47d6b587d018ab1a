"""What a run leaves for its user: weights that stock diffusers loads, and a model card."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from diffpref.backbones import Family
from diffpref.files import atomic
from diffpref.run.environment import versions
from diffpref.settings.record import fields_of
from diffpref.training.card import write_card
from diffpref.training.config import TrainConfig
from diffpref.training.models import LORA_FILE
from diffpref.training.samples import averaged
from diffpref.training.settings import to_mapping


def save_weights(folder: Path, family: Family, network: torch.nn.Module, adapter: str) -> None:
    """Write the adapter as pytorch_lora_weights.safetensors, or the whole network's folder."""
    if adapter == "lora":
        with atomic.new_folder(folder / "lora.new") as new:
            family.save_lora(network, new)
        os.replace(folder / "lora.new" / LORA_FILE, folder / LORA_FILE)
        (folder / "lora.new").rmdir()
    else:
        with atomic.new_folder(folder / family.COMPONENT) as new:
            network.save_pretrained(new)  # type: ignore[operator]


def save_output(
    config: TrainConfig,
    family: Family,
    network: torch.nn.Module,
    ema: EMAModel | None,
    parameters: Sequence[torch.nn.Parameter],
) -> None:
    """Write pytorch_lora_weights.safetensors, or the whole network's folder, and README.md to the output directory.

    With an average (EMA) it is the averaged weights that are written, as the diffusers scripts do."""
    folder = config.run.output_dir
    with averaged(ema, parameters):
        save_weights(folder, family, network, config.adapter.adapter)
    flat = to_mapping(config)
    prompts = config.validation.validation_prompts
    write_card(
        folder,
        base_model=config.model.pretrained_model_name_or_path,
        method=str(flat["objective"]),
        objective=fields_of(config.objective),
        dataset=config.data.dataset_name,
        adapter=config.adapter.adapter,
        prompt=prompts[0] if prompts else "",
        versions=versions(),
    )
