"""Real images, each next to a sample of the reference for its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from diffpref.backbones import Encoder
from diffpref.backbones.identity import weights_hash
from diffpref.backbones.prompts import collate
from diffpref.data.encode import EncodedPreferences, Group, encode_preferences
from diffpref.data.framing import Framing, to_square
from diffpref.data.rows import Preferences
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.run.memory import free_memory
from diffpref.run.precision import DTYPES
from diffpref.run.randomness import generator
from diffpref.sources.images import ImageGroups
from diffpref.training.rounds import Basis, Encoded, Say, encode_fixed
from diffpref.types import Cond

SAMPLE_BATCH = 64


@dataclass(frozen=True)
class Fakes:
    """What a round of self-play learns from: `count` real images and as many samples of the reference."""

    basis: Basis
    real: Preferences
    number: int
    """Of the round, from 1."""
    count: int

    def summary(self) -> str:
        """How many images there are, for people."""
        return f"self-play against {len(self.real)} real images"

    def encode(self, accelerator: Accelerator, say: Say) -> Encoded:
        """Unguided samples of the reference next to the real images; what the store has is not drawn again."""
        basis = self.basis
        data, seed = basis.data, basis.run.seed
        order = torch.randperm(len(self.real), generator=generator(seed, "real", self.number)).tolist()
        chosen = [order[place % len(order)] for place in range(self.count)]
        encoder = basis.family.load_encoder(accelerator.device)
        fixed = encode_fixed(basis, encoder)
        assert data.cache_dir is not None, "self-play sets it"
        store = TensorStore(data.cache_dir)
        rows = self.real.subset(sorted(set(chosen)), dropped={}, step=f"round {self.number}")
        encoded = encode_preferences(
            rows,
            encoder,
            store,
            Framing(data.resolution, data.crop, False, seed),
            dtype=data.cache_dtype,
            share=(accelerator.process_index, accelerator.num_processes),
        )
        accelerator.wait_for_everyone()
        store.refresh()
        by_place = dict(zip(sorted(set(chosen)), encoded.groups, strict=True))
        real = [by_place[place] for place in chosen]
        keys = self._draw(accelerator, encoder, store, real, fixed.empty, say)
        del encoder
        free_memory()
        groups = [Group((g.pictures[0], fake), (), g.prompt, (1.0, 0.0)) for g, fake in zip(real, keys, strict=True)]
        digest = content_key(*(repr(group) for group in groups))
        return Encoded(groups=ImageGroups(EncodedPreferences(groups, store, digest)), **fixed._asdict())

    def _draw(
        self,
        accelerator: Accelerator,
        encoder: Encoder,
        store: TensorStore,
        real: Sequence[Group],
        empty: Cond,
        say: Say,
    ) -> list[str]:
        """The key of each real image's fake, all of them in the store."""
        family, data, seed = self.basis.family, self.basis.data, self.basis.run.seed
        network = family.load_network(torch.float32).to(accelerator.device).eval()
        decoder = family.load_decoder(network, accelerator.device)
        steps = self.basis.validation.num_inference_steps
        identity = f"{weights_hash(network)} {steps} {seed} {self.number} {data.resolution} {data.cache_dtype}"
        keys = [content_key("fake", identity, group.prompt, str(place)) for place, group in enumerate(real)]
        missing = [place for place, key in enumerate(keys) if key not in store]
        share = missing[accelerator.process_index :: accelerator.num_processes]
        for first in range(0, len(share), SAMPLE_BATCH):
            part = share[first : first + SAMPLE_BATCH]
            drawn = decoder.sample(
                collate([store.get(real[place].prompt) for place in part]),
                empty,
                resolution=data.resolution,
                seeds=[generator(seed, "fake", self.number, place).initial_seed() for place in part],
                steps=steps,
                guidance_scale=1.0,
                batch_size=SAMPLE_BATCH,
            )
            # Through the same pixels and the same encoder as the real ones: raw samples would give themselves away.
            squares = [to_square(image.convert("RGB"), data.resolution, (0.5, 0.5)) for image in drawn]
            draws = [generator(seed, "posterior", self.number, place) for place in part]
            for place, latent in zip(part, encoder.encode_pictures(torch.stack(squares), draws), strict=True):
                store.add(keys[place], {"latent": latent.to(DTYPES[data.cache_dtype])})
            done = first + len(part)
            if done == len(share) or done // SAMPLE_BATCH % 16 == 0:
                store.flush()
                say(f"sampled {done} of {len(share)} fakes")
        store.flush()
        accelerator.wait_for_everyone()
        store.refresh()
        return keys
