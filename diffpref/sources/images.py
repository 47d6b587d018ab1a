"""Encoded images as the groups of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffpref.data.encode import EncodedPreferences
from diffpref.probes import Batch
from diffpref.run.randomness import epoch_order
from diffpref.training.stream import Draws
from diffpref.types import Candidates, Cond


@dataclass(frozen=True)
class ImageGroups:
    """Groups of images; each epoch is a permutation of its own."""

    encoded: EncodedPreferences
    fresh: bool = False
    """A new draw of each image's posterior each time, in place of the one that is kept."""
    mirror_alone: bool = False
    """Each image is mirrored by a draw of its own, and not the group's."""

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
        mirroring = self._mirrored(indices, draws)
        posteriors = draws.apart("posterior") if self.fresh else [None] * len(indices)
        for index, mirrored, draw in zip(indices, mirroring, posteriors, strict=True):
            images, prompt, group_scores = self.encoded.group(index, mirrored=mirrored, draw=draw)
            latents.append(images)
            prompts.append(prompt)
            scores.append(torch.tensor(group_scores))
        x0 = torch.stack(latents).float()
        t, cond = draws.times(), draws.condition(prompts, self._told(indices, draws))
        candidates = Candidates(x0, torch.stack(scores).float(), cond)
        return Batch(candidates, t, draws.noise(x0), draws.names)

    def _mirrored(self, indices: Sequence[int], draws: Draws) -> Sequence[bool | list[bool]]:
        """Whether all images of each group are mirrored, or which."""
        if not self.mirror_alone:
            return draws.mirrored
        counts = [len(self.encoded.groups[index].pictures) for index in indices]
        coins = [torch.rand(k, generator=draw) for k, draw in zip(counts, draws.apart("mirror"), strict=True)]
        return [(coin < 0.5).tolist() for coin in coins]

    def _told(self, indices: Sequence[int], draws: Draws) -> Cond | None:
        """The images' size and crop, `framing` "b 4", where they are kept."""
        if not self.encoded.sizes:
            return None
        sizes = [self.encoded.sizes[index] for index in indices]
        rows = [
            (size.height, size.width, size.top, size.mirrored_left if mirrored else size.left)
            for size, mirrored in zip(sizes, draws.mirrored, strict=True)
        ]
        return {"framing": torch.tensor(rows, dtype=torch.float32)}
