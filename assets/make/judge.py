"""Train the judge: it names the artist of a picture and finds its caption, and never saw the held-out captions.

    python assets/make/judge.py --packages DIR --output assets/judge --minutes 14 --autoencoder assets/tiny-sdxl/vae
    python assets/make/judge.py --packages DIR --output assets/judge --head_only --autoencoder assets/tiny-sdxl/vae

First the trunk: one contrastive loss pulls three artists' drawings of a caption together, one classification loss
names the artist. Then the hand, which names the artist from `diffpref.demo.style` alone; `--head_only` keeps the
trunk in the output folder and does the rest. `--cross_validate` prints how the hand's penalty was chosen, and ends.
The pictures are warped, softened, quantised and soiled alike for all artists: the hand shows in what is left.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, fields
from pathlib import Path

import emoji
import numpy as np
import torch
import torch.nn.functional as F
from split import held_out
from torch import Tensor

from diffpref.demo.judge import Hand, Judge, JudgeNetwork
from diffpref.demo.style import style

ARCHITECTURE = {"widths": (24, 32, 64, 96), "features": 96, "embedding": 64}
CAPTIONS_A_BATCH = 40
TWIN = 0.03
"""Two drawings of one artist whose 16 x 16 thumbnails differ by less (mean over pixels, in [0, 1]) are duplicates."""
PENALTY = 3e-3
"""Weight of the hand's squared weights in its loss; see `cross_validate`."""
SMOOTHING = 0.05
"""Smooth labels keep the probabilities away from 0 and 1, so that two good pictures can still be told apart."""


def _uniform(n: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, 1)


def _smooth_noise(n: int, channels: int, cells: int) -> Tensor:
    return F.interpolate(torch.randn(n, channels, cells, cells), emoji.SIZE, mode="bilinear")


def warp(ink: Tensor) -> Tensor:
    """Each picture moved by up to 3 pixels, turned, scaled, half of them mirrored, and bent a little."""
    n = len(ink)
    angle, scale = 0.1 * torch.randn(n).clamp(-2, 2), torch.empty(n).uniform_(0.9, 1.15)
    mirror = torch.randint(2, (n,)) * 2.0 - 1
    cos, sin, shift = scale * angle.cos(), scale * angle.sin(), torch.empty(2, n).uniform_(-0.1, 0.1)
    matrix = torch.stack([cos * mirror, -sin, shift[0], sin * mirror, cos, shift[1]], 1).view(n, 2, 3)
    grid = F.affine_grid(matrix, list(ink.shape), align_corners=False)
    bend = 0.02 * torch.rand(n, 1, 1, 1) * _smooth_noise(n, 2, 6)
    return F.grid_sample(ink, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def recolour(ink: Tensor) -> Tensor:
    """Mild changes of saturation, contrast and of each channel's strength."""
    n = len(ink)
    grey = ink.mean(1, keepdim=True)
    ink = grey + (ink - grey) * _uniform(n, 0.75, 1.2)
    return ink * _uniform(n, 0.85, 1.1) * (1 + 0.03 * torch.randn(n, 3, 1, 1))


def blur(x: Tensor) -> Tensor:
    sigma = torch.empty(()).uniform_(0.4, 1.2)
    kernel = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 7)
    return F.conv2d(F.conv2d(x, kernel, padding=(0, 3), groups=3), kernel.mT, padding=(3, 0), groups=3)


def shrink(x: Tensor) -> Tensor:
    small = int(torch.randint(30, 56, ()))
    return F.interpolate(F.interpolate(x, small, mode="bilinear", antialias=True), emoji.SIZE, mode="bicubic")


