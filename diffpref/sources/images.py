"""Encoded images as the groups of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffpref.data.encode import EncodedPreferences
from diffpref.probes import Batch
from diffpref.run.randomness import epoch_order
from diffpref.training.stream import Draws
from diffpref.types import Candidates


@dataclass(frozen=True)
class ImageGroups:
    """Groups of images; each epoch is a permutation of its own."""

    encoded: EncodedPreferences

    @property
    def fingerprint(self) -> str:
        """Names the data: equal for equal rows, images, encoder and framing."""
        return self.encoded.fingerprint

    def __len__(self) -> int:
        return len(self.encoded)

    def order(self, seed: int, epoch: int) -> Sequence[int]:
        """The groups in the order of an epoch."""
        return epoch_order(seed, epoch, len(self)).tolist()

    def batch(self, indices: Sequence[int], draws: Draws) -> Batch:
        """The groups at the indices with their t and noise, mirrored where that was drawn."""
        latents, scores, prompts = [], [], []
        for index, mirrored in zip(indices, draws.mirrored, strict=True):
            images, prompt, group_scores = self.encoded.group(index, mirrored=mirrored)
            latents.append(images)
            prompts.append(prompt)
            scores.append(torch.tensor(group_scores))
        x0 = torch.stack(latents).float()
        t, cond = draws.times(), draws.condition(prompts)
        candidates = Candidates(x0, torch.stack(scores).float(), cond)
        return Batch(candidates, t, draws.noise(x0), draws.names)
