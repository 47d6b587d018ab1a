"""Transitions: the steps of the model's own sampling chains (D3PO)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

from annotated_types import Gt

from diffpref.probe import transition_probe
from diffpref.probes.batch import AnyBatch, StepBatch
from diffpref.probes.stage import Prober, Stage, Traits
from diffpref.types import Cond, Probe


@dataclass(frozen=True)
class Transition:
    """Compare policy and reference at the stored steps of on-policy chains."""

    train_guidance_scale: float = 1.0
    """Classifier-free guidance of the chains, in sampling and in the loss; D3PO uses 5."""
    chain_eta: Annotated[float, Gt(0)] | None = None
    """SD 1.5, SDXL, EDM: noise of the chains' steps, in units of DDIM's posterior deviation; 1 by default and in
    D3PO."""

    @property
    def traits(self) -> Traits:
        """What the rest of a run has to know of this probe."""
        return Traits(takes=StepBatch, guidance=self.train_guidance_scale, eta=self.chain_eta)

    def check_stored(self, draws: int) -> None:
        """Raise ValueError: chains are drawn again in every round."""
        raise ValueError(
            "stored_reference is for images; the steps of chains are drawn again in every round: leave it out."
        )

    def identity(self) -> Mapping[str, object]:
        """What the reference's errors depend on, beside the batch."""
        return {"probe": type(self).__name__, **asdict(self)}

    def cost(self) -> str:
        """Nothing beside the step's forwards."""
        return ""

    def build(self, stage: Stage) -> Prober:
        """What makes the probe of each batch; a step's density is its weight, which no other weight joins."""

        def make(batch: AnyBatch, cond: Cond) -> Probe:
            assert isinstance(batch, StepBatch), "the source gives what the probe takes"
            x_t = batch.candidates.x0
            return transition_probe(stage.policy.path, x_t, batch.x_s, batch.t, batch.s, cond, rule=stage.rule)

        return Prober(make)
