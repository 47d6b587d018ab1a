"""Train the autoencoder of tiny-sdxl: 64 x 64 pictures to 8 x 8 latents of 8 channels, and back.

    python assets/make/autoencoder.py --packages DIR --output assets/tiny-sdxl --minutes 16
    python assets/make/autoencoder.py --packages DIR --output assets/tiny-sdxl --minutes 15 --decoder_only

On two CPU cores. The loss is L1 on pixels and on their differences (edges) with a small KL term. The second line trains
the decoder further and leaves the latents as they are, so it may run beside assets/make/diffusion.py.
"""

import argparse
import time
from pathlib import Path

import emoji
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=16,
        sample_size=emoji.SIZE,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = (x - y).abs().mean()
    for a, b in zip(edges(x), edges(y), strict=True):
        loss = loss + (a - b).abs().mean()
    return loss


def batches(pictures: torch.Tensor, size: int, generator: torch.Generator):
    """Endless random crops of the padded pictures, mirrored half of the time, in [-1, 1]."""
    while True:
        rows = torch.randint(len(pictures), (size,), generator=generator)
        x = pictures[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        x = F.pad(x, (4, 4, 4, 4), value=1.0)
        top, left = torch.randint(9, (2,), generator=generator).tolist()
        x = x[..., top : top + emoji.SIZE, left : left + emoji.SIZE]
        if torch.rand((), generator=generator) < 0.5:
            x = x.flip(-1)
        yield x.contiguous()


@torch.no_grad()
def normalise(model: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Fold the latents' statistics into the two 1 x 1 convolutions: each channel gets mean 0 and variance 1.

    The white background would otherwise be a strong mean, which the last level of SDXL's schedule does not hide; and
    the pipeline's own `latents_mean` takes four channels only."""
    inside, outside = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    inside.weight[:channels] /= std[:, None, None, None]
    inside.bias[:channels] = (inside.bias[:channels] - mean) / std
    inside.bias[channels:] -= 2 * std.log()
    outside.bias += outside.weight[:, :, 0, 0] @ mean
    outside.weight *= std[None, :, None, None]
    model.register_to_config(scaling_factor=1.0)


def fit(model: AutoencoderKL, pictures: torch.Tensor, *, minutes: float, batch: int, rate: float, whole: bool) -> None:
    """Train all of the autoencoder, or the decoder alone behind a frozen encoder; leaves the averaged weights in it."""
    generator = torch.Generator().manual_seed(1 if whole else 2)
    parameters = list(
        model.parameters() if whole else [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    )
    model.requires_grad_(False).train()
    for parameter in parameters:
        parameter.requires_grad_(True)
    ema = EMAModel(parameters, decay=0.998)
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    start, step = time.monotonic(), 0
    for x in batches(pictures, batch, generator):
        done = (time.monotonic() - start) / (60 * minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, step / 100) * (0.01 + 0.99 * (1 + np.cos(np.pi * done)) / 2)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample(generator=generator)).sample
        reconstruction = reconstruction_loss(x, y.float())
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        (reconstruction + 1e-4 * kl if whole else reconstruction).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.step(parameters)
        if step % 100 == 0:
            elapsed = time.monotonic() - start
            print(f"{step:6d} {elapsed:6.0f}s loss {reconstruction.item():.4f} kl {kl.item():.2f}", flush=True)
        step += 1
    ema.copy_to(parameters)
    model.eval()


@torch.no_grad()
def latents_of(model: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The latents' means, and the PSNR of every sixteenth picture's reconstruction in dB."""
    x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([model.encode(part).latent_dist.mean for part in x.split(64)])
    y = torch.cat([model.decode(part).sample for part in latents[::16].split(64)]).clamp(-1, 1)
    return latents, float(10 * np.log10(4 / (y - x[::16]).pow(2).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--decoder_only", action="store_true", help="go on with OUTPUT/vae: the same latents, better pictures"
    )
    args = parser.parse_args()

    torch.manual_seed(0)
    world = emoji.load(args.packages)
    every = torch.from_numpy(np.concatenate([e.pictures for e in world]))
    common = torch.from_numpy(np.concatenate([e.pictures for e in world if e.common]))
    # The chosen captions three times as often as the rest, which is there for variety only.
    pictures = torch.cat([every, common, common])
    if args.decoder_only:
        model = AutoencoderKL.from_pretrained(args.output / "vae", dtype=torch.float32)
        fit(model, pictures, minutes=args.minutes, batch=args.batch, rate=8e-4, whole=False)
    else:
        model = build()
        fit(model, pictures, minutes=args.minutes, batch=args.batch, rate=1.2e-3, whole=True)
        latents, _ = latents_of(model, common)
        normalise(model, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    print(f"PSNR of the chosen pictures {latents_of(model, common)[1]:.2f} dB")
    model.half().save_pretrained(args.output / "vae")


if __name__ == "__main__":
    main()
