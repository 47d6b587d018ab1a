"""The trained CLIP: what of it learns, how it scores pairs, and how it is written as a reward.

Axes: n pairs, 2 the pictures of a pair, s the square's side in pixels, l tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffpref.backbones.adapters import Adapter, Full, LoRA
from diffpref.backbones.adapters.lora import ADAPTER, lora_state
from diffpref.files import atomic
from diffpref.rewards.clip_hf import Processor
from diffpref.rewards.clip_pairs import directions
from diffpref.rewards.training.config import Tuning

if TYPE_CHECKING:
    from transformers import CLIPModel


TRAINED: Mapping[str, Adapter] = {"lora": LoRA(), "full": Full()}
"""What of a CLIP's tensors a checkpoint holds, by `adapter`."""


class PairScorer(nn.Module):
    """A CLIPModel that scores both pictures of each prompt."""

    def __init__(self, clip: "CLIPModel") -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Float[Tensor, "n 2 3 s s"], ids: Int[Tensor, "n l"]) -> Float[Tensor, "n 2"]:
        """exp(logit_scale) cos(picture, prompt), float32 whatever the towers compute in."""
        images = _pooled(self.clip.get_image_features(pixel_values=pixels.flatten(0, 1)))
        texts = directions(_pooled(self.clip.get_text_features(input_ids=ids)))
        # A product and a sum, not a matrix product, which autocast would do in half precision.
        cosines = (directions(images).unflatten(0, (len(ids), 2)) * texts[:, None]).sum(-1)
        return self.clip.logit_scale.float().exp() * cosines


def _pooled(output: object) -> Tensor:
    """The projected embedding: transformers 5 returns it as `pooler_output`, transformers 4 by itself."""
    found = getattr(output, "pooler_output", output)
    assert isinstance(found, Tensor)
    return found


def choose_trained(clip: "CLIPModel", tuning: Tuning, *, logit_scale: bool, seed: int) -> None:
    """Mark what learns: LoRA, all weights, or the towers' last layers; and take out dropout, which would tie a run to
    the generator's state.

    Raises:
        ValueError: more layers than a tower has, a rank below 1, or no layer of the target names.
    """
    for module in clip.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
    if tuning.adapter == "lora":
        _attach_lora(clip, tuning, seed)
    else:
        clip.requires_grad_(True)
        vision, text = clip.vision_model, clip.text_model
        ends = [vision.post_layernorm, clip.visual_projection]
        _keep_last("trained_vision_layers", vision, ends, tuning.trained_vision_layers)
        _keep_last(
            "trained_text_layers", text, [text.final_layer_norm, clip.text_projection], tuning.trained_text_layers
        )
    clip.logit_scale.requires_grad_(logit_scale)
    clip.train()
    if tuning.gradient_checkpointing:
        # The newer name of transformers; the older one warns there.
        enable = getattr(clip, "activation_checkpointing_enable", clip.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def _attach_lora(clip: "CLIPModel", tuning: Tuning, seed: int) -> None:
    """Freeze the model and add LoRA in both towers, alpha equal to rank: at step 0 its scores are unchanged.

    By peft alone: transformers' own `add_adapter` refuses versions of peft that we allow."""
    from peft import LoraConfig, inject_adapter_in_model

    if tuning.rank < 1:
        raise ValueError(f"rank must be 1 or above, got {tuning.rank}.")
    names = [name for name, _ in clip.named_modules()]
    missing = [t for t in tuning.lora_target_modules if not any(name.endswith(t) for name in names)]
    if missing or not tuning.lora_target_modules:
        raise ValueError(f"lora_target_modules: no layer of the model ends in {missing}; leave it out for the default.")
    clip.requires_grad_(False)
    targets = list(tuning.lora_target_modules)
    config = LoraConfig(r=tuning.rank, lora_alpha=tuning.rank, init_lora_weights="gaussian", target_modules=targets)
    # peft draws from the global generator; two runs of one seed must start from the same matrices.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, clip, ADAPTER)


def _keep_last(name: str, tower: nn.Module, ends: list[nn.Module], count: int | None) -> None:
    """Freeze a tower but for its last layers and what follows them; None freezes nothing, 0 everything."""
    if count is None:
        return
    layers = list(tower.encoder.layers)  # type: ignore[union-attr,arg-type]
    if not 0 <= count <= len(layers):
        raise ValueError(f"{name} must be from 0 to the {len(layers)} layers that the tower has, got {count}.")
    for module in (tower, *ends):
        module.requires_grad_(False)
    for module in [*layers[len(layers) - count :], *ends] if count else []:
        module.requires_grad_(True)


def merged_state(clip: "CLIPModel") -> dict[str, Tensor]:
    """The weights as a CLIPModel has them, W + B A where LoRA stands beside W; on the CPU, nothing is changed."""
    from peft.tuners.lora import LoraLayer

    state = {name: tensor for name, tensor in clip.state_dict().items() if ".lora_" not in name}
    for name, module in clip.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.active_adapters
            key = f"{name}.base_layer.weight"
            state[key] = state[key] + module.get_delta_weight(adapter).to(state[key].dtype)  # type: ignore[operator]
    return {
        name.replace(".base_layer.", "."): tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()
    }


def save_reward(clip: "CLIPModel", processor: Processor, folder: Path) -> None:
    """Write a folder in PickScore's format: a CLIPModel, its tokenizer and preprocessor_config.json."""
    from transformers import CLIPModel

    with torch.device("meta"):
        plain = CLIPModel(clip.config)
    plain.load_state_dict(merged_state(clip), assign=True)
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


def save_adapter(clip: "CLIPModel", folder: Path) -> None:
    """Write the LoRA alone in peft's format; a trained logit_scale is in the merged model only."""
    from safetensors.torch import save_file

    # peft wraps the model twice when it loads an adapter, and looks for the tensors under these names.
    tensors = {f"base_model.model.{name}": t.detach().cpu().contiguous() for name, t in lora_state(clip).items()}
    with atomic.new_folder(folder) as new:
        save_file(tensors, new / "adapter_model.safetensors", metadata={"format": "pt"})
        clip.peft_config[ADAPTER].save_pretrained(new)  # type: ignore[union-attr,index]
