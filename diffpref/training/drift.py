"""Drift: whether the policy still knows what the base model draws by itself.

DPO only asks that rejected images fit worse than chosen ones, and `sft` holds the chosen error down, so that the
training images may look well while the network forgets everything else. The base model's own samples show it: the
policy's error on them, over the reference's, at the same times and noise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffpref.backbones.guidance import guided
from diffpref.backbones.prompts import collate, concatenate, split
from diffpref.files import atomic
from diffpref.probes import Batch
from diffpref.run.randomness import generator
from diffpref.training.fixed import Fixed, parts, places
from diffpref.training.groups import Validation
from diffpref.training.rounds import Encoded
from diffpref.training.stream import Groups
from diffpref.transition import Ancestral, finish, sample_chain
from diffpref.types import Candidates, Cond

NAME = "own"
"""What the draws of own samples follow from, beside seed and place."""
FAR = 3.0
"""The base model's error on the data, over that on its own samples, from which on the data are far from it."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Measures drift on samples of the reference."""

    fixed: Fixed
    samples: Float[Tensor, " n *chw"]
    conds: Sequence[Cond]
    """What each sample was drawn for, first axis 1."""

    def __call__(self) -> dict[str, float]:
        """`drift`, and both models' errors on the samples."""
        policy, reference = self.fixed.errors(self._batches(), reference=False).mean(), self.reference
        return {
            "drift": float(policy) / reference,
            "error/own/policy": float(policy),
            "error/own/reference": reference,
        }

    @cached_property
    def reference(self) -> float:
        """The reference's error on the samples."""
        return float(self.fixed.errors(self._batches(), reference=True).mean())

    def distance(self, groups: Groups) -> float:
        """The reference's error on the images of as many groups, over that on its samples, at the same times."""
        batches = self.fixed.batches(groups, spread(len(groups), len(self.samples)), NAME)
        return float(self.fixed.errors(batches, reference=True).mean()) / self.reference

    def _batches(self) -> Iterator[Batch]:
        for part in parts(places(len(self.samples)), self.fixed.at_once):
            draws = self.fixed.draws(NAME, part)
            x0 = torch.stack([self.samples[which] for which, _ in part])[:, None]
            cond = concatenate([self.conds[which] for which, _ in part])
            yield Batch(Candidates(x0, torch.zeros(len(part), 1), cond), draws.times(), draws.noise(x0), draws.names)


def open_drift(fixed: Fixed, encoded: Encoded, validation: Validation, folder: Path) -> Drift:
    """Drift on `drift_samples` samples of the reference: of the validation prompts, then of the groups' prompts.

    They are drawn by DDIM with the validation images' steps and guidance, and kept with their prompts in
    folder/own.safetensors: a resumed run is measured on the samples that it began with.
    """
    file = folder / "own.safetensors"
    if not file.is_file():
        conds = prompts(fixed, encoded, validation.drift_samples)
        kept = {f"{which}/{name}": value.clone() for which, cond in enumerate(conds) for name, value in cond.items()}
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(file) as new:
            save_file({"samples": _drawn(fixed, encoded, validation, conds), **kept}, new)
    kept = load_file(file)
    samples = kept.pop("samples")
    named = [[name.split("/", 1) for name in kept if name.startswith(f"{which}/")] for which in range(len(samples))]
    conds = [{name: kept[f"{which}/{name}"] for which, name in names} for names in named]
    return Drift(fixed=fixed, samples=samples, conds=conds)


def prompts(fixed: Fixed, encoded: Encoded, count: int) -> list[Cond]:
    """The first validation prompts, and where they are too few those of groups evenly apart; first axis 1."""
    given = split(encoded.validation)[:count] if encoded.validation else []
    conds = [fixed.drawing.complete(collate([prompt])) for prompt in given]
    groups = spread(len(encoded.groups), count - len(conds)) if len(conds) < count else []
    return [*conds, *(fixed.candidates(encoded.groups, group).cond for group in groups)]


def spread(groups: int, count: int) -> Sequence[int]:
    """At most `count` of the groups, evenly apart."""
    return range(0, groups, max(1, groups // count))[:count]


def _drawn(fixed: Fixed, encoded: Encoded, validation: Validation, conds: Sequence[Cond]) -> Float[Tensor, " n *chw"]:
    """A sample of the reference for each condition, on the CPU."""
    seed, device, path = fixed.drawing.seed, fixed.accelerator.device, fixed.family.path
    shape = fixed.candidates(encoded.groups, 0).x0.shape[2:]
    times = fixed.family.chain_times(validation.num_inference_steps).to(device)
    samples: list[Tensor] = []
    for part in parts([(which, 0) for which in range(len(conds))], fixed.at_once):
        noise = [torch.randn(shape, generator=generator(seed, "own start", which)) for which, _ in part]
        x = torch.stack(noise).to(device) * path.sigma(times[:1]).view(-1)
        joined = concatenate([conds[which] for which, _ in part])
        cond = {name: value.to(device) for name, value in joined.items()}
        with fixed.still(reference=True) as model:
            model = guided(model, validation.guidance_scale, encoded.negative)
            # Steps without noise have no density, and none is asked for.
            chain = sample_chain(model, x, times, cond, rule=Ancestral(eta=0.0))
            samples.append(finish(model, chain, cond).float().cpu())
    return torch.cat(samples)
