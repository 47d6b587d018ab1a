"""What a run's probe is built on, and what comes out of it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from diffpref.files.store import TensorStore
from diffpref.probes.batch import AnyBatch
from diffpref.transition import Ancestral, StepRule
from diffpref.types import Backbone, Cond, Probe


def told(choice: object, *, always: tuple[str, ...]) -> dict[str, object]:
    """The fields of a choice for an identity: these, and others where they are not at their defaults.

    So a field that is new leaves the names of what was kept before as they were."""
    assert dataclasses.is_dataclass(choice), "a choice is a frozen dataclass"
    fields = dataclasses.fields(choice)
    return {f.name: value for f in fields if (value := getattr(choice, f.name)) != f.default or f.name in always}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Both models, what the backbone says of noise levels and steps, and where computed latents may be kept."""

    policy: Backbone
    reference: Backbone
    weight: Callable[[Tensor], Tensor]
    """t "b" -> the weight "b" of squared errors that the backbone is trained with."""
    rule: StepRule
    """The stochastic sampler of on-policy chains."""
    seed: int
    identity: str
    """Names the run: equal for equal policy, reference and data."""
    folder: Path

    def weighted(self, probe: Probe) -> Probe:
        """The probe with the backbone's weight in its own."""
        return replace(probe, weight=probe.weight * self.weight(probe.t).to(probe.weight))


@dataclass(frozen=True)
class Prober:
    """From a batch and its conditioning to a probe; `kept` holds the inversions that later epochs use again."""

    probe: Callable[[AnyBatch, Cond], Probe]
    kept: TensorStore | None = None

    def __call__(self, batch: AnyBatch, cond: Cond) -> Probe:
        return self.probe(batch, cond)

    def flush(self) -> None:
        """Write the inversions that are kept in memory only."""
        if self.kept is not None:
            self.kept.flush()


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What the rest of a run has to know of its probe."""

    takes: type
    """The batches that it starts from: `Batch` of images, or `StepBatch` of a stored chain's steps."""
    runs_reference: bool = False
    """Whether making the probe runs a model, so that the reference's weights must be in place."""
    runs_policy: bool = False
    """Whether making the probe needs the policy's own weights."""
    shared_noise: bool = True
    """Whether all candidates of a group are noised alike."""
    repeats: int = 0
    """How many draws of t each group uses in turn, because what they cost is kept; 0 draws at every step."""
    guidance: float = 1.0
    """Classifier-free guidance in the loss; 1 is none."""
    eta: float | None = None
    """Noise of the chains' sampler, in units of DDIM's posterior; None is the backbone's own."""

    def rule(self, step: StepRule) -> StepRule:
        """The backbone's sampler of chains, with this noise; ValueError where it has no eta."""
        if self.eta is None:
            return step
        if not isinstance(step, Ancestral):
            raise ValueError(
                f"chain_eta is DDIM's: this backbone's chains are drawn by {type(step).__name__}, whose noise is its "
                "own. Leave chain_eta out."
            )
        return replace(step, eta=self.eta)


@runtime_checkable
class ProbeChoice(Protocol):
    """A member of the probe axis: where on the path policy and reference are compared."""

    @property
    def traits(self) -> Traits:
        """What the rest of a run has to know of it."""
        ...

    def check_stored(self, draws: int) -> None:
        """Raise ValueError where the reference's errors of `draws` draws for each group cannot be kept."""
        ...

    def identity(self) -> Mapping[str, object]:
        """What the reference's errors depend on, beside the batch."""
        ...

    def cost(self) -> str:
        """What making the probe costs beside the step's forwards, for people; empty for nothing."""
        ...

    def build(self, stage: Stage) -> Prober:
        """What makes the probe of each batch."""
        ...
