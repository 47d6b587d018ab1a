"""A pipeline's tensors by the names of a single-file checkpoint, which ComfyUI, A1111 and `from_single_file` read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders import single_file_utils as diffusers_reading
from torch import Tensor

from diffpref.export.original.autoencoder import original_autoencoder
from diffpref.export.original.joint import original_transformer
from diffpref.export.original.text import clip, open_clip
from diffpref.export.original.unet import original_unet

Write = Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]
"""Tensors and the configuration of their module -> the tensors by the original names."""
SECOND = "gelu"
"""The activation of Stable Diffusion 2.x's text encoder, which is OpenCLIP's; that of 1.x has quick_gelu."""


@dataclass(frozen=True)
class Layout:
    """The form of a family's checkpoint."""

    component: str
    write: Write
    """The trained network."""
    read: Callable[..., Any]
    """diffusers' reader of that."""
    texts: Callable[[Mapping[str, Any]], dict[str, Tensor]]
    """The text encoders of a pipeline's parts, and marks for readers."""

    def network(self, network: Any) -> dict[str, Tensor]:
        """The network's tensors, as diffusers' own loader reads them back; on any device, also meta.

        Raises:
            ValueError: an architecture that the original code has no place for.
        """
        return _reread(network, self.write, self.read)

    def __call__(self, parts: Mapping[str, Any]) -> dict[str, Tensor]:
        """All tensors of a pipeline's parts; ValueError as in `network`."""
        vae = _reread(parts["vae"], original_autoencoder, diffusers_reading.convert_ldm_vae_checkpoint)
        return {**self.network(parts[self.component]), **self.texts(parts), **vae}


def _reread(module: Any, write: Write, read: Callable[..., Any]) -> dict[str, Tensor]:
    """The module's tensors by the original names, from which diffusers' reader makes the same module again."""
    own, config = dict(module.state_dict()), dict(module.config)
    found = write(own, config)
    again = read(dict(found), config=config)
    for name in [*own, *again]:
        if name not in own or name not in again or not _same(own[name], again[name]):
            raise ValueError(f"diffusers does not read {name} of a {type(module).__name__} back from such a checkpoint")
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal; of those without values, their shapes."""
    return one.shape == other.shape and (one.is_meta or torch.equal(one, other))


def _stable_diffusion(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    text = parts["text_encoder"]
    state = dict(text.state_dict())
    second = text.config.hidden_act == SECOND
    return open_clip(state, "cond_stage_model.model.") if second else clip(state, "cond_stage_model.transformer.")


def _stable_diffusion_xl(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """CLIP and OpenCLIP as the two embedders of its conditioner; and ComfyUI's marks of v-prediction."""
    found = clip(parts["text_encoder"].state_dict(), "conditioner.embedders.0.transformer.")
    found |= open_clip(parts["text_encoder_2"].state_dict(), "conditioner.embedders.1.model.")
    scheduler = parts["scheduler"].config
    if scheduler.get("prediction_type") == "v_prediction":
        found["v_pred"] = torch.tensor([])
        if scheduler.get("rescale_betas_zero_snr"):
            found["ztsnr"] = torch.tensor([])
    return found


def _stable_diffusion_3(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Two CLIPs, and T5 where the pipeline has one."""
    found = clip(parts["text_encoder"].state_dict(), "text_encoders.clip_l.transformer.")
    found |= clip(parts["text_encoder_2"].state_dict(), "text_encoders.clip_g.transformer.")
    if (t5 := parts.get("text_encoder_3")) is not None:
        found |= {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in t5.state_dict().items()}
    return found


_UNET = ("unet", original_unet, diffusers_reading.convert_ldm_unet_checkpoint)
_JOINT = ("transformer", original_transformer, diffusers_reading.convert_sd3_transformer_checkpoint_to_diffusers)
LAYOUTS: Mapping[str, Layout] = {
    "SD15": Layout(*_UNET, _stable_diffusion),
    "SDXL": Layout(*_UNET, _stable_diffusion_xl),
    "SD3": Layout(*_JOINT, _stable_diffusion_3),
}
"""By the family's class."""
