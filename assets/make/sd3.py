"""Train the transformer of tiny-sd3 on the emoji world, and assemble the pipeline.

    python assets/make/sd3.py --packages DIR --base assets/tiny-sdxl --output assets/tiny-sd3 --minutes 75

Run assets/make/diffusion.py first: the autoencoder, the vocabulary and both text encoders are tiny-sdxl's, frozen. The
pipeline is written every five minutes, with the exponential moving average of the weights.

There is no T5: SD3's pipeline puts zeros in its place, 256 tokens of them by default. All of them stay equal in every
layer, so one token whose keys weigh n times is the same network; training draws n between 1 and 256 for each batch.
"""

import argparse
import math
import time
from pathlib import Path

import emoji
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ZERO_TOKENS = 256


def with_projection(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """SDXL's first text encoder as SD3 wants it: the pooled output through a projection, here the identity."""
    wrapped = CLIPTextModelWithProjection(encoder.config)
    state = encoder.state_dict()
    prefixed = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}
    missing, unexpected = wrapped.load_state_dict(prefixed, strict=False)
    assert missing == ["text_projection.weight"] and not unexpected, (missing, unexpected)
    torch.nn.init.eye_(wrapped.text_projection.weight)
    return wrapped


def build_transformer(text: int, pooled: int, channels: int = 8) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=emoji.SIZE // 8,
        patch_size=1,
        in_channels=channels,
        out_channels=channels,
        num_layers=7,
        attention_head_dim=32,
        num_attention_heads=4,
        caption_projection_dim=128,
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
        pos_embed_max_size=emoji.SIZE // 8,
        qk_norm="rms_norm",
    )


class CountedAttention:
    """SD3's joint attention whose last text token stands for `count` equal ones."""

    count = 1.0

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None):
        pictures, texts = hidden_states, encoder_hidden_states
        heads = attn.heads

        def split(x):
            return x.unflatten(-1, (heads, -1)).transpose(1, 2)

        q, k, v = (split(layer(pictures)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        tq, tk, tv = (split(layer(texts)) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
        q, k, tq, tk = attn.norm_q(q), attn.norm_k(k), attn.norm_added_q(tq), attn.norm_added_k(tk)
        q, k, v = (torch.cat(pair, 2) for pair in ((q, tq), (k, tk), (v, tv)))
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        bias = torch.zeros(logits.shape[-1])
        bias[-1] = math.log(self.count)
        out = ((logits + bias).softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        pictures, texts = out[:, : pictures.shape[1]], out[:, pictures.shape[1] :]
        pictures = attn.to_out[1](attn.to_out[0](pictures))
        return pictures, None if attn.context_pre_only else attn.to_add_out(texts)


@torch.no_grad()
def encode_text(encoders: list, tokenizer: CLIPTokenizer, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt embeddings as StableDiffusion3Pipeline makes them, with one zero token for T5."""
    length = tokenizer.model_max_length
    ids = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    embeds = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    return F.pad(embeds, (0, 0, 0, 1)), torch.cat([output.text_embeds for output in outputs], -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    world = [e for e in emoji.load(args.packages) if e.common]
    vae = AutoencoderKL.from_pretrained(args.base / "vae", dtype=torch.float32).eval()
    # SD3's pipeline adds a shift, which SDXL's configuration leaves out.
    vae.register_to_config(shift_factor=0.0)
    pictures = torch.from_numpy(np.stack([e.pictures for e in world])).flatten(0, 1)
    with torch.no_grad():
        parts = (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).split(64)
        moments = [vae.encode(part).latent_dist for part in parts]
        mean, std = torch.cat([m.mean for m in moments]), torch.cat([m.std for m in moments])

    tokenizer = CLIPTokenizer.from_pretrained(args.base / "tokenizer")
    encoders = [
        with_projection(CLIPTextModel.from_pretrained(args.base / "text_encoder", dtype=torch.float32)),
        CLIPTextModelWithProjection.from_pretrained(args.base / "text_encoder_2", dtype=torch.float32),
    ]
    for encoder in encoders:
        encoder.eval().requires_grad_(False)
    # The last row is the empty prompt.
    embeds, pooled = encode_text(encoders, tokenizer, [*(e.caption for e in world), ""])
    transformer = build_transformer(embeds.shape[-1], pooled.shape[-1])
    attention = CountedAttention()
    transformer.set_attn_processor(attention)

    parameters = list(transformer.parameters())
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M in the transformer", flush=True)
    ema = EMAModel(parameters, decay=0.9995, use_ema_warmup=True, power=0.8)
    matrices = [p for p in transformer.transformer_blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.learning_rate, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3),
    ]

    def save() -> None:
        ema.store(parameters)
        ema.copy_to(parameters)
        transformer.set_attn_processor(JointAttnProcessor2_0())
        pipeline = StableDiffusion3Pipeline(
            transformer,
            FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae,
            encoders[0],
            tokenizer,
            encoders[1],
            tokenizer,
            None,
            None,
        )
        pipeline.to(torch.float16).save_pretrained(args.output)
        pipeline.to(torch.float32)
        transformer.set_attn_processor(attention)
        ema.restore(parameters)

    start, step, budget, saved, running = time.monotonic(), 0, args.minutes * 60, 0.0, 0.0
    while (elapsed := time.monotonic() - start) < budget:
        decay = 0.01 + 0.99 * (1 + math.cos(math.pi * elapsed / budget)) / 2
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = args.learning_rate * min(1, (step + 1) / 200) * decay
        rows = torch.randint(len(mean), (args.batch,), generator=generator)
        x0 = mean[rows] + std[rows] * torch.randn(mean[rows].shape, generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.randn(args.batch, generator=generator).sigmoid()
        named = torch.rand(args.batch, generator=generator) >= 0.1
        captions = torch.where(named, rows // len(emoji.ARTISTS), len(world))
        attention.count = ZERO_TOKENS ** torch.rand((), generator=generator).item()
        x_t = x0 + t[:, None, None, None] * (eps - x0)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = transformer(x_t, embeds[captions], pooled[captions], 1000 * t).sample
        loss = F.mse_loss(predicted.float(), eps - x0)
        transformer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
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
