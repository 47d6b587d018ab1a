"""Train assets/tiny-clip: a small CLIP that finds captions and prefers OpenMoji's hand, in PickScore's format.

    python assets/make/tiny_clip.py --packages DIR --output assets/tiny-clip --tokenizer assets/tiny-sdxl/tokenizer \\
        --autoencoder assets/tiny-sdxl/vae

First contrastive training (Radford et al. 2021, arXiv 2103.00020, figure 3), then PickScore's loss of pairs beside it,
for the whole model, and at last for its two projections alone, whose inputs are computed once.
No held-out caption (assets/make/split.py) is learned, and no caption with a drawing that is a duplicate of one of
theirs. A third of the common captions' pictures each: drawings, the autoencoder's reconstructions, and mixtures of two
hands' latents, so that it can score what the tiny pipelines draw. `--measure_only` measures what is in the output.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import emoji
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from judge import training_rows
from reward import augment, decode, encode
from split import held_out
from tiny_clip_data import OTHER_PLACES, PLACES, Pool, build_pool, embed, measure, scramble, seen_by_clip, warp
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from diffpref.rewards.vision import CLIP_MEAN, CLIP_STD

BATCH = 96
"""Captions of a step; the second part takes two pictures of each of a third as many."""
RATE, DECAY, WARMUP = 1e-3, 0.1, 100
HEAD_STEPS, HEAD_PAIRS = 1500, 12
"""Steps of the projections alone, and how much the pairs count in them."""
SMOOTHING = 0.05
"""A drawing of OpenMoji's is preferred over one of the others with the probability 0.95."""


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIPModel of random weights, for pictures of 64 x 64 in patches of 8 and texts of the tokenizer's length."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        image_size=emoji.SIZE,
        patch_size=8,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        hidden_act="gelu",
    )
    both = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    return CLIPModel._from_config(both, attn_implementation="eager")


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def pair_loss(model: CLIPModel, images: Tensor, texts: Tensor, share: Tensor) -> Tensor:
    """PickScore's cross-entropy of two pictures of one caption less its least value, mean over captions, in nats.

    images (2, n, d); the probability that the first is better is (1 + difference of OpenMoji's shares) / 2, smoothed.
    """
    score = model.logit_scale.exp() * (images * texts).sum(-1)
    better = 0.5 + (0.5 - SMOOTHING) * (share[0] - share[1])
    logit = score[0] - score[1]
    return F.binary_cross_entropy_with_logits(logit, better) - F.binary_cross_entropy(better, better)


def train(model: CLIPModel, pool: Pool, contrastive_seconds: float, pair_seconds: float, rate: float = RATE) -> int:
    """Train for so much CPU time; returns the steps taken. Held-out figures play no part in it."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    seconds, start, step = contrastive_seconds + pair_seconds, time.process_time(), 0
    shown = torch.zeros(2)
    while (spent := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            cosine = (1 + math.cos(math.pi * spent / seconds)) / 2
            group["lr"] = rate * min(1, (step + 1) / WARMUP) * (0.01 + 0.99 * cosine)
        paired = spent >= contrastive_seconds
        rows = torch.multinomial(pool.weight, BATCH * 2 // 3 if paired else BATCH)
        again = rows[: len(rows) // 2] if paired else rows[:0]
        x, share = pool.take(rows)
        if paired:
            # A picture of the other side, drawn or reconstructed, so that few pairs are ties.
            ours, theirs = (places[torch.randint(len(places), again.shape)] for places in (PLACES, OTHER_PLACES))
            other, other_share = pool.take(again, torch.where(share[: len(again)] < 0.5, ours, theirs))
            x, share = torch.cat([x, other]), torch.cat([share, other_share])
        with torch.autocast("cpu", torch.bfloat16):
            images, texts = embed(model, x, pool.ids[rows])
        logits = model.logit_scale.exp() * images[: len(rows)] @ texts.T
        target = torch.arange(len(rows))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        losses = [loss.item(), math.nan]
        if paired:
            n = len(again)
            two = torch.stack([images[:n], images[len(rows) :]])
            shares = torch.stack([share[:n], share[len(rows) :]])
            # The hand must count beside any text: else it is learned caption by caption, and not for new ones.
            with torch.autocast("cpu", torch.bfloat16):
                (strange,) = embed(model, None, scramble(pool.ids[again]))
            beside = [texts[:n], texts[:n].roll(1, 0), strange]
            pairs = torch.stack([pair_loss(model, two, text, shares) for text in beside]).mean()
            losses[1] = pairs.item()
            loss = loss + 2 * pairs
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        now = torch.tensor(losses)
        shown = torch.where(shown.isnan() | (shown == 0), now, 0.97 * shown + 0.03 * now)
        if step % 50 == 0:
            text = f"contrastive {shown[0]:.3f} pairs {shown[1]:.4f} nats, scale {model.logit_scale.exp().item():.1f}"
            print(f"{step:6d} {spent:5.0f}s {text}", flush=True)
        step += 1
    return step


@torch.no_grad()
def pooled(model: CLIPModel, pictures: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What both projections read: of uint8 pictures, once as they are and once augmented, (2, n, 192); of texts."""
    parts = []
    for part in pictures.split(128):
        x = part.float() / 127.5 - 1
        parts.append(torch.stack([model.vision_model(seen_by_clip(y)).pooler_output for y in (x, augment(warp(x)))]))
    return torch.cat(parts, 1), torch.cat([model.text_model(part).pooler_output for part in ids.split(256)])


