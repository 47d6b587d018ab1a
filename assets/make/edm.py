"""Train tiny-edm: class-conditional EDM on Fashion-MNIST in pixel space, 28 x 28 grey pictures.

    python assets/make/edm.py --output assets/tiny-edm --minutes 60

The pipeline is written every five minutes, with the exponential moving average of the weights; `pretraining.json` in
its folder says how many pictures the training has seen. Class 10 stands for no class, a tenth of the batches' rows.
"""

import argparse
import json
import math
import time
from pathlib import Path

import fashion
import torch
from diffusers import EDMEulerScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch.nn.functional import pixel_unshuffle

from diffpref.pipelines.edm import EDMPipeline, denoise

SIGMA_DATA = 0.7
PATCH = 2
# Karras et al. 2022, table 1, moved with sigma_data from 0.5 to 0.7.
P_MEAN, P_STD = -0.9, 1.2


def build() -> UNet2DModel:
    return UNet2DModel(
        sample_size=28 // PATCH,
        in_channels=PATCH**2,
        out_channels=PATCH**2,
        block_out_channels=(48, 96),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=24,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=len(fashion.CLASSES) + 1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    pictures, labels = fashion.load("train")
    unet = build().to(memory_format=torch.channels_last)
    parameters = list(unet.parameters())
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters", flush=True)
    ema = EMAModel(parameters, decay=0.9995, use_ema_warmup=True, power=0.8)
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    scheduler = EDMEulerScheduler(sigma_data=SIGMA_DATA)

    def save(step: int) -> None:
        ema.store(parameters)
        ema.copy_to(parameters)
        EDMPipeline(unet, scheduler, PATCH, fashion.CLASSES).save_pretrained(args.output)
        (args.output / "pretraining.json").write_text(json.dumps({"pictures": step * args.batch}) + "\n")
        ema.restore(parameters)

    start, step, budget, saved, running = time.monotonic(), 0, args.minutes * 60, 0.0, 0.0
    while (elapsed := time.monotonic() - start) < budget:
        decay = 0.01 + 0.99 * (1 + math.cos(math.pi * elapsed / budget)) / 2
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(1, (step + 1) / 200) * decay
        rows = torch.randint(len(pictures), (args.batch,), generator=generator)
        x0 = pictures[rows]
        flip = torch.rand(args.batch, generator=generator) < 0.5
        # Shoes all point left; the other classes may be mirrored.
        shoes = (labels[rows] == 5) | (labels[rows] == 7) | (labels[rows] == 9)
        x0 = torch.where((flip & ~shoes).view(-1, 1, 1, 1), x0.flip(-1), x0)
        x0 = pixel_unshuffle(x0, PATCH)
        named = torch.rand(args.batch, generator=generator) >= 0.1
        classes = torch.where(named, labels[rows], len(fashion.CLASSES))
        eps = torch.randn(x0.shape, generator=generator)
        sigma = (P_MEAN + P_STD * torch.randn(args.batch, generator=generator)).exp()
        s = sigma.view(-1, 1, 1, 1)
        predicted = denoise(unet, x0 + s * eps, sigma, classes, SIGMA_DATA)
        weight = (s.square() + SIGMA_DATA**2) / (s * SIGMA_DATA).square()
        loss = (weight * (predicted - x0).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.step(parameters)
        running = loss.item() if step == 0 else 0.99 * running + 0.01 * loss.item()
        if step % 200 == 0:
            print(f"{step:6d} {elapsed:6.0f}s loss {running:.4f}", flush=True)
        if elapsed - saved > 300:
            save(step)
            saved = elapsed
        step += 1
    save(step)
    print(f"{step} steps of {args.batch}, loss {running:.4f}")


if __name__ == "__main__":
    main()
