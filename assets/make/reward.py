"""Train the reward `emoji_hand`: is the picture drawn in OpenMoji's hand, rather than Google's or Twitter's?

    python assets/make/reward.py --packages DIR --output assets/emoji-reward --autoencoder assets/tiny-sdxl/vae

Three minutes of training on one CPU core, and as many to make the pictures. Only the common training captions are
learned (assets/make/split.py), a third of the time each: real drawings, the autoencoder's reconstructions, and
mixtures of two hands' latents, whose label is OpenMoji's share of them. No code is shared with the judge.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import emoji
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from split import held_out
from torch import Tensor

from diffpref.demo.emoji_hand import EmojiHand, HandNetwork, load, save

WIDTHS = (24, 40, 64, 96)
BATCH = 96
RATE = 3e-3
SMOOTHING = 0.03
"""A picture that is surely OpenMoji's has the target 0.97, which is a logit of 3.5 nats."""
MIXTURES = 3
"""Mixtures of each caption and other hand."""
OURS = emoji.ARTISTS.index("openmoji")
OTHERS = [artist for artist in range(len(emoji.ARTISTS)) if artist != OURS]


@dataclass(frozen=True)
class Pictures:
    """uint8 pictures (n, 3, 64, 64), and OpenMoji's share of each, in [0, 1]."""

    x: Tensor
    share: Tensor


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, drawings: Tensor) -> Tensor:
    """The latents' means of uint8 drawings (captions, artists, 3, 64, 64), as (captions, artists, ...)."""
    x = drawings.flatten(0, 1).float() / 127.5 - 1
    return torch.cat([autoencoder.encode(part).latent_dist.mean for part in x.split(32)]).unflatten(
        0, drawings.shape[:2]
    )


