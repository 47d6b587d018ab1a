"""A small BLIP reward model in the published files' layout, and its score in float64 by another way than the package's.

`head_output` sees one picture and only the prompt's own tokens: it has no batch, no padding and no mask.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CHANNELS, WIDTH, PATCH, GRID, POSITIONS = 128, 192, 32, 7, 130
WORDS = [
    *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "dog", "red", '"', "'", "“", "”", "‘", "’"],
    *[".", ",", "-", "cafe", "##teria", "of", "on", "the", "##ing", "paint", "[", "]", "enc", "1", "##0"],
]
PROMPTS = [
    "a cat",
    "The “red” dogs’ CAFÉteria, painting-of a cats.",
    " ".join(["a red dog on the painting"] * 40),
    "",
    "[ENC] unknowable 10",
]
"""Plain; curly quotes, capitals and an accent; more words than any model reads; none; brackets and an unknown word."""


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


def pictures(count: int) -> list[Image.Image]:
    """Pictures of several sizes that are the same everywhere, with edges and noise."""
    sizes = [(300, 261), (224, 224), (97, 240), (451, 300), (50, 33)]
    made: list[Image.Image] = []
    for i in range(count):
        width, height = sizes[i % len(sizes)]
        noise = np.random.RandomState(i).randint(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
        made.append(Image.fromarray(noise.repeat(8, 0).repeat(8, 1)[:height, :width]))
    return made


def weights(head: tuple[int, ...]) -> dict[str, Tensor]:
    """All tensors of a published file, float32; the same numbers with every version of torch.

    Args:
        head: places of the head's linear layers.
    """
    c, w, made = CHANNELS, WIDTH, {}

    def add(name: str, *shape: int, scale: float, about: float = 0.0) -> None:
        made[name] = torch.from_numpy(np.random.RandomState(len(made)).randn(*shape) * scale + about).float()

    def linear(name: str, out: int, wide: int, *tail: int, small: float = 1.0) -> None:
        add(f"{name}.weight", out, wide, *tail, scale=small * (wide * math.prod(tail)) ** -0.5)
        add(f"{name}.bias", out, scale=0.2 * small)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", width, scale=0.3, about=1.0)
        add(f"{name}.bias", width, scale=0.2)

    eye, text = "blip.visual_encoder.", "blip.text_encoder."
    # So small that the first layer norm's epsilon shows.
    add(f"{eye}cls_token", 1, 1, c, scale=0.01)
    add(f"{eye}pos_embed", 1, 1 + GRID**2, c, scale=0.01)
    linear(f"{eye}patch_embed.proj", c, 3, PATCH, PATCH, small=0.01)
    for i in range(2):
        block = f"{eye}blocks.{i}."
        norm(f"{block}norm1", c)
        linear(f"{block}attn.qkv", 3 * c, c)
        linear(f"{block}attn.proj", c, c)
        norm(f"{block}norm2", c)
        linear(f"{block}mlp.fc1", 160, c)
        linear(f"{block}mlp.fc2", c, 160)
    norm(f"{eye}norm", c)
    made[f"{text}embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    add(f"{text}embeddings.word_embeddings.weight", len(WORDS) + 2, w, scale=1.0)
    add(f"{text}embeddings.position_embeddings.weight", POSITIONS, w, scale=0.5)
    norm(f"{text}embeddings.LayerNorm", w)
    for i in range(3):
        layer = f"{text}encoder.layer.{i}."
        for kind, seen in (("attention", w), ("crossattention", c)):
            for part, wide in (("query", w), ("key", seen), ("value", seen)):
                linear(f"{layer}{kind}.self.{part}", w, wide)
            linear(f"{layer}{kind}.output.dense", w, w)
            norm(f"{layer}{kind}.output.LayerNorm", w)
        linear(f"{layer}intermediate.dense", 96, w)
        linear(f"{layer}output.dense", w, 96)
        norm(f"{layer}output.LayerNorm", w)
    linear("blip.vision_proj", 16, c)
    linear("blip.text_proj", 16, w)
    sizes = (w, 1024, 128, 64, 16, 1)
    for place, wide, out in zip(head, sizes, sizes[1:], strict=False):
        linear(f"mlp.layers.{place}", out, wide)
    return made


def head_output(tensors: dict[str, Tensor], pixels: Tensor, ids: list[int], *, gelu: bool) -> float:
    """The head's output for one normalised picture "3 s s" and one prompt's tokens, without padding."""
    t = {name: tensor.double() for name, tensor in tensors.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * t[f"{name}.weight"] + t[f"{name}.bias"]

    def bend(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    def mix(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention in heads of 64 channels, so that a logit is a dot product over 8."""
        heads = []
        for at in range(0, queries.shape[1], 64):
            of = slice(at, at + 64)
            likeness = (queries[:, of] @ keys[:, of].T / 8).exp()
            heads.append(likeness @ values[:, of] / likeness.sum(1, keepdim=True))
        return torch.cat(heads, 1)

    eye, text = "blip.visual_encoder.", "blip.text_encoder."
    kernel = t[f"{eye}patch_embed.proj.weight"]
    tiles = pixels.double().reshape(3, GRID, PATCH, GRID, PATCH)
    patches = torch.einsum("rypxq,crpq->yxc", tiles, kernel).reshape(-1, CHANNELS) + t[f"{eye}patch_embed.proj.bias"]
    seen = torch.cat([t[f"{eye}cls_token"][0], patches]) + t[f"{eye}pos_embed"][0]
    for i in range(2):
        block = f"{eye}blocks.{i}."
        queries, keys, values = linear(norm(seen, f"{block}norm1", 1e-6), f"{block}attn.qkv").split(CHANNELS, 1)
        seen = seen + linear(mix(queries, keys, values), f"{block}attn.proj")
        seen = seen + linear(bend(linear(norm(seen, f"{block}norm2", 1e-6), f"{block}mlp.fc1")), f"{block}mlp.fc2")
    seen = norm(seen, f"{eye}norm", 1e-6)

    read = (
        t[f"{text}embeddings.word_embeddings.weight"][ids]
        + t[f"{text}embeddings.position_embeddings.weight"][: len(ids)]
    )
    read = norm(read, f"{text}embeddings.LayerNorm", 1e-12)
    for i in range(3):
        layer = f"{text}encoder.layer.{i}."
        for kind in ("attention", "crossattention"):
            own = f"{layer}{kind}."
            source = read if kind == "attention" else seen
            mixed = mix(
                *(linear(x, f"{own}self.{part}") for x, part in ((read, "query"), (source, "key"), (source, "value")))
            )
            read = norm(read + linear(mixed, f"{own}output.dense"), f"{own}output.LayerNorm", 1e-12)
        wide = linear(bend(linear(read, f"{layer}intermediate.dense")), f"{layer}output.dense")
        read = norm(read + wide, f"{layer}output.LayerNorm", 1e-12)

    x = read[:1]
    places = sorted({int(name.split(".")[2]) for name in t if name.startswith("mlp.")})
    for place in places:
        x = linear(x, f"mlp.layers.{place}")
        if gelu and place != places[-1]:
            x = bend(x)
    return x.item()
