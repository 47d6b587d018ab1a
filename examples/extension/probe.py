"""A probe of your own: the images of a group get opposite noises in turn.

python -m diffpref.train --config configs/tiny-sdxl/dpo.yaml --probe examples/extension/probe.py:Opposite

Diffusion-DPO's code gives both images of a pair one noise, its paper a noise each. This is the other extreme, for
whoever wants to see how much that choice matters.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from diffpref.probe import forward_probe
from diffpref.probes import AnyBatch, Batch, Prober, Stage, Traits
from diffpref.types import Cond, Probe


@dataclass(frozen=True)
class Opposite:
    """Forward noise eps at the first image of a group, -eps at the second, eps at the third, and so on."""

    @property
    def traits(self) -> Traits:
        """It starts from images, and asks for one noise a group, of which it makes its own."""
        return Traits(takes=Batch, shared_noise=True)

    def check_stored(self, draws: int) -> None:
        """Any number of draws can be kept: all follows from the batch."""

    def identity(self) -> Mapping[str, object]:
        """What the reference's errors depend on, beside the batch."""
        return {"probe": "opposite"}

    def cost(self) -> str:
        """Nothing beside the step's forwards."""
        return ""

    def build(self, stage: Stage) -> Prober:
        """What makes the probe of each batch."""

        def make(batch: AnyBatch, cond: Cond) -> Probe:
            assert isinstance(batch, Batch), "the source gives what the probe takes"
            x0 = batch.candidates.x0
            signs = torch.tensor([(-1.0) ** place for place in range(x0.shape[1])], device=x0.device, dtype=x0.dtype)
            eps = batch.eps * signs.view(1, -1, *[1] * (x0.ndim - 2))
            return stage.weighted(forward_probe(stage.policy.path, x0, batch.t, eps, cond))

        return Prober(make)