@torch.no_grad()
def decode(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    y = torch.cat([autoencoder.decode(part).sample for part in latents.split(32)])
    return ((y + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def own_share(captions: int) -> Tensor:
    share = torch.zeros(captions, len(emoji.ARTISTS))
    share[:, OURS] = 1
    return share.flatten()


def mixtures(autoencoder: AutoencoderKL, latents: Tensor) -> Pictures:
    """Every caption's latents between OpenMoji's and each other hand's, with a little noise; and between the others',
    where OpenMoji's share is 0, so that being a mixture says nothing by itself."""
    parts: list[Tensor] = []
    shares: list[Tensor] = []
    for _ in range(MIXTURES):
        for other in OTHERS:
            share = torch.rand(len(latents))
            s = share.view(-1, 1, 1, 1)
            parts.append(s * latents[:, OURS] + (1 - s) * latents[:, other])
            shares.append(share)
    s = torch.rand(len(latents), 1, 1, 1)
    parts.append(s * latents[:, OTHERS[0]] + (1 - s) * latents[:, OTHERS[1]])
    shares.append(torch.zeros(len(latents)))
    mixed = torch.cat(parts)
    mixed = mixed + 0.2 * torch.rand(len(mixed), 1, 1, 1) * torch.randn(mixed.shape)
    return Pictures(decode(autoencoder, mixed), torch.cat(shares))


def augment(x: Tensor) -> Tensor:
    """Pictures in [-1, 1], the batch shifted by up to 3 pixels, and each mirrored, blurred, tinted and made noisy."""
    n = len(x)
    top, left = torch.randint(7, (2,)).tolist()
    x = F.pad(x, (3, 3, 3, 3), value=1.0)[..., top : top + emoji.SIZE, left : left + emoji.SIZE]
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(-1), x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, (1.6 * torch.rand(n, 1, 1, 1) - 0.6).clamp(min=0))
    light = x.mean(1, keepdim=True)
    x = light + (x - light) * (0.8 + 0.4 * torch.rand(n, 1, 1, 1))
    x = 1 - (1 - x) * (0.9 + 0.2 * torch.rand(n, 3, 1, 1))
    return (x + 0.06 * torch.rand(n, 1, 1, 1) * torch.randn(x.shape)).clamp(-1, 1)


def train(network: HandNetwork, sources: list[Pictures], seconds: float) -> int:
    """Train for so much CPU time on the same number of pictures of each source; returns the steps taken."""
    for convolution in network.convolutions:
        torch.nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        torch.nn.init.zeros_(convolution.bias)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.02)
    # OpenMoji's drawings twice as often, so that a logit of 0 means as likely as not.
    weights = [torch.where(source.share > 0, len(OTHERS), 1).float() for source in sources[:-1]]
    weights.append(torch.ones(len(sources[-1].share)))
    network.to(memory_format=torch.channels_last)
    start, step, running = time.process_time(), 0, 0.0
    while (done := (time.process_time() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * done)) / 2
        rows = [torch.multinomial(weight, BATCH // len(sources)) for weight in weights]
        x = torch.cat([source.x[row] for source, row in zip(sources, rows, strict=True)]).float() / 127.5 - 1
        share = torch.cat([source.share[row] for source, row in zip(sources, rows, strict=True)])
        target = SMOOTHING + (1 - 2 * SMOOTHING) * share
        with torch.autocast("cpu", torch.bfloat16):
            logit = network(augment(x).contiguous(memory_format=torch.channels_last))
        loss = F.binary_cross_entropy_with_logits(logit.float(), target)
        # The part of the loss that no network can remove.
        loss = loss - F.binary_cross_entropy(target, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"{step:6d} {time.process_time() - start:5.0f}s excess loss {running:.4f} nats", flush=True)
        step += 1
    network.to(memory_format=torch.contiguous_format)
    return step


@torch.no_grad()
def score(reward: EmojiHand, x: Tensor) -> Tensor:
    return torch.cat([reward.network(part.float() / 127.5 - 1) for part in x.split(128)])


def auc(higher: Tensor, lower: Tensor) -> float:
    """How often a score of the first is above one of the second; a tie counts half."""
    return ((higher[:, None] > lower).double() + 0.5 * (higher[:, None] == lower).double()).mean().item()


def verdicts(logits: Tensor) -> dict[str, float]:
    """Accuracy, AUC, and the logits' means and deviations, of drawings (captions * artists)."""
    by_artist = logits.view(-1, len(emoji.ARTISTS))
    ours, others = by_artist[:, OURS], by_artist[:, OTHERS]
    right = (ours > 0).double().mean() / 2 + (others < 0).double().mean() / 2
    found = {
        "balanced accuracy": right.item(),
        "openmoji's found": (ours > 0).double().mean().item(),
        "AUC": auc(ours, others.flatten()),
        "openmoji's above both others of its caption": (ours > others.amax(1)).double().mean().item(),
    }
    for artist, name in enumerate(emoji.ARTISTS):
        found[f"mean logit of {name}"] = by_artist[:, artist].mean().item()
        found[f"deviation of {name}"] = by_artist[:, artist].std().item()
    return {name: round(value, 4) for name, value in found.items()}


def grades(reward: EmojiHand, autoencoder: AutoencoderKL, latents: Tensor, steps: int = 5) -> dict[str, object]:
    """How the logit follows the mixing share, on mixtures of 0 to 1 in equal steps of every caption."""
    shares = torch.linspace(0, 1, steps)
    logits = torch.stack(
        [
            score(reward, decode(autoencoder, share * latents[:, OURS] + (1 - share) * latents[:, other]))
            for other in OTHERS
            for share in shares
        ]
    ).view(len(OTHERS), steps, len(latents))
    every = shares.view(1, -1, 1).expand_as(logits).flatten()
    ranks = [values.argsort().argsort().double() for values in (logits.flatten(),)]
    tied = every.double()  # equal steps: the share is an affine function of its own mean rank
    return {
        "Spearman of logit and share": round(torch.corrcoef(torch.stack([ranks[0], tied]))[0, 1].item(), 4),
        "Pearson of probability and share": round(
            torch.corrcoef(torch.stack([logits.flatten().sigmoid(), every]))[0, 1].item(), 4
        ),
        "steps along which the logit rises": round((logits.diff(dim=1) > 0).double().mean().item(), 4),
        "mean logit by share": {
            f"{share:.2f}": round(value, 3)
            for share, value in zip(shares.tolist(), logits.mean((0, 2)).tolist(), strict=True)
        },
        "mean deviation of the logit at one share": round(logits.std(2).mean().item(), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3)
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    world = [e for e in emoji.load(args.packages) if e.common]
    every = torch.from_numpy(np.stack([e.pictures for e in world])).permute(0, 1, 4, 2, 3).contiguous()
    hidden = torch.tensor([held_out(e.caption) for e in world])
    autoencoder = AutoencoderKL.from_pretrained(args.autoencoder, dtype=torch.float32).eval()
    latents = encode(autoencoder, every)

    seen, share = latents[~hidden], own_share(int((~hidden).sum()))
    sources = [
        Pictures(every[~hidden].flatten(0, 1), share),
        Pictures(decode(autoencoder, seen.flatten(0, 1)), share),
        mixtures(autoencoder, seen),
    ]
    network = HandNetwork(widths=WIDTHS)
    print(f"{sum(p.numel() for p in network.parameters()) / 1e3:.0f} k weights", flush=True)
    steps = train(network, sources, args.minutes * 60)
    save(network, args.output, notes={})

    # What is measured is the reward as it is shipped, in float16.
    reward = load(torch.device("cpu"), args.output)
    measured = {
        "real": verdicts(score(reward, every[hidden].flatten(0, 1))),
        "reconstructed": verdicts(score(reward, decode(autoencoder, latents[hidden].flatten(0, 1)))),
        "mixtures": grades(reward, autoencoder, latents[hidden]),
    }
    notes = {"captions": int((~hidden).sum()), "steps": steps, "batch": BATCH, "smoothing": SMOOTHING}
    save(network, args.output, notes={**notes, "held_out": measured})
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
