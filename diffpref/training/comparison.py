"""The probe of a run: from a batch to the place on the path where policy and reference are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffpref.backbones import Family
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.inversion import Inverter, invert
from diffpref.probe import forward_probe, inversion_probe, inverted_probe, transition_probe
from diffpref.training.config import Comparison
from diffpref.training.stream import Batch, StepBatch, generator
from diffpref.types import Backbone, Cond, Probe


@dataclass(frozen=True)
class Prober:
    """From a batch and its conditioning to a probe; `kept` holds the inversions that later epochs use again."""

    probe: Callable[[Batch | StepBatch, Cond], Probe]
    kept: TensorStore | None = None

    def __call__(self, batch: Batch | StepBatch, cond: Cond) -> Probe:
        return self.probe(batch, cond)

    def flush(self) -> None:
        """Write the inversions that are kept in memory only."""
        if self.kept is not None:
            self.kept.flush()


def check_comparison(settings: Comparison) -> None:
    """Raise ValueError for settings that contradict each other."""
    if settings.inversion_steps < 1:
        raise ValueError(f"inversion_steps must be 1 or above, got {settings.inversion_steps}.")
    if settings.renoise < int(settings.average_estimates):
        raise ValueError(
            f"renoise must be 0 or above, and 1 or above with average_estimates, got {settings.renoise}; SmPO uses 1."
        )
    if not settings.inversion_eta >= 0:
        raise ValueError(f"inversion_eta must be 0 or above, got {settings.inversion_eta}; InPO's code uses 0.1.")
    if settings.train_guidance_scale != 1 and settings.probe != "transition":
        raise ValueError(
            f"train_guidance_scale is for probe: transition, got {settings.train_guidance_scale} with probe: "
            f"{settings.probe}; published losses on pictures have none: leave it out."
        )
    if settings.stored_inversions < 0:
        raise ValueError(f"stored_inversions must be 0 or above, got {settings.stored_inversions}.")
    if settings.stored_inversions and settings.probe != "inversion":
        raise ValueError(f"stored_inversions needs probe: inversion, got {settings.probe}: leave it out.")
    if settings.stored_inversions and (settings.inversion_model != "reference" or settings.inversion_eta):
        raise ValueError(
            "stored_inversions needs inversion_model: reference and inversion_eta: 0, for what the policy or fresh "
            "noise changes cannot be kept."
        )


@dataclass(frozen=True)
class Inversion:
    """Inverts each batch, or finds it in the store of an earlier epoch."""

    model: Backbone
    settings: Comparison
    seed: int
    store: TensorStore | None
    identity: str
    """All that stored latents depend on, beside the group and the settings here."""
    inverter: Inverter = invert

    def latents(self, batch: Batch, cond: Cond, store: TensorStore) -> Tensor:
        """x_t "b k *chw" of every candidate at its group's t: what is in the store, and the rest inverted and kept."""
        keys = [self._key(name) for name in batch.names]
        found = [store.get(key)["x_t"] if key in store else None for key in keys]
        missing = [place for place, latent in enumerate(found) if latent is None]
        if missing:
            some = {name: value[missing] for name, value in cond.items()}
            names = [batch.names[place] for place in missing]
            fresh = self._invert(batch.candidates.x0[missing], batch.t[missing], some, names)
            for place, latent in zip(missing, fresh.x_t, strict=True):
                found[place] = latent
                store.add(keys[place], {"x_t": latent.float().cpu()})
        return torch.stack([latent.to(batch.candidates.x0) for latent in found if latent is not None])

    def _key(self, name: str) -> str:
        s = self.settings
        how = (s.inversion_steps, s.renoise, s.average_estimates, self.inverter is not invert)
        return content_key(name, repr(how), self.identity)

    def _invert(self, x0: Tensor, t: Tensor, cond: Cond, names: Sequence[str]) -> Probe:
        settings = self.settings
        draws = [generator(self.seed, "eta", name, candidate) for name in names for candidate in range(x0.shape[1])]
        return inversion_probe(
            self.model,
            x0,
            t,
            cond,
            steps=settings.inversion_steps,
            renoise=settings.renoise,
            average=settings.average_estimates,
            eta=settings.inversion_eta,
            generator=draws,
            inverter=self.inverter,
        )

    def __call__(self, batch: Batch | StepBatch, cond: Cond) -> Probe:
        assert isinstance(batch, Batch), "inversion starts from pictures"
        if self.store is None:
            return self._invert(batch.candidates.x0, batch.t, cond, batch.names)
        return inverted_probe(
            self.model.path, batch.candidates.x0, self.latents(batch, cond, self.store), batch.t, cond
        )


def build_prober(
    settings: Comparison,
    family: Family,
    policy: Backbone,
    reference: Backbone,
    *,
    seed: int,
    identity: str,
    store: Path,
    inverter: Inverter = invert,
) -> Prober:
    """The probe that the settings name, with the errors' weight that the backbone is trained with."""
    path = policy.path

    def forward(batch: Batch | StepBatch, cond: Cond) -> Probe:
        assert isinstance(batch, Batch), "forward noise starts from pictures"
        return forward_probe(path, batch.candidates.x0, batch.t, batch.eps, cond)

    def transition(batch: Batch | StepBatch, cond: Cond) -> Probe:
        assert isinstance(batch, StepBatch), "a transition is a step of a stored chain"
        return transition_probe(path, batch.candidates.x0, batch.x_s, batch.t, batch.s, cond, rule=family.STEP)

    if settings.probe == "transition":
        return Prober(transition)
    model = policy if settings.inversion_model == "policy" else reference
    kept = TensorStore(store) if settings.probe == "inversion" and settings.stored_inversions else None
    unweighted = forward if settings.probe == "forward" else Inversion(model, settings, seed, kept, identity, inverter)

    def weighted(batch: Batch | StepBatch, cond: Cond) -> Probe:
        probe = unweighted(batch, cond)
        return replace(probe, weight=probe.weight * family.loss_weight(path, batch.t).to(probe.weight))

    return Prober(weighted, kept)
