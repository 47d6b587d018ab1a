"""Reading parts of a checkpoint with diffusers: a configuration alone, or the network that is trained."""

from typing import Any, TypeVar

import diffusers
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor

from diffpref.backbones import Family
from diffpref.backbones.adapters.base_adapters import KEY, merge, parse
from diffpref.backbones.adapters.lora_file import read_lora
from diffpref.backbones.checkpoint import Checkpoint
from diffpref.backbones.weight_files import STABILITY, read_tensors

Network = TypeVar("Network", bound=ModelMixin)


def read_config(kind: type[ConfigMixin], checkpoint: Checkpoint, component: str | None = None) -> dict[str, Any]:
    """The configuration of a part of the pipeline, or of the pipeline itself, as its JSON file has it.

    Args:
        kind: a class of diffusers that knows the name of that file.
    """
    where: dict[str, Any] = {} if component is None else {"subfolder": component}
    # diffusers annotates it as if it could return a tuple.
    found: Any = kind.load_config(checkpoint.source, revision=checkpoint.revision, **where)
    return dict(found)


def absent_parts(checkpoint: Checkpoint) -> list[str]:
    """Text encoders and their tokenizers that the pipeline's index has without a class: `from_pretrained` wants to be
    told that they are None, though the index says so."""
    index = read_config(diffusers.DiffusionPipeline, checkpoint)
    return [name for name, kind in index.items() if name.startswith(("text_", "token")) and kind == [None, None]]


def load_network(kind: type[Network], checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> Network:
    """The network that training starts from, which is also the reference: the pipeline's, or what replaces it, with
    the LoRA files that are merged into it.

    Raises:
        ValueError: files that do not fit the network; names the file and where.
    """
    # Merged in float32 and rounded once.
    first = torch.float32 if checkpoint.base_adapters else dtype
    network = kind.from_pretrained(checkpoint.source, subfolder=component, dtype=first, **checkpoint.options())
    if files := checkpoint.weights_of(component):
        check_weights(checkpoint, component, network)
        for file in files:
            network.load_state_dict(read_tensors(file, key="network_weights")[0], strict=False)
    merge(network, component, checkpoint.base_adapters)
    if first != dtype:
        # diffusers annotates `to` as if it were no method.
        whole: Any = network
        whole.to(dtype)
    return network


def bare_network(family: Family) -> torch.nn.Module:
    """The family's network on the meta device: its layers and shapes, without weights."""
    kind = getattr(diffusers, family.networks[0])
    config = read_config(kind, family.checkpoint, family.component)
    with torch.device("meta"):
        return kind.from_config(config)


def check_start(family: Family) -> list[str]:
    """Lines for the log on the files that the network starts from; only their headers are read.

    Raises:
        ValueError: network_weights or base_adapters that do not fit the network; names the file, where and the remedy.
    """
    checkpoint, component, said = family.checkpoint, family.component, []
    if checkpoint.network_weights is None and not checkpoint.base_adapters:
        return []
    network = bare_network(family)
    if checkpoint.network_weights is not None:
        check_weights(checkpoint, component, network)
    for adapter in map(parse, checkpoint.base_adapters):
        file = read_lora(adapter.source, network, component, key=KEY, values=False)
        said += [f"{KEY}: {len(file.layers)} layers of {file.file} are merged with weight {adapter.weight:g}"]
        said += file.remarks
    return said


def check_weights(checkpoint: Checkpoint, component: str, network: torch.nn.Module) -> None:
    """Raise ValueError where the files of network_weights have other layers than the network, or other shapes."""
    files = checkpoint.weights_of(component)
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read_tensors(file, key="network_weights", values=False)[0]
    name = f"network_weights {files[0] if len(files) == 1 else files[0].parent}"
    kind, wanted = type(network).__name__, network.state_dict()
    if any(layer.startswith(STABILITY) for layer in found):
        raise ValueError(
            f"{name} is a whole checkpoint in Stability's names: convert it with {kind}.from_single_file(FILE)"
            ".save_pretrained(FOLDER) of diffusers, and name the folder."
        )
    remedy = "it is for another architecture: name weights of this base model, or another pretrained_model_name_or_path"
    for layer, tensor in found.items():
        if layer not in wanted:
            raise ValueError(f"{name} has {layer}, which the base model's {kind} has not: {remedy}.")
        if tensor.shape != wanted[layer].shape:
            shapes = f"{tuple(tensor.shape)}, and {tuple(wanted[layer].shape)} in the base model"
            raise ValueError(f"{name}: {layer} has the shape {shapes}: {remedy}.")
    if missing := [layer for layer in wanted if layer not in found]:
        raise ValueError(f"{name} has no {missing[0]}, which the base model's {kind} has: {remedy}.")
