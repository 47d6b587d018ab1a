"""Inversion: every candidate is inverted to its group's t by one of the models (DDIM-InPO, SmPO)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor

from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.inversion import Inverter, invert
from diffpref.probe import inversion_probe, inverted_probe
from diffpref.probes.batch import AnyBatch, Batch
from diffpref.probes.stage import Prober, Stage, Traits
from diffpref.run.randomness import generator
from diffpref.settings.dotted import load_callable
from diffpref.types import Backbone, Cond, Probe

RULE = 2
"""Grows when `invert` answers otherwise: latents and errors kept under another number are made again."""


@dataclass(frozen=True)
class Inversion:
    """Compare policy and reference at inverted images."""

    inversion_steps: Annotated[int, Ge(1)] = 10
    """Levels from the clean image up to t."""
    renoise: Annotated[int, Ge(0)] = 0
    """How often each step's noise is estimated again; 0 is DDIM inversion (InPO), SmPO uses 1."""
    average_estimates: bool = False
    """Use the mean of the estimates; SmPO does."""
    inversion_eta: Annotated[float, Ge(0)] = 0.0
    """Noise added after each step, in units of DDIM's posterior; InPO's code uses 0.1."""
    inversion_model: Literal["reference", "policy"] = "reference"
    """Who inverts. The published code lets the policy, whose latents then drift and cannot be stored."""
    stored_inversions: Annotated[int, Ge(0)] = 0
    """Keep the reference's latents of this many draws of t for each group, and use them in turn; an epoch after these
    costs no inversion. 0 inverts at every step."""
    inverter: str = ""
    """Another inversion than ours, as my_file.py:function with the arguments of `diffpref.probe.invert`; the published
    scripts' is examples/official_inversion.py:invert_as_published."""

    def __post_init__(self) -> None:
        if self.average_estimates and self.renoise < 1:
            raise ValueError(f"renoise must be 1 or above with average_estimates, got {self.renoise}; SmPO uses 1.")
        if self.stored_inversions and (self.policy_inverts or self.inversion_eta):
            raise ValueError(
                "stored_inversions needs inversion_model: reference and inversion_eta: 0, for what the policy or fresh "
                "noise changes cannot be kept."
            )

    @property
    def policy_inverts(self) -> bool:
        """Whether the policy inverts, and not the reference."""
        return self.inversion_model == "policy"

    @property
    def traits(self) -> Traits:
        """What the rest of a run has to know of this probe."""
        return Traits(takes=Batch, runs_reference=True, runs_policy=self.policy_inverts, repeats=self.stored_inversions)

    def check_stored(self, draws: int) -> None:
        """Raise ValueError where the latents move, so that the reference's errors cannot be kept."""
        if self.policy_inverts or self.inversion_eta:
            raise ValueError(
                "stored_reference needs inversion_model: reference and inversion_eta: 0, for where the policy or fresh "
                "noise moves the latents, the reference's errors cannot be kept."
            )
        if self.stored_inversions not in (0, draws):
            raise ValueError(
                "stored_inversions and stored_reference count the same draws: set both to one number, got "
                f"{self.stored_inversions} and {draws}."
            )

    def identity(self) -> Mapping[str, object]:
        """What the reference's errors depend on, beside the batch."""
        fields = {name: value for name, value in asdict(self).items() if name != "stored_inversions"}
        return {"probe": type(self).__name__, "rule": RULE, **fields}

    def cost(self) -> str:
        """The forwards of an inversion, for people."""
        most = self.inversion_steps * (1 + self.renoise)
        stored = f"; after {self.stored_inversions} epochs none, they are stored" if self.stored_inversions else ""
        return f"inversion: up to {most} more forwards a candidate, half of that on average{stored}"

    def build(self, stage: Stage) -> Prober:
        """What makes the probe of each batch."""
        model = stage.policy if self.policy_inverts else stage.reference
        store = TensorStore(stage.folder) if self.stored_inversions else None
        function = cast(Inverter, load_callable("inverter", self.inverter)) if self.inverter else invert
        return Prober(Inverting(self, stage, model, store, function), store)


@dataclass(frozen=True)
class Inverting:
    """Inverts each batch, or finds it in the store of an earlier epoch."""

    how: Inversion
    stage: Stage
    model: Backbone
    store: TensorStore | None
    inverter: Inverter

    def __call__(self, batch: AnyBatch, cond: Cond) -> Probe:
        assert isinstance(batch, Batch), "the source gives what the probe takes"
        x0 = batch.candidates.x0
        if self.store is None:
            return self.stage.weighted(self._invert(x0, batch.t, cond, batch.names))
        latents = self._latents(batch, cond, self.store)
        return self.stage.weighted(inverted_probe(self.model.path, x0, latents, batch.t, cond))

    def _latents(self, batch: Batch, cond: Cond, store: TensorStore) -> Tensor:
        """x_t "b k *chw" of every candidate at its group's t: what is in the store, and the rest inverted and kept."""
        keys = [self._key(name) for name in batch.names]
        latents = [store.get(key)["x_t"] if key in store else None for key in keys]
        missing = [place for place, latent in enumerate(latents) if latent is None]
        if missing:
            some = {name: value[missing] for name, value in cond.items()}
            names = [batch.names[place] for place in missing]
            fresh = self._invert(batch.candidates.x0[missing], batch.t[missing], some, names)
            for place, latent in zip(missing, fresh.x_t, strict=True):
                latents[place] = latent
                store.add(keys[place], {"x_t": latent.float().cpu()})
        return torch.stack([latent.to(batch.candidates.x0) for latent in latents if latent is not None])

    def _key(self, name: str) -> str:
        how = self.how
        settings = (how.inversion_steps, how.renoise, how.average_estimates, how.inverter or False, RULE)
        return content_key(name, repr(settings), self.stage.identity)

    def _invert(self, x0: Tensor, t: Tensor, cond: Cond, names: Sequence[str]) -> Probe:
        seed, candidates = self.stage.seed, range(x0.shape[1])
        draws = [generator(seed, "eta", name, candidate) for name in names for candidate in candidates]
        return inversion_probe(
            self.model,
            x0,
            t,
            cond,
            steps=self.how.inversion_steps,
            renoise=self.how.renoise,
            average=self.how.average_estimates,
            eta=self.how.inversion_eta,
            generator=draws,
            inverter=self.inverter,
        )