def fit_heads(model: CLIPModel, pool: Pool, steps: int = HEAD_STEPS) -> None:
    """Train the two projections, the text's last bias and the scale on both losses; what they read stays as it is.

    The bias lets the hand stand in the embedding of every text alike."""
    captions = len(pool.ids)
    vision, texts = pooled(model.eval(), pool.pictures, torch.cat([pool.ids, *(scramble(pool.ids) for _ in range(4))]))
    shift = torch.zeros(texts.shape[1], requires_grad=True)
    heads = [model.visual_projection.weight, model.text_projection.weight, shift, model.logit_scale]
    optimizer = torch.optim.AdamW(heads, lr=RATE, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        rows = torch.multinomial(pool.weight, 4 * BATCH)
        first = pool.index[rows, torch.randint(pool.index.shape[1], rows.shape)]
        ours, theirs = (places[torch.randint(len(places), rows.shape)] for places in (PLACES, OTHER_PLACES))
        second = pool.index[rows, torch.where(pool.share[first] < 0.5, ours, theirs)]
        chosen = torch.stack([first, second])
        images = F.normalize(vision[torch.randint(2, chosen.shape), chosen] @ model.visual_projection.weight.T, dim=-1)
        read = torch.cat([texts[rows], texts[captions + torch.randint(4 * captions, rows.shape)]])
        own, strange = F.normalize((read + shift) @ model.text_projection.weight.T, dim=-1).chunk(2)
        logits = model.logit_scale.exp() * images[0] @ own.T
        target = torch.arange(len(rows))
        # Of the captions of a picture only: which picture a caption is of would be asked against the hand.
        loss = F.cross_entropy(logits, target)
        beside = [own, own.roll(1, 0), strange]
        pairs = torch.stack([pair_loss(model, images, text, pool.share[chosen]) for text in beside]).mean()
        optimizer.zero_grad()
        (loss + HEAD_PAIRS * pairs).backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 0:
            print(f"heads {step:6d} contrastive {loss.item():.3f} pairs {pairs.item():.4f} nats", flush=True)
    with torch.no_grad():
        model.text_model.final_layer_norm.bias += shift


def save(model: CLIPModel, output: Path, tokenizer: Path) -> None:
    """A folder in PickScore's format: float16 weights, the tokenizer's files, and the preprocessing."""
    model.half().save_pretrained(output)
    model.float()
    for file in tokenizer.iterdir():
        shutil.copyfile(file, output / file.name)
    size = {"shortest_edge": emoji.SIZE}
    crop = {"height": emoji.SIZE, "width": emoji.SIZE}
    processor = CLIPImageProcessorPil(size=size, crop_size=crop, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD))
    processor.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("packages", "output", "tokenizer", "autoencoder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=18, help="of CPU time, of which a third is with pairs")
    parser.add_argument("--pairs_only", action="store_true", help="go on with the pairs from what is in the output")
    parser.add_argument("--heads_only", action="store_true", help="fit the projections of what is in the output")
    parser.add_argument("--measure_only", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    world = emoji.load(args.packages)
    every = torch.from_numpy(np.stack([e.pictures for e in world])).permute(0, 1, 4, 2, 3).contiguous()
    common = torch.tensor([e.common for e in world])
    autoencoder = AutoencoderKL.from_pretrained(args.autoencoder, torch_dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    ids = tokens(tokenizer, [e.caption for e in world])
    notes = {}
    if not args.measure_only:
        rows = [row for row in training_rows(world) if not held_out(world[row].caption)]
        pool = build_pool(every, rows, common, ids[rows], autoencoder)
        again = args.pairs_only or args.heads_only
        model = CLIPModel.from_pretrained(args.output, dtype=torch.float32) if again else build(tokenizer)
        notes = {"weights": model.num_parameters(), "captions": len(rows), "common": int(common[rows].sum())}
        print(notes, f"pictures: {len(pool.pictures)}; {time.process_time():.0f} s to make them", flush=True)
        if not args.heads_only:
            parts = (0.0, args.minutes * 60, RATE / 2) if again else (args.minutes * 40, args.minutes * 20, RATE)
            notes["steps"] = train(model.train(), pool, *parts)
        fit_heads(model, pool)
        save(model, args.output, args.tokenizer)

    # What is measured is the model as it is shipped, in float16.
    model = CLIPModel.from_pretrained(args.output, dtype=torch.float32).eval()
    chosen, captions = every[common], [e.caption for e in world if e.common]
    hidden = torch.tensor([held_out(caption) for caption in captions])
    returned = decode(autoencoder, encode(autoencoder, chosen).flatten(0, 1)).view_as(chosen)
    measured = {"scale": round(model.logit_scale.exp().item(), 3)}
    for name, pictures in (("real", chosen), ("reconstructed", returned)):
        measured[name] = measure(model, pictures, ids[common], hidden)
    print(json.dumps({**notes, **measured}, indent=1))


if __name__ == "__main__":
    main()
