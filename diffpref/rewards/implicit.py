"""A trained policy as a reward: how much more probable than its reference does it find an image?

r(x0) = E over (t, noise) of w(t) beta log_ratio, of images noised forward; Rafailov et al. 2024, arXiv 2404.12358, on
the objective of Wallace et al. 2024, arXiv 2311.12908, eq. 14. Axes: n images, d draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float, Num
from PIL import Image
from torch import Tensor

from diffpref.rewards.clip_pairs import Dtype
from diffpref.settings import bounds

FINER = 32
"""How many times of the training's density stand behind each draw."""


@dataclass(frozen=True)
class ImplicitSettings:
    """A finished run, and how its two networks are asked."""

    run: str = ""
    """The run's output directory."""
    draws: Annotated[int, Ge(1)] = 8
    """Times and noises for each image, the same for all images; each costs a call of both networks."""
    seed: int = 0
    """Of the times and the noises."""
    dtype: Dtype = "float32"
    """What the networks compute in; in bfloat16 their difference has two digits."""
    batch_size: Annotated[int, Ge(1)] = 4
    """Images that pass through the networks at once."""

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("reward 'implicit' needs run: the output directory of a finished run.")
        bounds.check(self)

    def load(self, device: torch.device) -> "Implicit":
        """The run's policy and reference in memory.

        Raises:
            ValueError: no finished run is there, or its base model is gone.
        """
        return Implicit(self, device)


class Implicit:
    """A run's policy against its reference; scores are in nats, and of one run's own beta and latent size."""

    def __init__(self, settings: ImplicitSettings, device: torch.device) -> None:
        from diffpref.training.policy import load_policy
        from diffpref.training.settings import from_yaml

        self.settings, self.device = settings, device
        self.policy, self.reference, self.path, self.encode = load_policy(
            settings.run, device=device, dtype=getattr(torch, settings.dtype)
        )
        self.beta = float(from_yaml(Path(settings.run) / "config.yaml").objective.beta)
        self.times = self._times()
        self.provenance: Mapping[str, str] = {
            "scorer": "implicit",
            "checkpoint": settings.run,
            "preprocessing": f"middle square of {self.encode.resolution}, the base model's autoencoder",
            "unit": "nats",
            "draws": str(settings.draws),
            "seed": str(settings.seed),
            "beta": str(self.beta),
            "dtype": settings.dtype,
        }

    def _times(self) -> Num[Tensor, " d"]:
        """The middles of `draws` equal shares of the training's times."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        fine = [self.encode.family.draw_t(generator) for _ in range(self.settings.draws * FINER)]
        return torch.stack(fine).sort().values[FINER // 2 :: FINER]

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """The implicit reward of each image, in nats, float32 on the CPU; higher is better."""
        size = self.settings.batch_size
        parts = [
            self._batch(images[first : first + size], prompts[first : first + size])
            for first in range(0, len(images), size)
        ]
        return torch.cat(parts) if parts else torch.zeros(0)

    def _batch(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        from diffpref.errors import compare
        from diffpref.probe import forward_probe

        x0, cond = self.encode([[image] for image in images], prompts)
        total = torch.zeros(len(images))
        # The same for every image, whatever batch it is in: most of the variance is that of t and of the noise.
        noise = torch.Generator().manual_seed(self.settings.seed)
        for time in self.times:
            eps = torch.randn(x0.shape[2:], generator=noise).to(x0).expand_as(x0)
            t = time.to(self.device).expand(len(images))
            found = compare(self.policy, self.reference, forward_probe(self.path, x0, t, eps, cond))
            total += (self.encode.family.loss_weight(t).view(-1) * found.log_ratio[:, 0]).float().cpu()
        return self.beta * total / len(self.times)

    def pair_logit(self, a: Tensor, b: Tensor) -> Tensor:
        """log P(a is preferred) / P(b is preferred), in nats: what the training fits, without its weight of times."""
        return a - b