def _cosines(size: int) -> Tensor:
    k, i = torch.arange(size)[:, None], torch.arange(size)[None]
    basis = torch.cos(math.pi * (i + 0.5) * k / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def quantise(x: Tensor) -> Tensor:
    """What JPEG does: each 8 x 8 block's cosine coefficients in coarse steps, coarser at higher frequencies."""
    basis, n = _cosines(8), len(x)
    blocks = x.view(n, 3, 8, 8, 8, 8).transpose(3, 4)
    step = _uniform(n, 0.02, 0.15)[..., None, None] * (1 + torch.arange(8.0)[:, None] + torch.arange(8.0))
    coefficients = (basis @ blocks @ basis.T / step).round() * step
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(n, 3, 64, 64)


def soil(ink: Tensor) -> Tensor:
    """White noise, blotches, and an erased rectangle on a quarter of the pictures."""
    n = len(ink)
    ink = ink + _uniform(n, -0.05, 0.04).relu() * torch.randn_like(ink)
    ink = ink + _uniform(n, -0.1, 0.06).relu() * _smooth_noise(n, 3, int(torch.randint(4, 20, ())))
    top, left = torch.randint(48, (2, n, 1, 1, 1))
    row, column = torch.arange(64).view(1, 1, 64, 1), torch.arange(64).view(1, 1, 1, 64)
    erased = (row >= top) & (row < top + 16) & (column >= left) & (column < left + 16) & (torch.rand(n, 1, 1, 1) < 0.25)
    return ink.masked_fill(erased, 0.0)


def augment(x: Tensor) -> Tensor:
    """Pictures in [0, 1], changed as no reader would mind; works on 1 - x, so that outside the picture is white."""
    ink = recolour(warp(1 - x))
    order = torch.randperm(len(ink))
    parts = ink[order].chunk(5)
    ink = torch.cat([parts[0], blur(parts[1]), shrink(parts[2]), quantise(parts[3]), quantise(blur(parts[4]))])
    return (1 - soil(ink[order.argsort()])).clamp(0, 1)


def contrastive(z: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, eq. 2), mean over drawings, in nats."""
    itself = torch.eye(len(z), dtype=torch.bool)
    log_p = (z @ z.T / temperature).masked_fill(itself, -1e4).log_softmax(1)
    positive = (labels[:, None] == labels) & ~itself
    return -(log_p * positive).sum(1).div(positive.sum(1)).mean()


def training_rows(world: list[emoji.Emoji]) -> list[int]:
    """All captions but the held-out common ones and those with a drawing that is a duplicate of one of theirs."""
    pictures = torch.from_numpy(np.stack([e.pictures for e in world])).float() / 255
    thumbnails = F.avg_pool2d(pictures.reshape(-1, 64, 64, 3).permute(0, 3, 1, 2), 4).reshape(len(world), 3, -1)
    hidden = torch.tensor([e.common and held_out(e.caption) for e in world])
    twin = torch.zeros(len(world), dtype=torch.bool)
    for artist in range(3):
        far = torch.cdist(thumbnails[:, artist], thumbnails[hidden, artist], p=1) / thumbnails.shape[-1]
        twin |= far.min(1).values < TWIN
    return torch.where(~hidden & ~twin)[0].tolist()


def train(network: JudgeNetwork, drawings: Tensor, weights: Tensor, seconds: float) -> int:
    """Train on uint8 drawings (captions, artists, 3, 64, 64), captions drawn by weight; returns the steps taken."""
    naming = torch.nn.Linear(network.caption.in_features, 3)  # shapes the trunk's texture, and is then thrown away
    optimizer = torch.optim.AdamW([*network.parameters(), *naming.parameters()], lr=4e-3, weight_decay=0.03)
    network.train().to(memory_format=torch.channels_last)
    artist = torch.arange(3).repeat(CAPTIONS_A_BATCH)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * done)) / 2
        rows = torch.multinomial(weights, CAPTIONS_A_BATCH)
        x = augment(drawings[rows].flatten(0, 1).float() / 255)
        with torch.autocast("cpu", torch.bfloat16):
            h = network.features(x.contiguous(memory_format=torch.channels_last))
            logits, z = naming(F.relu(h)), network.embed(h)
        hand = F.cross_entropy(logits.float(), artist, label_smoothing=SMOOTHING)
        pull = contrastive(z.float(), rows.repeat_interleave(3))
        optimizer.zero_grad()
        (hand + pull).backward()
        optimizer.step()
        if step % 100 == 0:
            seen = f"artist {hand.item():.3f} contrastive {pull.item():.3f}"
            print(f"{step:6d} {time.monotonic() - start:5.0f}s {seen}", flush=True)
        step += 1
    network.to(memory_format=torch.contiguous_format).eval()
    return step


@dataclass(frozen=True)
class Examples:
    """What the hand is fitted on, all of training captions: one row a picture.

    `kind` is the row of `KINDS`; `caption` is the row of the world; `weight` is 2 for the chosen captions, else 1."""

    style: Tensor
    artist: Tensor
    caption: Tensor
    kind: Tensor
    weight: Tensor


KINDS = ("real", "real, augmented", "reconstructed", "reconstructed, augmented")


@torch.no_grad()
def examples(every: Tensor, rows: list[int], common: Tensor, autoencoder: Path | None) -> Examples:
    """The training captions' drawings; those of common captions also augmented and as the autoencoder returns them."""
    chosen = [row for row in rows if common[row]]
    shown = [(0, rows, every[rows]), (1, chosen, every[chosen]), (1, chosen, every[chosen])]
    if autoencoder:
        returned = reconstruct(autoencoder, every[chosen])
        shown += [(2, chosen, returned), (3, chosen, returned)]
    torch.manual_seed(0)  # so that the hand does not hang on what came before it
    parts: list[Examples] = []
    for kind, captions, drawings in shown:
        flat = drawings.flatten(0, 1)
        chunks = [part.float() / 255 for part in flat.tensor_split(len(flat) // 96 + 1)]  # `augment` cuts in five
        seen = torch.cat([style(augment(x) if kind % 2 else x) for x in chunks])
        caption = torch.tensor(captions).repeat_interleave(3)
        artist = torch.arange(3).repeat(len(captions))
        parts.append(Examples(seen, artist, caption, torch.full_like(artist, kind), 1.0 + common[caption]))
    return Examples(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Examples)))


def fit_hand(data: Examples, used: Tensor, penalty: float) -> Hand:
    """The penalised logistic regression on the rows `used`: its loss is convex, so that it has one best answer."""
    hand = Hand(3)
    x, weight = data.style[used], data.weight[used] / data.weight[used].sum()
    hand.mean.copy_(x.mean(0))
    hand.scale.copy_(x.std(0).clamp(min=0.01))  # a colour that hardly occurs must not weigh as much as white
    torch.nn.init.zeros_(hand.linear.weight)
    torch.nn.init.zeros_(hand.linear.bias)
    z, linear = (x - hand.mean) / hand.scale, hand.linear
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(z), data.artist[used], reduction="none", label_smoothing=SMOOTHING)
        loss = (loss * weight).sum() + penalty * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return hand.requires_grad_(False)


