"""Full-size networks on meta tensors, and what they are called with: the same modules that train, without weights."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffpref.backbones import FAMILIES, Family
from diffpref.counting.architectures import Architecture
from diffpref.path import GaussianPath, edm, rectified_flow, variance_preserving
from diffpref.types import Backbone, Probe

CLASSES = ("UNet2DConditionModel", "SD3Transformer2DModel", "UNet2DModel")


@dataclass(frozen=True)
class Shape:
    """What one candidate's tensors look like to a network."""

    latent: tuple[int, ...]
    cond: Mapping[str, tuple[int, ...]]
    """By name, without the batch axis; () is one number a candidate."""


def family_of(architecture: Architecture) -> Family:
    """The backbone module of the architecture's pipeline; ValueError for a pipeline that is not supported."""
    if architecture.pipeline not in FAMILIES:
        raise ValueError(
            f"{architecture.name} is a {architecture.pipeline}; supported pipelines are {', '.join(FAMILIES)}."
        )
    # A module with these names; a type checker cannot compare a module loaded by name with the protocol.
    return importlib.import_module(FAMILIES[architecture.pipeline])  # type: ignore[return-value]


def build_network(config: Mapping[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    """The network of a diffusers configuration, on meta tensors.

    Raises:
        ValueError: a configuration of a class that no backbone trains.
    """
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ValueError(f"cannot count a {name}: the trained network must be one of {', '.join(CLASSES)}.")
    import diffusers

    with torch.device("meta"):
        network = getattr(diffusers, name).from_config({**config})
    return network.to(dtype).train()


def shape_of(architecture: Architecture, resolution: int, text_tokens: int | None = None) -> Shape:
    """The tensors of one candidate at a resolution in pixels.

    Args:
        text_tokens: length of the prompt as the network sees it; by default that of the architecture's encoders.
    """
    config = architecture.network
    kind = config["_class_name"]
    if kind == "UNet2DModel":
        side = config["sample_size"]
        classes = {"labels": ()} if config.get("num_class_embeds") is not None else {}
        return Shape((config["in_channels"], side, side), classes)
    side = resolution // 8
    latent = (config["in_channels"], side, side)
    if kind == "SD3Transformer2DModel":
        # The joint transformer reads CLIP's tokens and then T5's, or zeros in T5's place.
        tokens = text_tokens or architecture.text_lengths[0] + architecture.text_lengths[-1]
        cond = {"prompt_embeds": (tokens, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],)}
        return Shape(latent, cond)
    cond = {"prompt_embeds": (text_tokens or architecture.text_lengths[0], config["cross_attention_dim"])}
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        cond |= {"pooled": (pooled,), "time_ids": (6,)}
    return Shape(latent, cond)


def meta_probe(shape: Shape, groups: int, candidates: int) -> Probe:
    """A float32 probe of the given size on meta tensors."""

    def tensor(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device="meta")

    cond = {name: tensor(groups, *size) for name, size in shape.cond.items()}
    pictures = (groups, candidates, *shape.latent)
    x_t, target = (tensor(*pictures) for _ in range(2))
    return Probe(x_t, target, tensor(groups), tensor(groups), cond)


def path_of(architecture: Architecture) -> GaussianPath:
    """A path of the architecture's kind; counting needs its type alone."""
    if architecture.network["_class_name"] == "SD3Transformer2DModel":
        return rectified_flow()
    if architecture.network["_class_name"] == "UNet2DModel":
        from diffpref.backbones.edm import EDMPath
        from diffpref.pipelines.edm import NoiseSchedule

        return EDMPath(**vars(edm(0.5)), schedule=NoiseSchedule(0.5, 0.002, 80.0, 7.0))
    return variance_preserving(torch.linspace(0.9991, 0.0047, 1000, dtype=torch.float64))


def meta_backbone(architecture: Architecture, network: torch.nn.Module) -> Backbone:
    """The network as the loss engine calls it."""
    return family_of(architecture).backbone(network, path_of(architecture))
