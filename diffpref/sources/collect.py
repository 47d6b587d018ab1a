"""Collecting chains: the policy's own stochastic samples, stored so that a killed collection resumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from diffpref.backbones import Decoder
from diffpref.backbones.guidance import guided
from diffpref.backbones.prompts import collate
from diffpref.data.encode import encode_prompts
from diffpref.files import atomic
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.run.memory import free_memory
from diffpref.run.precision import DTYPES
from diffpref.run.randomness import generator
from diffpref.settings.record import fields_of
from diffpref.training.models import accelerator_of, build_models, computing_of
from diffpref.training.rounds import Basis, Fixed, encode_fixed
from diffpref.transition import finish, sample_chain
from diffpref.types import Backbone

BATCH_PROMPTS = 8
"""Prompts whose chains are sampled at once."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The chains of a round: keys into the store, prompt by prompt, and an image of each chain's end."""

    prompts: Sequence[str]
    prompt_keys: Sequence[str]
    chains: Sequence[Sequence[str]]
    images: Sequence[Sequence[Path]]
    times: Tensor
    store: TensorStore
    fixed: Fixed

    def missing(self) -> list[int]:
        """The prompts' places whose chains or images are not all there."""
        return [
            place
            for place, keys in enumerate(self.chains)
            if any(key not in self.store for key in keys) or not all(path.is_file() for path in self.images[place])
        ]


def collect(basis: Basis, prompts: Sequence[str], folder: Path, *, chains: int, times: Tensor) -> Collection:
    """Sample `chains` chains of each prompt from one start, as D3PO does, and decode where they end.

    Everything is kept in `folder`: what is there is not sampled again. A chain's noise follows from the run's seed, its
    prompt's place and its own, so that a resumed collection gives what an undisturbed one does.

    Args:
        chains: of each prompt, 2 or above.
        times: the falling levels of a chain.
    """
    accelerator, family = accelerator_of(basis.run, basis.adapter), basis.family
    device, seed = accelerator.device, basis.run.seed
    store = TensorStore(folder / "chains")
    encoder = family.load_encoder(device)
    fixed = encode_fixed(basis, encoder)
    prompt_keys = [content_key(prompt, encoder.identity) for prompt in prompts]
    texts = dict(zip(prompt_keys, prompts, strict=True))
    encode_prompts({key: texts[key] for key in store.missing(prompt_keys)}, encoder, store, "float32")
    store.flush()
    del encoder
    free_memory()

    models = build_models(family, basis.adapter, accelerator, computing=computing_of(basis.run), seed=seed)
    models.network.eval()
    traits = basis.probe.traits
    guidance, times = traits.guidance, times.to(device)
    weights = f"{models.base_hash} {fields_of(basis.adapter).get('adapter_weights')} {guidance}"
    weights += "" if traits.eta is None else f" eta {traits.eta}"
    keys = [
        [content_key(prompt, weights, repr((seed, place, chain, times.tolist()))) for chain in range(chains)]
        for place, prompt in enumerate(prompts)
    ]
    images = [[folder / "pictures" / f"{p:05d}" / f"{c}.png" for c in range(chains)] for p in range(len(prompts))]
    collection = Collection(
        prompts=prompts,
        prompt_keys=prompt_keys,
        chains=keys,
        images=images,
        times=times.cpu(),
        store=store,
        fixed=fixed,
    )
    places = collection.missing()[accelerator.process_index :: accelerator.num_processes]
    if places:
        decoder = family.load_decoder(models.network, device)
        _sample(collection, basis, accelerator, guided(models.policy, guidance, fixed.empty), decoder, places)
        del decoder
    accelerator.wait_for_everyone()
    store.refresh()
    del models
    free_memory()
    return collection


def _sample(
    collection: Collection,
    basis: Basis,
    accelerator: Accelerator,
    policy: Backbone,
    decoder: Decoder,
    places: Sequence[int],
) -> None:
    """Sample and keep the chains of these prompts."""
    family, seed, device = basis.family, basis.run.seed, accelerator.device
    times, store = collection.times.to(device), collection.store
    shape, rule = decoder.latent_shape(basis.data.resolution), basis.probe.traits.rule(family.step)
    chains = range(len(collection.chains[0]))
    for first in range(0, len(places), BATCH_PROMPTS):
        part = places[first : first + BATCH_PROMPTS]
        # All chains of a prompt leave from one start, so that only the steps tell them apart.
        starts = [torch.randn(shape, generator=generator(seed, "start", place)) for place in part]
        x = torch.stack([start for start in starts for _ in chains]).to(device) * family.path.sigma(times[:1]).view(-1)
        prompts = collate([store.get(collection.prompt_keys[place]) for place in part for _ in chains])
        cond = family.group_cond({name: v.to(device) for name, v in prompts.items()}, basis.data.resolution)
        noise = [generator(seed, "chain", place, chain) for place in part for chain in chains]
        with torch.no_grad(), accelerator.autocast():
            sampled = sample_chain(policy, x, times, cond, rule=rule, generator=noise)
            ends = finish(policy, sampled, cond)
        drawn = decoder.decode(ends)
        for at, (place, chain) in enumerate((place, chain) for place in part for chain in chains):
            latents = sampled.latents[:, at].to(DTYPES[basis.data.cache_dtype])
            density = sampled.log_density[:, at].float()
            store.add(collection.chains[place][chain], {"latents": latents, "log_density": density})
            file = collection.images[place][chain]
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic.save_picture(file, drawn[at])
        # Chains before labels: what is on the disk is whole.
        store.flush()
        basis.say(f"sampled {first + len(part)} of {len(places)} prompts, {len(chains)} chains each")
