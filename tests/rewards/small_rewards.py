"""Every reward of the package on a tiny model of random weights: its files, and the settings that name them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffpref.training.loop import train
from diffpref.training.settings import from_mapping
from tests import small_sdxl
from tests.rewards import small_aesthetic, small_blip, small_hpsv3, small_mps
from tests.rewards.judge_server import level, points, serving
from tests.rewards.small_clip import add_small_architecture, save_small_clip, small_open_clip
from tests.small_qwen import save_model


def open_clip(folder: Path, name: str) -> dict[str, Any]:
    """An architecture of open_clip and a file of its weights."""
    add_small_architecture(folder, name)
    save_file(small_open_clip(name).state_dict(), folder / "clip.safetensors")
    return {"checkpoint": str(folder / "clip.safetensors"), "architecture": name}


def aesthetic(folder: Path) -> dict[str, Any]:
    clip = open_clip(folder, "diffpref-every-aesthetic")
    head = small_aesthetic.save_head(small_aesthetic.head(16), folder / "head.pth")
    return {"checkpoint": str(head), "clip": clip["checkpoint"], "architecture": clip["architecture"]}


def blip(folder: Path, layers: tuple[int, ...]) -> dict[str, Any]:
    torch.save(small_blip.weights(layers), folder / "weights.pt")
    return {"checkpoint": str(folder / "weights.pt"), "tokenizer": str(small_blip.write_tokenizer(folder / "bert"))}


def mps(folder: Path) -> dict[str, Any]:
    small_mps.write_processor(folder)
    return {"checkpoint": str(small_mps.write_weights(folder)), "processor": str(folder), "condition": "colour, cats"}


def hpsv3(folder: Path) -> dict[str, Any]:
    small_hpsv3.write_model(folder)
    return {"checkpoint": str(folder), "base": str(folder), "dtype": "float32"}


def vqascore(folder: Path) -> dict[str, Any]:
    save_model(folder, "qwen2_5_vl")
    return {"checkpoint": str(folder), "dtype": "float32"}


def implicit(folder: Path) -> dict[str, Any]:
    """A run of a few steps; its beta is so small that rounding stays below the tests' tolerance."""
    base, pairs = small_sdxl.save_pipeline(folder / "base"), small_sdxl.save_pairs(folder / "pairs", count=4)
    values = {"pretrained_model_name_or_path": str(base), "dataset_name": str(pairs), "output_dir": str(folder / "run")}
    quick = {"resolution": small_sdxl.SIZE, "max_train_steps": 2, "rank": 2, "learning_rate": 3e-2, "beta": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        run = train(from_mapping(values | quick, "the test"), say=lambda line: None)
    return {"run": str(run), "draws": 2}


FILES: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "aesthetic": aesthetic,
    "clipscore": lambda folder: open_clip(folder, "diffpref-every-clipscore"),
    "cyclereward": lambda folder: blip(folder, (0, 2, 4, 6, 8)),
    "emoji_hand": lambda folder: {},
    "ensemble": lambda folder: {"rewards": [{"reward": "jpeg_compressibility"}, {"reward": "emoji_hand"}]},
    "hpsv2": lambda folder: open_clip(folder, "diffpref-every-hps"),
    "hpsv2.1": lambda folder: open_clip(folder, "diffpref-every-hps21"),
    "hpsv3": hpsv3,
    "implicit": implicit,
    "imagereward": lambda folder: blip(folder, (0, 2, 4, 6, 7)),
    "jpeg_compressibility": lambda folder: {},
    "mps": mps,
    "pickscore": lambda folder: {"checkpoint": str(save_small_clip(folder)), "processor": ""},
    "vqascore": vqascore,
}
"""What writes a reward's files into a folder and returns its settings; vlm_judge asks a server instead."""


@contextmanager
def settings_of(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The settings of a reward, whose files or server are there inside."""
    if name != "vlm_judge":
        yield FILES[name](folder)
        return
    with serving(lambda question: points(1 + level(question)[0] / 64)) as server:
        yield {"endpoint": server.url, "model": "judge", "backoff": 0.01}
