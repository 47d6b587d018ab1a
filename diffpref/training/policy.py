"""A finished run as two networks on one path: what it takes to compute an implicit reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.backbones import Encoder, Family, with_weights
from diffpref.data.framing import to_square
from diffpref.files.identity import content_key
from diffpref.path import GaussianPath
from diffpref.training.models import open_base
from diffpref.training.settings import from_yaml
from diffpref.types import Backbone, Cond

BATCH = 8
"""Images that are encoded at once."""


@dataclass(frozen=True)
class Encode:
    """Images and prompts as the networks of a run take them; the encoders are loaded at the first call, and kept."""

    family: Family
    device: torch.device
    resolution: int
    """Side of the square that images are resized and cropped to, in pixels."""

    @cached_property
    def encoder(self) -> Encoder:
        """The pipeline's autoencoder and text encoders."""
        return self.family.load_encoder(self.device)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]
    ) -> tuple[Float[Tensor, "b k *chw"], Cond]:
        """x0 and the conditioning: k images of each of b prompts, float32.

        An image's draw from the autoencoder's posterior follows from its pixels.

        Raises:
            ValueError: not as many rows of images as prompts, or rows of several lengths.
        """
        lengths = sorted({len(row) for row in images})
        if len(images) != len(prompts) or len(lengths) != 1 or lengths[0] == 0:
            raise ValueError(
                f"give one row of images for each of the {len(prompts)} prompts, all of one length, got {len(images)} "
                f"rows of {lengths} images."
            )
        squares = [to_square(image.convert("RGB"), self.resolution, (0.5, 0.5)) for row in images for image in row]
        seeds = [int(content_key(square.numpy().tobytes())[:15], 16) for square in squares]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = [
            self.encoder.encode_pictures(torch.stack(squares[first : first + BATCH]), draws[first : first + BATCH])
            for first in range(0, len(squares), BATCH)
        ]
        cond = self.family.group_cond(self.encoder.encode_prompts(prompts), self.resolution)
        x0 = torch.cat(latents).to(self.device).float().unflatten(0, (len(prompts), lengths[0]))
        return x0, {name: _wide(value).to(self.device) for name, value in cond.items()}


@dataclass(frozen=True)
class Still:
    """A backbone that keeps no graph."""

    model: Backbone

    @property
    def path(self) -> GaussianPath:
        return self.model.path

    @torch.no_grad()
    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]:
        return self.model(x_t, t, cond)


class Policy(NamedTuple):
    """A trained policy beside its reference."""

    policy: Backbone
    reference: Backbone
    path: GaussianPath
    encode: Encode


def load_policy(
    run: Path | str, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Policy:
    """The policy that a finished run has trained, its reference, their path, and the way in for images and prompts.

    The reference is what the run compared with: the base model, or for rounds that train all weights what the last
    round started from. Neither has guidance, and neither keeps a graph.

    >>> policy, reference, path, encode = load_policy("runs/mine")  # doctest: +SKIP

    Args:
        run: its output directory; of a run in rounds, the whole run's or one round's.
        device: by default the first accelerator, else the CPU.
        dtype: of both networks; in bfloat16 their difference has two digits.

    Raises:
        ValueError: no finished run is there, or its base model is gone.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run: name an output directory, which has a config.yaml.")
    result = from_yaml(folder / "config.yaml").source.result(folder)
    # The best weights of a round lie beside its training's folder.
    config = from_yaml(
        next(p for p in (result / "config.yaml", result.parent / "train" / "config.yaml") if p.is_file())
    )
    # A torch that is built for a GPU names one, also on a machine that has none.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    place = torch.device(device) if device is not None else accelerator or torch.device("cpu")
    base = open_base(config.model, config.times, resolution=config.data.resolution)
    adapter, weights = config.adapter.continued(result, base.checkpoint.network_weights)
    network = with_weights(base, weights).load_network(dtype).to(place)
    adapter.attach(network, base, seed=0)
    network.eval()
    policy = base.backbone(network)
    if adapter.added:
        reference = adapter.reference(policy, network)
    else:
        reference = base.backbone(base.load_network(dtype).to(place).eval())
    return Policy(Still(policy), Still(reference), base.path, Encode(base, place, config.data.resolution))


def _wide(value: Tensor) -> Tensor:
    """Floating numbers in float32; labels and masks as they are."""
    return value.float() if value.is_floating_point() else value
