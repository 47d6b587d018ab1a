"""Collecting chains: the policy's own stochastic samples, stored so that a killed collection resumes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffpref.backbones import Encoder, Family
from diffpref.backbones.guidance import guided
from diffpref.backbones.prompts import collate
from diffpref.data.encode import encode_prompts
from diffpref.files import atomic
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.run.precision import DTYPES
from diffpref.run.randomness import generator
from diffpref.sources.dataset import encode_fixed
from diffpref.training.config import TrainConfig
from diffpref.training.models import accelerator_of, build_models, computing_of, free_memory
from diffpref.training.settings import to_mapping
from diffpref.transition import finish, sample_chain
from diffpref.types import Cond

BATCH_PROMPTS = 8
"""Prompts whose chains are sampled at once."""


@dataclass(frozen=True)
class Collection:
    """The chains of a round: keys into the store, prompt by prompt, and a picture of each chain's end."""

    prompts: Sequence[str]
    prompt_keys: Sequence[str]
    chains: Sequence[Sequence[str]]
    pictures: Sequence[Sequence[Path]]
    times: Tensor
    store: TensorStore
    validation: Cond
    empty: Cond


def collect(
    config: TrainConfig, family: Family, prompts: Sequence[str], folder: Path, say: Callable[[str], None]
) -> Collection:
    """Sample `chains_per_prompt` chains of each prompt from one start, as D3PO does, and decode where they end.

    Everything is kept in `folder`: what is there is not sampled again. A chain's noise follows from the run's seed, its
    prompt's place and its own, so that a resumed collection gives what an undisturbed one does."""
    accelerator = accelerator_of(config.run, config.adapter)
    rounds, device = config.rounds, accelerator.device
    store = TensorStore(folder / "chains")
    encoder: Encoder = family.load_encoder(device)
    validation, empty = encode_fixed(config, family, encoder)
    prompt_keys = [content_key(prompt, encoder.identity) for prompt in prompts]
    texts = dict(zip(prompt_keys, prompts, strict=True))
    encode_prompts({key: texts[key] for key in store.missing(prompt_keys)}, encoder, store, "float32")
    store.flush()
    del encoder
    free_memory()

    models = build_models(
        family,
        config.adapter,
        accelerator,
        computing=computing_of(config.run),
        seed=config.run.seed,
    )
    models.network.eval()
    policy = guided(models.policy, config.probe.traits.guidance, empty)
    times = family.chain_times(rounds.chain_steps).to(device)
    weights = f"{models.base_hash} {to_mapping(config).get('adapter_weights')} {config.probe.traits.guidance}"
    each = range(rounds.chains_per_prompt)
    keys = [
        [content_key(prompt, weights, repr((config.run.seed, place, chain, times.tolist()))) for chain in each]
        for place, prompt in enumerate(prompts)
    ]
    pictures = [[folder / "pictures" / f"{place:05d}" / f"{chain}.png" for chain in each] for place in range(len(keys))]
    todo = [
        place
        for place in range(len(prompts))
        if any(key not in store for key in keys[place]) or not all(path.is_file() for path in pictures[place])
    ]
    mine = todo[accelerator.process_index :: accelerator.num_processes]
    decoder = family.load_decoder(models.network, device) if mine else None
    for first in range(0, len(mine), BATCH_PROMPTS):
        assert decoder is not None
        part = mine[first : first + BATCH_PROMPTS]
        shape = decoder.latent_shape(config.data.resolution)
        # Both chains of a pair leave from one start, so that only the steps tell them apart.
        starts = [torch.randn(shape, generator=generator(config.run.seed, "start", place)) for place in part]
        x = torch.stack([start for start in starts for _ in each]).to(device) * family.path.sigma(times[:1]).view(-1)
        raw = collate([store.get(prompt_keys[place]) for place in part for _ in each])
        cond = family.group_cond({name: v.to(device) for name, v in raw.items()}, config.data.resolution)
        noise = [generator(config.run.seed, "chain", place, chain) for place in part for chain in each]
        with torch.no_grad(), accelerator.autocast():
            chain = sample_chain(policy, x, times, cond, rule=family.step, generator=noise)
            ends = finish(policy, chain, cond)
        drawn = decoder.decode(ends)
        for row, place in enumerate(part):
            for number in each:
                at = row * len(each) + number
                latents = chain.latents[:, at].to(DTYPES[config.data.cache_dtype])
                store.add(keys[place][number], {"latents": latents, "log_density": chain.log_density[:, at].float()})
                pictures[place][number].parent.mkdir(parents=True, exist_ok=True)
                atomic.save_picture(pictures[place][number], drawn[at])
        # Chains before labels: what is on the disk is whole.
        store.flush()
        say(f"sampled {first + len(part)} of {len(mine)} prompts, {len(each)} chains each")
    accelerator.wait_for_everyone()
    store.refresh()
    del models, decoder, policy
    free_memory()
    return Collection(prompts, prompt_keys, keys, pictures, times.cpu(), store, validation, empty)
