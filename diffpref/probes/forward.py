"""Forward noise: every candidate is noised to its group's t (Diffusion-DPO, RankDPO, DDO)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from diffpref.noise import draw
from diffpref.path import like
from diffpref.probe import forward_probe
from diffpref.probes.batch import AnyBatch, Batch
from diffpref.probes.stage import Prober, Stage, Traits, told
from diffpref.run.randomness import generator
from diffpref.types import Cond, Probe


@dataclass(frozen=True)
class Forward:
    """Compare policy and reference at noised images."""

    shared_noise: bool = True
    """One noise for all images of a group, as in Diffusion-DPO's code; its paper and RankDPO's draw one for each."""
    noise_offset: Annotated[float, Ge(0)] = 0.0
    """Add this times a normal number of each channel to the noise, the same at all its places; diffusers' scripts and
    Diffusion-DPO's have it, at 0. One for all images that share their noise."""
    input_perturbation: Annotated[float, Ge(0)] = 0.0
    """Add this times fresh noise to what the network sees and not to what it should predict (Ning et al. 2023), each
    image its own; 0.1 is usual, Diffusion-DPO's script has 0."""

    @property
    def traits(self) -> Traits:
        """What the rest of a run has to know of this probe."""
        return Traits(takes=Batch, shared_noise=self.shared_noise)

    def check_stored(self, draws: int) -> None:
        """Forward noise follows from the draw, so that errors can always be kept."""

    def identity(self) -> Mapping[str, object]:
        """What the reference's errors depend on, beside the batch."""
        return {"probe": type(self).__name__, **told(self, always=("shared_noise",))}

    def cost(self) -> str:
        """Nothing beside the step's forwards."""
        return ""

    def build(self, stage: Stage) -> Prober:
        """What makes the probe of each batch."""

        def make(batch: AnyBatch, cond: Cond) -> Probe:
            assert isinstance(batch, Batch), "the source gives what the probe takes"
            path, x0, t = stage.policy.path, batch.candidates.x0, batch.t
            eps = batch.eps
            if self.noise_offset:
                # Noise that candidates share is in memory once, and stays so.
                eps = eps[:, :1] if self.shared_noise else eps
                offset = _own_noise(eps[..., :1, :1], "offset", stage.seed, batch.names)
                eps = (eps + self.noise_offset * offset).expand_as(x0)
            probe = forward_probe(path, x0, t, eps, cond)
            if self.input_perturbation:
                noise = _own_noise(x0, "perturbation", stage.seed, batch.names)
                moved = probe.x_t + like(self.input_perturbation * path.sigma(t), x0) * noise
                probe = replace(probe, x_t=moved.to(probe.x_t.dtype))
            return stage.weighted(probe)

        return Prober(make)


def _own_noise(x: Tensor, kind: str, seed: int, names: tuple[str, ...]) -> Tensor:
    """Normal noise like x "b k *", which follows from the seed, the kind and the names of the b groups alone."""
    assert len(names) == len(x), "every group has a name"
    k = x.shape[1]
    draws = [generator(seed, kind, name, candidate) for name in names for candidate in range(k)]
    return draw(x.flatten(0, 1), draws).unflatten(0, (len(x), k))
