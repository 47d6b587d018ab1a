"""The embedded reward: is the picture drawn in OpenMoji's hand? For labels on the tiny models, never for evaluation.

It shares nothing with `diffpref.demo.judge` but the kind of pictures. Axes: n pictures, c channels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffpref.files import atomic
from diffpref.files.embedded import embedded
from diffpref.rewards.checkpoint import versions

SIZE = 64
"""Height and width of every picture that the reward sees, in pixels."""
_CHUNK = 128


def to_tensor(images: Sequence[Image.Image]) -> Float[Tensor, "n 3 64 64"]:
    """The pictures in [-1, 1], resized to 64 x 64; what is transparent becomes white."""
    arrays = np.zeros((len(images), SIZE, SIZE, 3), np.uint8)
    for array, image in zip(arrays, images, strict=True):
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        image = image.convert("RGB")
        if image.size != (SIZE, SIZE):
            image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        array[...] = np.asarray(image)
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


class HandNetwork(nn.Module):
    """Four convolutions; the last three maps' means and deviations over the picture make the logit, so it sees texture
    and not where anything is."""

    def __init__(self, *, widths: Sequence[int]) -> None:
        super().__init__()
        one, two, three, four = widths
        self.architecture = {"widths": list(widths)}
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, one, 4, 2, 1),
                nn.Conv2d(one, two, 3, 1, 1),
                nn.Conv2d(two, three, 4, 2, 1),
                nn.Conv2d(three, four, 3, 2, 1),
            ]
        )
        self.logit = nn.Linear(2 * (two + three + four), 1)

    def forward(self, x: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, " n"]:
        """The logit that pictures in [-1, 1] are OpenMoji's: log of P / (1 - P), in nats."""
        x = 1 - x  # white is 0, as is the convolutions' padding
        statistics: list[Tensor] = []
        for depth, convolution in enumerate(self.convolutions):
            x = F.gelu(convolution(x))
            if depth > 0:
                flat = x.flatten(2).float()
                statistics += [flat.mean(2), (flat.var(2, correction=0) + 1e-4).sqrt()]
        return self.logit(torch.cat(statistics, 1))[:, 0]


class EmojiHand:
    """A trained network as a reward; it does not look at the prompts."""

    def __init__(self, network: HandNetwork, device: torch.device, checkpoint: str) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device
        self.provenance = {
            "scorer": "emoji_hand",
            "checkpoint": checkpoint,
            "preprocessing": f"on white; to RGB; {SIZE} x {SIZE}, Lanczos, 8 bit (Pillow)",
            "dtype": "float32",
            "unit": "logit",
            **versions("torch", "pillow"),
        }

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """The logit that each picture is OpenMoji's and not Google's or Twitter's, on the CPU."""
        chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
        logits = [self.network(to_tensor(chunk).to(self.device)).cpu() for chunk in chunks]
        return torch.cat(logits) if logits else torch.zeros(0)

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The difference of the logits: a is preferred where it is OpenMoji's and b is not."""
        return a - b


@dataclass(frozen=True)
class EmojiHandSettings:
    """The embedded reward has nothing to set but where its files are."""

    directory: Path | None = None
    """A folder that `save` wrote; without it the embedded one."""

    def load(self, device: torch.device) -> EmojiHand:
        return load(device, self.directory)


def save(network: HandNetwork, directory: Path, *, notes: dict[str, object]) -> None:
    """Write reward.safetensors (float16) and config.json, which also takes `notes` (the measured figures)."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    with atomic.replacing(directory / "reward.safetensors") as temporary:
        save_file(tensors, temporary)
    config = {"architecture": network.architecture, **notes}
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load(device: torch.device, directory: Path | None = None) -> EmojiHand:
    """The embedded reward, or the one that `save` wrote in `directory`, in float32.

    Raises:
        ValueError: a file of it is missing.
    """
    checkpoint = "assets/emoji-reward" if directory is None else str(directory)
    directory = directory or embedded("assets/emoji-reward")
    for name in ("config.json", "reward.safetensors"):
        if not (directory / name).is_file():
            raise ValueError(f"no reward in {directory}: {name} is missing; assets/make/reward.py writes both files.")
    network = HandNetwork(**json.loads((directory / "config.json").read_text(encoding="utf-8"))["architecture"])
    tensors = load_file(directory / "reward.safetensors")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return EmojiHand(network, device, checkpoint)
