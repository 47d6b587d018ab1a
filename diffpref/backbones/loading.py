"""Reading parts of a checkpoint with diffusers: a configuration alone, or the network that is trained."""

from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from safetensors.torch import load_file

from diffpref.backbones.checkpoint import Checkpoint

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


def load_network(kind: type[Network], checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> Network:
    """The network that training starts from, which is also the reference: the pipeline's, or what replaces it."""
    network = kind.from_pretrained(checkpoint.source, subfolder=component, dtype=dtype, **checkpoint.options())
    if (file := checkpoint.weights_of(component)) is not None:
        network.load_state_dict(load_file(file))
    return network
