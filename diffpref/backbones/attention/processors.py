"""diffusers' attention layers with our kernels: the UNet's, and the joint ones of SD3."""

from collections import Counter
from typing import Any

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from torch import Tensor

from diffpref.backbones.attention.choice import Attention as Kernel
from diffpref.backbones.attention.choice import Setting
from diffpref.backbones.precision import autocast_dtype


def _heads(x: Tensor, layer: Any, norm: torch.nn.Module | None) -> Tensor:
    """A view of (batch, tokens, channels) as (batch, tokens, heads, channels of one), with the layer's norm if any."""
    x = x.unflatten(-1, (layer.heads, -1))
    return x if norm is None else norm(x)


class UNetAttention:
    """Self and cross attention, as diffusers' AttnProcessor2_0 computes it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            # Only torch's own dispatch takes any mask; no backbone here passes one.
            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        residual, picture = hidden_states, hidden_states.shape[2:] if hidden_states.ndim == 4 else None
        if picture is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        # As autocast would in each of the projections that read it: once.
        hidden_states = hidden_states.to(autocast_dtype(hidden_states))
        source = hidden_states
        if encoder_hidden_states is not None:
            source = encoder_hidden_states.to(autocast_dtype(encoder_hidden_states))
        query = _heads(attn.to_q(hidden_states), attn, attn.norm_q)
        key = _heads(attn.to_k(source), attn, attn.norm_k)
        value = _heads(attn.to_v(source), attn, None)
        hidden_states = self.kernel(query, key, value).flatten(2)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if picture is not None:
            hidden_states = hidden_states.transpose(1, 2).unflatten(2, picture)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        # diffusers divides by 1 as well: a pass over the tensor in each direction.
        return hidden_states if attn.rescale_output_factor == 1 else hidden_states / attn.rescale_output_factor


class JointAttention:
    """Attention over picture and text together, and over the picture alone (SD3.5's second one).

    As diffusers' JointAttnProcessor2_0 computes it; like that one it knows no mask."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        tokens = hidden_states.shape[1]
        hidden_states = hidden_states.to(autocast_dtype(hidden_states))
        query = _heads(attn.to_q(hidden_states), attn, attn.norm_q)
        key = _heads(attn.to_k(hidden_states), attn, attn.norm_k)
        value = _heads(attn.to_v(hidden_states), attn, None)
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.to(autocast_dtype(encoder_hidden_states))
            query = torch.cat([query, _heads(attn.add_q_proj(text), attn, attn.norm_added_q)], dim=1)
            key = torch.cat([key, _heads(attn.add_k_proj(text), attn, attn.norm_added_k)], dim=1)
            value = torch.cat([value, _heads(attn.add_v_proj(text), attn, None)], dim=1)
        both = self.kernel(query, key, value).flatten(2)
        picture = attn.to_out[1](attn.to_out[0](both[:, :tokens]))
        if encoder_hidden_states is None:
            return picture
        text = both[:, tokens:]
        return picture, text if attn.context_pre_only else attn.to_add_out(text)


KINDS = {
    AttnProcessor2_0: UNetAttention,
    XFormersAttnProcessor: UNetAttention,
    JointAttnProcessor2_0: JointAttention,
    XFormersJointAttnProcessor: JointAttention,
}


def install_attention(network: torch.nn.Module, setting: Setting, dtype: torch.dtype) -> str:
    """Give the network's attention layers our kernels; returns a line that says which.

    Args:
        dtype: what attention is computed in, that of mixed precision if any.

    Raises:
        ValueError: the backend that is asked for cannot run on the network's device; says why.
    """
    kernel = Kernel(setting)
    processors = {kind: kind(kernel) for kind in (UNetAttention, JointAttention)}
    layers = [module for module in network.modules() if isinstance(module, Attention)]
    ours = [layer for layer in layers if type(layer.processor) in KINDS and _covered(layer)]
    if not ours:
        return "attention: diffusers' own (no layer of a kind that diffpref's kernels cover)"
    head_dims = sorted({layer.inner_dim // layer.heads for layer in ours})
    device = ours[0].to_q.weight.device
    used = kernel.prepare(device, dtype, head_dims)
    for layer in ours:
        layer.set_processor(processors[KINDS[type(layer.processor)]])  # type: ignore[arg-type]
    left = Counter(type(layer.processor).__name__ for layer in layers if layer not in ours)
    parts = [f"attention: {' and, for shorter sequences, '.join(used)}"]
    parts.append(f"{len(ours)} layers, {'/'.join(map(str, head_dims))} channels a head")
    parts.append(str(dtype).removeprefix("torch."))
    parts += [f"{count} layers keep diffusers' {name}" for name, count in left.items()]
    return ", ".join(parts)


def _covered(layer: Attention) -> bool:
    return layer.spatial_norm is None and layer.norm_cross is None
