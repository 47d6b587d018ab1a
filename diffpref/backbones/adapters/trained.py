"""Which parameters of a network are trained."""

import torch


def trainable(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that the optimizer moves, in a fixed order."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