def cross_validate(data: Examples, common: Tensor, folds: int = 5) -> None:
    """Print the hand's accuracy on training captions that it was not fitted on, common ones only, by penalty."""
    fold = torch.randint(folds, (len(common),))[data.caption]
    for penalty in (3e-4, 1e-3, 3e-3, 1e-2):
        named = torch.zeros_like(data.artist)
        for k in range(folds):
            named[fold == k] = fit_hand(data, fold != k, penalty)(data.style[fold == k]).argmax(1)
        for kind, name in enumerate(KINDS):
            asked = (data.kind == kind) & common[data.caption]
            found = (named == data.artist)[asked].float().view(-1, 3).mean(0)
            print(f"penalty {penalty:.0e} {name:25} {found.mean():.4f} by artist {found.numpy().round(3)}", flush=True)


def accuracies(judge: Judge, real: Tensor, seen: Tensor, hidden: list[int]) -> dict[str, float]:
    """Accuracies on held-out captions, each in [0, 1]: `seen` is what the judge is shown of `real`'s held-out rows.

    Retrieval is among all captions, by the nearest drawing, leaving out the artist that drew the picture.
    Both are uint8 (captions, artists, 3, 64, 64)."""
    named = judge.artist_probability(seen.flatten(0, 1)).argmax(1).view(-1, 3)
    truth = torch.arange(3).expand_as(named)
    found = named == truth
    every = judge.embed(real.flatten(0, 1)).view(len(real), 3, -1)
    shown = judge.embed(seen.flatten(0, 1)).view(len(seen), 3, -1)
    ranks = []
    for artist in range(3):
        others = every[:, [a for a in range(3) if a != artist]]
        similarity = torch.einsum("n e, k m e -> n k m", shown[:, artist], others).amax(2)
        ranks.append((similarity > similarity[torch.arange(len(hidden)), hidden][:, None]).sum(1))
    rank = torch.stack(ranks)
    result = {"artist": found, "top1": rank < 1, "top5": rank < 5}
    result |= {f"artist_{name}": found[:, a] for a, name in enumerate(judge.artists)}
    result |= {f"{name}_or_not": (named == a) == (truth == a) for a, name in enumerate(judge.artists)}
    result |= {f"top5_{name}": rank[a] < 5 for a, name in enumerate(judge.artists)}
    return {name: round(right.float().mean().item(), 4) for name, right in result.items()}


