"""The judge of the emoji world: whose hand drew a picture and what it shows; for evaluation, never for labels.

Axes: n pictures, d features, s style features, a artists, k captions.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffpref.demo.style import STYLE, style
from diffpref.files import atomic

SIZE = 64
"""Height and width of every picture that the judge sees, in pixels."""
_CHUNK = 128


def to_batch(pictures: Sequence[Image.Image]) -> UInt8[Tensor, "n 3 64 64"]:
    """The pictures as one tensor in 0 to 255, resized to 64 x 64; what is transparent becomes white."""
    if not pictures:
        raise ValueError("to_batch needs at least one picture, got none.")
    arrays = []
    for picture in pictures:
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
        if picture.size != (SIZE, SIZE):
            picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        arrays.append(np.array(picture))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


class _Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut; `stride` 2 halves the map."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(before, after, 1, bias=False))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return F.relu(self.body(x) + self.shortcut(x))


def _texture(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2"]:
    """Each channel's mean and standard deviation over the picture: what style transfer calls the style."""
    return torch.cat([x.mean((2, 3)), (x.var((2, 3), correction=0) + 1e-4).sqrt()], 1)


class Hand(nn.Module):
    """Artist logits, linear in the standardised style features: it sees palette and shading, not what is drawn."""

    mean: Tensor
    scale: Tensor

    def __init__(self, artists: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(STYLE))
        self.register_buffer("scale", torch.ones(STYLE))
        self.linear = nn.Linear(STYLE, artists)

    def forward(self, s: Float[Tensor, "n s"]) -> Float[Tensor, "n a"]:
        return self.linear((s - self.mean) / self.scale)


class JudgeNetwork(nn.Module):
    """A trunk that tells captions apart, and a hand that tells artists apart without the trunk.

    The trunk sees texture (statistics of the early maps) and layout (the last map, 4 x 4).

    Raises:
        ValueError: `style` is not the number of style features that `diffpref.demo.style` computes.
    """

    def __init__(
        self, *, widths: Sequence[int], features: int, embedding: int, artists: int, style: int = STYLE
    ) -> None:
        super().__init__()
        if style != STYLE:
            raise ValueError(f"this judge was made for {style} style features, this version computes {STYLE}.")
        first, low, middle, high = widths
        self.architecture = {"widths": list(widths), "features": features, "embedding": embedding, "style": style}
        self.stem = nn.Sequential(nn.Conv2d(3, first, 5, 2, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.low, self.middle, self.high = _Block(first, low, 1), _Block(low, middle, 2), _Block(middle, high, 2)
        self.trunk = nn.Sequential(nn.Linear(16 * high + 2 * (low + middle), features), nn.BatchNorm1d(features))
        self.caption = nn.Linear(features, embedding)
        self.hand = Hand(artists)

    def features(self, x: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n d"]:
        """The trunk's vector of pictures in [0, 1]; each feature has unit variance over the training pictures."""
        low = self.low(self.stem(1 - x))  # white is 0, as is the convolutions' padding
        middle = self.middle(low)
        layout = F.avg_pool2d(self.high(middle), 2).flatten(1)
        return self.trunk(torch.cat([layout, _texture(low), _texture(middle)], 1))

    def embed(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """The caption embedding of length 1 of pictures whose features are `h`."""
        return F.normalize(self.caption(F.relu(h)), dim=1)

    def forward(self, x: Float[Tensor, "n 3 64 64"]) -> tuple[Float[Tensor, "n a"], Float[Tensor, "n e"]]:
        """Artist logits, and the caption embedding of length 1."""
        return self.hand(style(x)), self.embed(self.features(x))


class Judge:
    """A trained network, and the embeddings of each caption's real drawings, one by each artist.

    A picture shows the caption that owns its nearest drawing. With a mean over the artists instead, the hand that is
    least like the mean matches worst: autoencoded OpenMoji drawings found their caption in 44 % of cases against 66 %
    of Google's, and a model that takes up that hand would seem to forget its captions; so it is 92 % for both."""

    def __init__(
        self,
        network: JudgeNetwork,
        *,
        artists: Sequence[str],
        captions: Sequence[str],
        prototypes: Float[Tensor, "k m e"],
    ) -> None:
        self.network = network.eval()
        self.artists, self.captions = tuple(artists), tuple(captions)
        self.prototypes = F.normalize(prototypes, dim=2)
        self._row = {caption: row for row, caption in enumerate(self.captions)}

    @classmethod
    def load(cls, directory: Path) -> "Judge":
        """The judge that `save` wrote, on the CPU in float32."""
        for name in ("config.json", "judge.safetensors"):
            if not (directory / name).is_file():
                raise ValueError(f"no judge in {directory}: {name} is missing; assets/make/judge.py writes both files.")
        config = json.loads((directory / "config.json").read_text())
        tensors = load_file(directory / "judge.safetensors")
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        prototypes = tensors.pop("prototypes")
        network = JudgeNetwork(**config["architecture"], artists=len(config["artists"]))
        network.load_state_dict(tensors)
        return cls(network, artists=config["artists"], captions=config["captions"], prototypes=prototypes)

    def save(self, directory: Path, *, notes: dict[str, object]) -> None:
        """Write judge.safetensors (float16) and config.json, which also takes `notes` (the split, the accuracies)."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {**self.network.state_dict(), "prototypes": self.prototypes}
        half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
        with atomic.replacing(directory / "judge.safetensors") as temporary:
            save_file({k: v.contiguous() for k, v in half.items()}, temporary)
        config = {"architecture": self.network.architecture, "artists": self.artists, "captions": self.captions}
        (directory / "config.json").write_text(json.dumps({**config, **notes}, indent=1, ensure_ascii=False) + "\n")

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "n 3 64 64"]) -> Float[Tensor, "n d"]:
        """The trunk's feature vector of each picture, for the Frechet distance."""
        return torch.cat([self.network.features(part / 255) for part in images.split(_CHUNK)])

    @torch.no_grad()
    def artist_probability(self, images: UInt8[Tensor, "n 3 64 64"]) -> Float[Tensor, "n a"]:
        """The probability of each artist, in the order of `artists`; rows sum to 1."""
        return torch.cat([self.network.hand(style(part / 255)).softmax(1) for part in images.split(_CHUNK)])

    @torch.no_grad()
    def embed(self, images: UInt8[Tensor, "n 3 64 64"]) -> Float[Tensor, "n e"]:
        """The caption embedding of each picture, of length 1."""
        return torch.cat([self.network.embed(self.network.features(part / 255)) for part in images.split(_CHUNK)])

    def matches(
        self, images: UInt8[Tensor, "n 3 64 64"], captions: Sequence[str], *, top: int = 1
    ) -> Bool[Tensor, " n"]:
        """Whether each picture's own caption is among the `top` nearest; a caption is as near as its nearest drawing.

        Raises:
            ValueError: not one caption a picture, or a caption whose drawings the judge does not have.
        """
        if len(captions) != len(images):
            raise ValueError(f"matches needs one caption a picture, got {len(captions)} for {len(images)} pictures.")
        for caption in captions:
            if caption not in self._row:
                raise ValueError(f"the judge has no drawing of {caption!r}; it knows the captions in its config.json.")
        similarity = torch.einsum("n e, k m e -> n k m", self.embed(images), self.prototypes).amax(2)
        own = similarity[torch.arange(len(images)), [self._row[caption] for caption in captions]]
        return (similarity > own[:, None]).sum(1) < top
