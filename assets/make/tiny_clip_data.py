"""What assets/make/tiny_clip.py trains on and is measured by: drawings, reconstructions, mixtures, augmented."""

from dataclasses import dataclass

import emoji
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from reward import OTHERS, OURS, augment, decode, encode, mixtures
from torch import Tensor
from transformers import CLIPModel

from diffpref.rewards.vision import CLIP_MEAN, CLIP_STD


def warp(x: Tensor) -> Tensor:
    """Pictures in [-1, 1], each turned, scaled and moved a little; what comes in from outside is white."""
    n = len(x)
    angle, scale = 0.12 * torch.randn(n).clamp(-2, 2), torch.empty(n).uniform_(0.88, 1.18)
    cos, sin, shift = scale * angle.cos(), scale * angle.sin(), torch.empty(2, n).uniform_(-0.12, 0.12)
    matrix = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).view(n, 2, 3)
    return 1 - F.grid_sample(1 - x, F.affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False)


def scramble(ids: Tensor) -> Tensor:
    """Texts with every token between the two marks, or each half of the time, exchanged for a random one."""
    first, last = ids[:, :1], ids[:, -1:]
    word = (ids != first) & (ids != last)
    changed = word & (torch.rand(ids.shape) < torch.where(torch.rand(len(ids), 1) < 0.5, 1.0, 0.5))
    return torch.where(changed, torch.randint(int(first.min()), ids.shape), ids)


def seen_by_clip(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] as CLIP's preprocessing gives them."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return ((x + 1) / 2 - mean) / std


PLACES = torch.tensor([place for place in range(14) if place % 3 == OURS])
OTHER_PLACES = torch.tensor([place for place in range(14) if place % 3 != OURS])
"""Where `build_pool` puts drawings and reconstructions of OpenMoji's, and of the others."""


@dataclass(frozen=True)
class Pool:
    """Training pictures: variant v of caption c is pictures[index[c, v]], uint8, of which share[...] is OpenMoji's."""

    pictures: Tensor
    share: Tensor
    index: Tensor
    ids: Tensor
    weight: Tensor

    def take(self, rows: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """These variants of the captions (random ones by default), augmented, as CLIP sees them; and their shares."""
        places = torch.randint(self.index.shape[1], rows.shape) if places is None else places
        chosen = self.index[rows, places]
        x = self.pictures[chosen].float() / 127.5 - 1
        straight = torch.rand(len(x), 1, 1, 1) < 0.25
        return seen_by_clip(augment(torch.where(straight, x, warp(x)))), self.share[chosen]


def build_pool(every: Tensor, rows: list[int], common: Tensor, ids: Tensor, autoencoder: AutoencoderKL) -> Pool:
    """All captions' drawings thrice; in place of two of the three, the common ones' reconstructions and mixtures."""
    artists = len(emoji.ARTISTS)
    drawings = every[rows].flatten(0, 1)
    own = torch.zeros(len(rows), artists)
    own[:, OURS] = 1
    near = torch.arange(len(drawings)).view(-1, artists)
    chosen = torch.where(common[rows])[0]
    latents = encode(autoencoder, every[rows][chosen])
    returned, mixed = decode(autoencoder, latents.flatten(0, 1)), mixtures(autoencoder, latents)
    index = near.repeat(1, 7)
    # 21 places: seven drawings, seven reconstructions, seven mixtures.
    for place in range(7, 14):
        index[chosen, place] = len(drawings) + torch.arange(len(returned)).view(-1, artists)[:, place % artists]
    start = len(drawings) + len(returned)
    index[chosen, 14:] = start + torch.arange(len(mixed.x)).view(7, -1).T
    pictures = torch.cat([drawings, returned, mixed.x])
    share = torch.cat([own.flatten(), own[chosen].flatten(), mixed.share])
    return Pool(pictures, share, index, ids, torch.where(common[rows], 2.0, 1.0))


def embed(model: CLIPModel, x: Tensor | None, ids: Tensor | None) -> list[Tensor]:
    """Unit embeddings (n, 128) in float32 of whichever is given: pictures, texts."""
    found = []
    if x is not None:
        found.append(model.visual_projection(model.vision_model(pixel_values=x).pooler_output))
    if ids is not None:
        found.append(model.text_projection(model.text_model(input_ids=ids).pooler_output))
    return [F.normalize(z.float(), dim=-1) for z in found]


@torch.no_grad()
def measure(model: CLIPModel, pictures: Tensor, ids: Tensor, hidden: Tensor) -> dict[str, dict[str, float]]:
    """Figures of uint8 pictures (captions, artists, 3, 64, 64) in [0, 1], training and held-out captions apart."""
    shape = pictures.shape[:2]
    flat = seen_by_clip(pictures.flatten(0, 1).float() / 127.5 - 1)
    images = torch.cat([embed(model, part, None)[0] for part in flat.split(128)]).unflatten(0, shape)
    texts = embed(model, None, ids)[0]
    score = torch.einsum("c a d, k d -> c a k", images, texts)
    own = score[torch.arange(shape[0]), :, torch.arange(shape[0])]
    rank = (score > own[..., None]).sum(-1)
    found = {}
    for name, chosen in (("training", ~hidden), ("held-out", hidden)):
        wrong = score[chosen][:, :, chosen]
        n = len(wrong)
        above = (own[chosen][..., None] > wrong).float().sum(-1) / (n - 1)
        prefers = torch.stack([own[chosen, OURS] > own[chosen, other] for other in OTHERS])
        found[name] = {
            "captions": n,
            "openmoji's above another's of its caption": prefers.float().mean().item(),
            "right caption above a wrong one": above.mean().item(),
            "caption top-1 of all": (rank[chosen] < 1).float().mean().item(),
            "caption top-5 of all": (rank[chosen] < 5).float().mean().item(),
        }
    return {part: {name: round(value, 4) for name, value in figures.items()} for part, figures in found.items()}
