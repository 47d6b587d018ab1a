"""What must hold for a batch to be cut: no module mixes its samples, and random masks can be drawn again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


def mixing_module(network: torch.nn.Module) -> str | None:
    """The name and class of a module whose output for a sample depends on the rest of its batch, if there is one."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            return f"{name} ({type(module).__name__})"
    return None


def check_independent(network: torch.nn.Module, mode: str) -> None:
    """Raise ValueError where a batch of this network cannot be cut without changing what it computes."""
    mixing = mixing_module(network)
    if mixing is not None:
        raise ValueError(
            f"loss_mode {mode} runs candidates apart, but {mixing} of this network mixes the samples of a batch, and "
            "the gradient would be another: set loss_mode: joint, or put the module in evaluation mode."
        )


def draws_masks(network: torch.nn.Module) -> bool:
    """Whether a forward pass draws dropout masks."""
    return any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in network.modules())


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of the generators that a network on this device draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Inside, the generators draw again what followed `state`; outside they go on as if nothing had happened."""
    cpu, cuda = state
    with torch.random.fork_rng(devices=[device] if cuda is not None else []):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield
