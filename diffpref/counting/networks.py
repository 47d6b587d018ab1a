"""Full-size networks on meta tensors, and what they are called with: the same modules that train, without weights."""

import torch
from torch import Tensor

from diffpref.backbones import Kind, family_class
from diffpref.backbones.shape import Shape
from diffpref.counting.architectures import Architecture
from diffpref.types import Probe


def family_of(architecture: Architecture) -> Kind:
    """The family of the architecture's pipeline; ValueError for a pipeline that is not supported."""
    return family_class(architecture.pipeline, architecture.name)


def build_network(architecture: Architecture, dtype: torch.dtype) -> torch.nn.Module:
    """The architecture's network, on meta tensors.

    Raises:
        ValueError: a configuration of a class that the architecture's family does not train.
    """
    import diffusers

    name, known = architecture.network.get("_class_name"), family_of(architecture).networks
    if name not in known:
        raise ValueError(f"cannot count a {name}: the trained network must be one of {', '.join(known)}.")
    with torch.device("meta"):
        network = getattr(diffusers, name).from_config({**architecture.network})
    return network.to(dtype).train()


def shape_of(architecture: Architecture, resolution: int, text_tokens: int | None = None) -> Shape:
    """The tensors of one candidate at a resolution in pixels.

    Args:
        text_tokens: length of the prompt as the network sees it; by default that of the architecture's encoders.
    """
    family = family_of(architecture)
    return family.shape(architecture.network, resolution, architecture.text_lengths, text_tokens)


def meta_probe(shape: Shape, groups: int, candidates: int) -> Probe:
    """A float32 probe of the given size on meta tensors."""

    def tensor(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device="meta")

    cond = {name: tensor(groups, *size) for name, size in shape.cond.items()}
    pictures = (groups, candidates, *shape.latent)
    x_t, target = (tensor(*pictures) for _ in range(2))
    return Probe(x_t, target, tensor(groups), tensor(groups), cond)
