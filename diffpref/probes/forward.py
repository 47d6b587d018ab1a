"""Forward noise: every candidate is noised to its group's t (Diffusion-DPO, RankDPO, DDO)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from diffpref.probe import forward_probe
from diffpref.probes.batch import AnyBatch, Batch
from diffpref.probes.stage import Prober, Stage, Traits
from diffpref.types import Cond, Probe


@dataclass(frozen=True)
class Forward:
    """Compare policy and reference at noised images."""

    shared_noise: bool = True
    """One noise for all images of a group, as in Diffusion-DPO's code; its paper and RankDPO's draw one for each."""

    @property
    def traits(self) -> Traits:
        """What the rest of a run has to know of this probe."""
        return Traits(takes=Batch, shared_noise=self.shared_noise)

    def check_stored(self, draws: int) -> None:
        """Forward noise follows from the draw, so that errors can always be kept."""

    def identity(self) -> Mapping[str, object]:
        """What the reference's errors depend on, beside the batch."""
        return {"probe": type(self).__name__, **asdict(self)}

    def cost(self) -> str:
        """Nothing beside the step's forwards."""
        return ""

    def build(self, stage: Stage) -> Prober:
        """What makes the probe of each batch."""

        def make(batch: AnyBatch, cond: Cond) -> Probe:
            assert isinstance(batch, Batch), "the source gives what the probe takes"
            path = stage.policy.path
            return stage.weighted(forward_probe(path, batch.candidates.x0, batch.t, batch.eps, cond))

        return Prober(make)
