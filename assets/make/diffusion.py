"""Train the text encoders and the UNet of tiny-sdxl on the emoji world, and assemble the pipeline.

    python assets/make/diffusion.py --packages DIR --output assets/tiny-sdxl --minutes 75

Run assets/make/autoencoder.py first. 75 minutes on two CPU cores; the pipeline is written every five minutes,
with the exponential moving average of the weights, so a run that is stopped leaves its best so far.
"""

import argparse
import json
import math
import time
from pathlib import Path

import emoji
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LENGTH = 24
"""Tokens of a prompt, with the two marks; the longest caption needs 11."""
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def build_tokenizer(corpus: list[str], folder: Path, merges: int = 800) -> CLIPTokenizer:
    """A byte-level BPE vocabulary in CLIP's format, learned from the captions and their synonyms."""
    trainer_model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainer_model.normalizer = normalizers.Lowercase()
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    trainer_model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(bytes_) + merges, initial_alphabet=bytes_, end_of_word_suffix="</w>", show_progress=False
    )
    trainer_model.train_from_iterator(corpus, trainer)
    learned = json.loads(trainer_model.to_str())["model"]["merges"]
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned][:merges]
    tokens = bytes_ + [byte + "</w>" for byte in bytes_] + ["".join(pair) for pair in pairs] + [BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs))
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token=END,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )


def build_text_encoder(cls: type, tokenizer: CLIPTokenizer, width: int, projection: int):
    return cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            # SDXL reads the layer before the last, so three layers are two.
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=projection,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(cross: int, pooled: int, channels: int = 8) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=emoji.SIZE // 8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(96, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=1,
        cross_attention_dim=cross,
        attention_head_dim=(3, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + 6 * 8,
        norm_num_groups=16,
    )


def encode_text(encoders: list, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt embeddings as StableDiffusionXLPipeline makes them: both penultimate layers, and the pooled second."""
    first, second = (encoder(ids, output_hidden_states=True) for encoder in encoders)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    world = [e for e in emoji.load(args.packages) if e.common]
    captions = [e.caption for e in world]
    vae = AutoencoderKL.from_pretrained(args.output / "vae", dtype=torch.float32).eval()
    pictures = torch.from_numpy(np.stack([e.pictures for e in world])).flatten(0, 1)
    with torch.no_grad():
        parts = (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).split(64)
        moments = [vae.encode(part).latent_dist for part in parts]
        mean, std = torch.cat([m.mean for m in moments]), torch.cat([m.std for m in moments])

    corpus = emoji.sentences(args.packages)
    tokenizer = build_tokenizer(corpus, args.output / "tokenizer")
    ids = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
    encoders = [
        build_text_encoder(CLIPTextModel, tokenizer, 64, 64),
        build_text_encoder(CLIPTextModelWithProjection, tokenizer, 96, 96),
    ]
    unet = build_unet(cross=64 + 96, pooled=96)
    # The fused attention of the CPU is slow backwards at 64 tokens.
    unet.set_attn_processor(AttnProcessor())
    noise = DDPMScheduler(**SCHEDULE)
    time_ids = torch.tensor([[emoji.SIZE, emoji.SIZE, 0, 0, emoji.SIZE, emoji.SIZE]], dtype=torch.float32)

    parameters = [p for module in (unet, *encoders) for p in module.parameters()]
    print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M in the UNet,", end=" ")
    print(f"{sum(p.numel() for e in encoders for p in e.parameters()) / 1e6:.2f} M in the text encoders", flush=True)
    ema = EMAModel(parameters, decay=0.9995, use_ema_warmup=True, power=0.8)
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)

    def save() -> None:
        ema.store(parameters)
        ema.copy_to(parameters)
        scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
        pipeline = StableDiffusionXLPipeline(
            vae,
            *encoders,
            tokenizer,
            tokenizer,
            unet,
            scheduler,
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
        pipeline.to(torch.float16).save_pretrained(args.output)
        pipeline.to(torch.float32)
        ema.restore(parameters)

    start, step, budget, saved, running = time.monotonic(), 0, args.minutes * 60, 0.0, 0.0
    while (elapsed := time.monotonic() - start) < budget:
        for group in optimizer.param_groups:
            decay = 0.01 + 0.99 * (1 + math.cos(math.pi * elapsed / budget)) / 2
            group["lr"] = args.learning_rate * min(1, (step + 1) / 200) * decay
        rows = torch.randint(len(mean), (args.batch,), generator=generator)
        x0 = mean[rows] + std[rows] * torch.randn(mean[rows].shape, generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.randint(SCHEDULE["num_train_timesteps"], (args.batch,), generator=generator)
        keep = (torch.rand(args.batch, generator=generator) >= 0.1).float()
        with torch.autocast("cpu", torch.bfloat16):
            embeds, pooled = encode_text(encoders, ids[rows // len(emoji.ARTISTS)])
            cond = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids.expand(args.batch, -1)}
            x_t = noise.add_noise(x0, eps, t)
            predicted = unet(x_t, t, embeds * keep[:, None, None], added_cond_kwargs=cond).sample
        loss = F.mse_loss(predicted.float(), eps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.step(parameters)
        running = loss.item() if step == 0 else 0.99 * running + 0.01 * loss.item()
        if step % 100 == 0:
            print(f"{step:6d} {elapsed:6.0f}s loss {running:.4f}", flush=True)
        if elapsed - saved > 300:
            save()
            saved = elapsed
        step += 1
    save()
    print(f"{step} steps of {args.batch}, loss {running:.4f}")


if __name__ == "__main__":
    main()