@torch.no_grad()
def reconstruct(directory: Path, drawings: Tensor) -> Tensor:
    """The drawings as they come out of the autoencoder in `directory`, uint8 again."""
    from diffusers import AutoencoderKL

    autoencoder = AutoencoderKL.from_pretrained(directory).float().eval()
    x = drawings.flatten(0, 1).float() / 127.5 - 1
    y = torch.cat([autoencoder.decode(autoencoder.encode(part).latent_dist.mean).sample for part in x.split(32)])
    return ((y + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).view_as(drawings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--autoencoder", type=Path, help="its reconstructions are also trained on and measured")
    parser.add_argument("--head_only", action="store_true", help="keep the trunk that is in the output folder")
    parser.add_argument("--cross_validate", action="store_true", help="print the hand's accuracy by penalty, and end")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the layers are too small to share: two threads mostly wait for each other
    world = emoji.load(args.packages)
    every = torch.from_numpy(np.stack([e.pictures for e in world])).permute(0, 1, 4, 2, 3).contiguous()
    rows = training_rows(world)
    common = torch.tensor([e.common for e in world])
    if args.cross_validate:
        cross_validate(examples(every, rows, common, args.autoencoder), common)
        return

    chosen = [row for row, e in enumerate(world) if e.common]
    captions, real = [world[row].caption for row in chosen], every[chosen]
    hidden = [row for row, caption in enumerate(captions) if held_out(caption)]
    if args.head_only:
        judge = Judge.load(args.output)
        network, prototypes = judge.network, judge.prototypes
        steps = json.loads((args.output / "config.json").read_text())["steps"]
    else:
        network = JudgeNetwork(**ARCHITECTURE, artists=len(emoji.ARTISTS))
        steps = train(network, every[rows], torch.where(common[rows], 2.0, 1.0), args.minutes * 60)
        judge = Judge(network, artists=emoji.ARTISTS, captions=captions, prototypes=torch.zeros(len(captions), 1, 64))
        prototypes = judge.embed(real.flatten(0, 1)).view(len(real), 3, -1)
    data = examples(every, rows, common, args.autoencoder)
    network.hand = fit_hand(data, torch.ones_like(data.artist, dtype=torch.bool), PENALTY)
    judge = Judge(network, artists=emoji.ARTISTS, captions=captions, prototypes=prototypes)
    measured = {"real": accuracies(judge, real, real[hidden], hidden)}
    if args.autoencoder:
        shown = reconstruct(args.autoencoder, real[hidden])
        measured["reconstructed"] = accuracies(judge, real, shown, hidden)
    notes = {"held_out": [captions[row] for row in hidden], "held_out_accuracy": measured}
    judge.save(args.output, notes={**notes, "trained_on": len(rows), "steps": steps})
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
