"""The trained CLIP: how it scores pairs, what of it learns, and how it is written as a reward.

Axes: n pairs, 2 the images of a pair, s the square's side in pixels, l tokens.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffpref.files import atomic
from diffpref.rewards.clip_hf import Processor, pooled
from diffpref.rewards.clip_pairs import directions
from diffpref.rewards.training.config import Towers
from diffpref.rewards.training.tunings import Tuning

if TYPE_CHECKING:
    from transformers import CLIPModel


class PairScorer(nn.Module):
    """A CLIPModel that scores both images of each prompt."""

    def __init__(self, clip: "CLIPModel") -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Float[Tensor, "n 2 3 s s"], ids: Int[Tensor, "n l"]) -> Float[Tensor, "n 2"]:
        """exp(logit_scale) cos(image, prompt), float32 whatever the towers compute in."""
        images = pooled(self.clip.get_image_features(pixel_values=pixels.flatten(0, 1)))
        texts = directions(pooled(self.clip.get_text_features(input_ids=ids)))
        # A product and a sum, not a matrix product, which autocast would do in half precision.
        cosines = (directions(images).unflatten(0, (len(ids), 2)) * texts[:, None]).sum(-1)
        return self.clip.logit_scale.float().exp() * cosines


def choose_trained(clip: "CLIPModel", tuning: Tuning, towers: Towers, *, seed: int) -> None:
    """Mark what learns; and take out dropout, which would tie a run to the generator's state.

    Raises:
        ValueError: more layers than a tower has, or no layer of the target names.
    """
    for module in clip.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
    tuning.choose(clip, seed=seed)
    clip.logit_scale.requires_grad_(towers.train_logit_scale)
    clip.train()
    if towers.gradient_checkpointing:
        # The newer name of transformers; the older one warns there.
        enable = getattr(clip, "activation_checkpointing_enable", clip.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def save_reward(clip: "CLIPModel", tuning: Tuning, processor: Processor, folder: Path) -> None:
    """Write a folder in PickScore's format: a CLIPModel, its tokenizer and preprocessor_config.json."""
    from transformers import CLIPModel

    with torch.device("meta"):
        plain = CLIPModel(clip.config)
    plain.load_state_dict(tuning.merged(clip), assign=True)
    rule = processor.rule
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        **{step: True for step in ("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize")},
        "size": {"shortest_edge": rule.shorter},
        "resample": 3,
        "crop_size": {"height": rule.crop, "width": rule.crop},
        "rescale_factor": 1 / 255,
        "image_mean": list(rule.mean),
        "image_std": list(rule.std),
    }
    with atomic.new_folder(folder) as new:
        plain.save_pretrained(new)
        processor.tokenizer.save_pretrained(new)
        atomic.write_json(new / "preprocessor_config.json", preprocessing)
