"""An adapter of your own: only some weights of the network are trained.

python -m diffpref.train --config configs/tiny-sdxl/dpo-full.yaml --adapter examples/extension/adapter.py:SomeWeights \
    --trained_parts attn2.to_k attn2.to_v

The default are the keys and values of the attention to the prompt, as in Custom Diffusion (Kumari et al. 2023, arXiv
2212.04488). The rest of an adapter's work, from the reference's copy to the saved files, is that of all weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from diffpref.backbones import Kind
from diffpref.backbones.adapters import Adapter, Full


@dataclass(frozen=True)
class SomeWeights(Full):
    """The weights whose names contain one of some words; the others stay as they are."""

    trained_parts: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")
    """Parts of the names of the weights that are trained."""

    def identity(self) -> Mapping[str, object]:
        """The settings that must stay as they are for a checkpoint to be continued."""
        return {"trained_parts": list(self.trained_parts)}

    def counted(self) -> Adapter:
        """The same without the settings that change no count."""
        return replace(self, reference_memory="resident")

    def attach(self, network: torch.nn.Module, family: Kind, *, seed: int) -> Sequence[str]:
        """Mark what is trained; returns a line for the log.

        Raises:
            ValueError: no weight has such a name.
        """
        named = dict(network.named_parameters())
        chosen = {name for name in named if any(part in name for part in self.trained_parts)}
        if not chosen:
            raise ValueError(f"trained_parts must be in the name of some weight, got {list(self.trained_parts)}.")
        for name, parameter in named.items():
            parameter.requires_grad_(name in chosen)
        return (f"trained: {len(chosen)} of {len(named)} weight tensors",)
