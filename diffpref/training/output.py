"""What a run leaves for its user: weights that stock diffusers loads, and a model card."""

from collections.abc import Sequence

import torch
from diffusers.training_utils import EMAModel

from diffpref.backbones import Family
from diffpref.run.environment import versions
from diffpref.settings.record import fields_of
from diffpref.training.card import write_card
from diffpref.training.config import TrainConfig
from diffpref.training.samples import averaged
from diffpref.training.settings import to_mapping


def save_output(
    config: TrainConfig,
    family: Family,
    network: torch.nn.Module,
    ema: EMAModel | None,
    parameters: Sequence[torch.nn.Parameter],
) -> None:
    """Write the trained weights as the adapter does, and README.md, to the output directory.

    With an average (EMA) it is the averaged weights that are written, as the diffusers scripts do."""
    folder = config.run.output_dir
    with averaged(ema, parameters):
        config.adapter.save(network, family, folder)
    flat = to_mapping(config)
    prompts = config.validation.validation_prompts
    write_card(
        folder,
        base_model=config.model.pretrained_model_name_or_path,
        method=str(flat["objective"]),
        objective=fields_of(config.objective),
        dataset=config.data.dataset_name,
        adapter=str(flat["adapter"]),
        words=config.adapter.words,
        prompt=prompts[0] if prompts else "",
        versions=versions(),
    )
