"""The layers of text encoders by the names that single-file checkpoints have."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
"""The parts of one of its layers that OpenCLIP has too, by its names."""
ENDS = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
JOINED = ("q_proj", "k_proj", "v_proj")


def clip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP in the names that transformers had at first, which checkpoints keep: `text_model.` before all layers."""
    return {prefix + name: tensor for name, tensor in _with_model(tensors).items()}


def open_clip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP by the names of OpenCLIP: one matrix for queries, keys and values, and a projection from the right."""
    found: dict[str, Tensor] = {}
    tensors = _with_model(tensors)
    for name, tensor in tensors.items():
        match = LAYER.fullmatch(name)
        part = match[2] if match else ""
        if match and part in PARTS:
            found[f"transformer.resblocks.{match[1]}.{PARTS[part]}.{match[3]}"] = tensor
        elif match and part == "self_attn.q_proj":
            three = torch.cat([tensors[name.replace("q_proj", each)] for each in JOINED])
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = three
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif not match:
            found[ENDS[name]] = tensor
    return {prefix + name: tensor for name, tensor in found.items()}


def _with_model(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names with `text_model.` before them, which newer versions of transformers leave out."""
    start = "text_model."
    outside = ("text_projection", start)
    return {name if name.startswith(outside) else start + name: tensor for name, tensor in tensors.items()}
