"""The folder that the golden runs work in: links into a checkout, small data, and the settings of two label worlds."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import yaml

WORLD = '''
import numpy as np
from PIL import Image


def measure(pictures, prompts):
    """Lower for brighter pictures."""
    return -float(np.mean([np.asarray(picture).astype(float).mean() for picture in pictures]))


def noise(seed):
    low = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((16, 16), Image.Resampling.NEAREST)


def picture(prompt, seed):
    if "explode" in prompt:
        raise RuntimeError(f"no picture of {prompt}")
    if "black" in prompt:
        return Image.new("RGB", (16, 16))
    if "flat" in prompt:
        return Image.new("RGB", (16, 16), (90, 90, 90))
    return noise(7 if "same" in prompt else seed)


def make(device):
    return lambda prompts, seeds: [picture(prompt, seed) for prompt, seed in zip(prompts, seeds)]


def other(device):
    return lambda prompts, seeds: [noise(seed + 1) for seed in seeds]


def brightness(images, prompts):
    return [np.asarray(image).mean() for image in images]


def redness(images, prompts):
    return [float("nan") if "odd" in prompt else np.asarray(image)[..., 0].mean()
            for image, prompt in zip(images, prompts)]
'''
PROMPTS = [f"thing number {word}" for word in "one two three four five six seven".split()]
PROMPTS += [
    "thing number one",
    "the thing number three",
    "a black thing",
    "a flat thing",
    "the same thing",
    "an odd one",
]
PROMPTS += ["please explode now", "an evaluated caption of four words"]


def prepare(work: Path, repo: Path) -> None:
    """Fill the folder that the runs work in: links into the checkout, pictures of clothes, and the label worlds."""
    work.mkdir(parents=True, exist_ok=True)
    for name in ("assets", "configs", "examples"):
        (work / name).symlink_to((repo / name).resolve())
    (work / "world.py").write_text(WORLD, encoding="utf-8")
    (work / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    (work / "evaluation.txt").write_text(PROMPTS[-1] + "\n", encoding="utf-8")
    _write_clothes(work / "clothes", 12)
    tiny = yaml.safe_load((repo / "configs/label/tiny.yaml").read_text(encoding="utf-8"))
    for generator in tiny["generators"]:
        generator |= {"samples": 2, "batch_size": 4}
        generator["call"]["num_inference_steps"] = 2
    tiny |= {"output_dir": "runs/label/models", "max_prompts": 5, "shard_size": 3, "workers": 1}
    (work / "label-models.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    (work / "label-noise.yaml").write_text(yaml.safe_dump(_noise_world()), encoding="utf-8")


def _noise_world() -> dict[str, Any]:
    return {
        "prompts": "prompts.txt",
        "exclude": ["evaluation.txt"],
        "generators": [
            {"name": "noise", "function": "world.py:make", "samples": 2, "batch_size": 3},
            {"name": "other", "function": "world.py:other", "samples": 2},
        ],
        "rewards": [
            {"name": "bright", "reward": "world.py:brightness"},
            {"name": "red", "reward": "world.py:redness", "batch_prompts": 2},
            {"name": "judge", "reward": "world.py:redness", "held_out": True},
        ],
        "packs": [
            {"name": "lists", "form": "lists", "min_candidates": 2},
            {"name": "pairs", "form": "pairs", "pairs": "all", "min_gap": 0.1},
            {"name": "pick", "form": "pickapic", "pairs": "best_worst", "same_generator": True},
        ],
        "aggregator": "win_prob",
        "weights": {"red": 2.0},
        "temperatures": {"bright": 10.0},
        "duplicate_pictures": "drop",
        "max_failure_share": 0.5,
        "shard_size": 4,
        "workers": 1,
        "output_dir": "runs/label/noise",
    }


def _write_clothes(folder: Path, count: int) -> None:
    """Grey pictures of 28 x 28 pixels in MNIST's files, which stand for Fashion-MNIST's."""
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (count, 7, 7), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    shape = struct.pack(">4i", 0x803, *pictures.shape)
    (folder / "train-images-idx3-ubyte").write_bytes(shape + pictures.tobytes())
    labels = bytes(place % 10 for place in range(count))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels)
