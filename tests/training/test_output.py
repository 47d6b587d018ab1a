"""What a run leaves: files that stock diffusers loads, and that give the trainer's own pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from diffpref.backbones.latents import LatentDecoder
from diffpref.training.settings import from_yaml
from tests.small_sdxl import PROMPTS, SIZE, read_metrics, read_weights

Run = Callable[..., Path]
FILE = "pytorch_lora_weights.safetensors"
METRICS = {
    "step",
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/discrimination",
    "rewards/accuracies",
    "rewards/effective_share/chosen",
    "rewards/effective_share/rejected",
    "drop",
    "saturated",
    "margins/p10",
    "margins/p50",
    "margins/p90",
    *(f"error/{side}/{what}" for side in ("chosen", "rejected") for what in ("policy", "reference", "ratio")),
    "learning_rate",
    "grad_norm",
    "epoch",
    "seconds_per_step",
    "peak_memory_gib",
}
TRAINED = {
    "validation_prompts": PROMPTS[:2],
    "validation_batch_size": 2,
    "guidance_scale": 5.0,
    "max_train_steps": 6,
    "learning_rate": 2e-2,
    "use_ema": True,
    "ema_decay": 0.5,
    "seed": 3,
}


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[list[Image.Image]]:
    """Every list of samples that a run draws."""
    drawn: list[list[Image.Image]] = []
    sample = LatentDecoder.sample

    def spy(*arguments: Any, **options: Any) -> list[Image.Image]:
        drawn.append(sample(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(LatentDecoder, "sample", spy)
    return drawn


def stock(base: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionXLPipeline) -> list[Image.Image]:
    """As the README tells a user to: one prompt at a time, its seed the run's plus its place."""
    return [
        pipeline(
            prompt, num_inference_steps=3, guidance_scale=5.0, height=SIZE, width=SIZE,
            generator=torch.Generator().manual_seed(3 + place),
        ).images[0]
        for place, prompt in enumerate(PROMPTS[:2])
    ]  # fmt: skip


def difference(one: list[Image.Image], other: list[Image.Image]) -> int:
    """The largest difference of a pixel, in levels of 256."""
    return max(int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in zip(one, other, strict=True))


def test_a_stock_pipeline_draws_the_trainers_pictures_from_the_lora(
    run: Run, base: Path, tmp_path: Path, pictures: list[list[Image.Image]]
) -> None:
    folder = run(**TRAINED)
    before, after = pictures[0], pictures[-1]
    plain = stock(base)
    # Batches of two and of one round differently: one level of 256.
    assert difference(draw(plain), before) <= 1
    assert difference(before, after) > 8
    plain.load_lora_weights(folder)
    assert difference(draw(plain), after) <= 1

    # The effective scale is 1 for a reader that ignores the metadata and alpha, too.
    (tmp_path / "bare").mkdir()
    matrices = {name: tensor for name, tensor in read_weights(folder).items() if not name.endswith(".alpha")}
    save_file(matrices, tmp_path / "bare" / FILE, metadata={"format": "pt"})
    bare = stock(base)
    bare.load_lora_weights(tmp_path / "bare")
    assert difference(draw(bare), after) <= 1

    grid = np.asarray(Image.open(folder / "samples" / "step-000006.png").convert("RGB"))
    assert all(contains(grid, np.asarray(picture)) for picture in after)
    assert json.loads((folder / "samples" / "prompts.json").read_text()) == list(PROMPTS[:2])
    assert not (folder / "lora.new").exists()


def contains(grid: np.ndarray, picture: np.ndarray) -> bool:
    height, width = picture.shape[:2]
    rows, columns = grid.shape[0] - height + 1, grid.shape[1] - width + 1
    first = np.argwhere((grid[:rows, :columns] == picture[0, 0]).all(-1))
    return any((grid[y : y + height, x : x + width] == picture).all() for y, x in first)


@pytest.mark.slow
def test_a_stock_pipeline_draws_the_trainers_pictures_from_the_full_network(
    run: Run, base: Path, pictures: list[list[Image.Image]]
) -> None:
    folder = run(**{**TRAINED, "adapter": "full", "learning_rate": 2e-3})
    pipeline = stock(base)
    pipeline.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    assert difference(pictures[0], pictures[-1]) > 8
    assert difference(draw(pipeline), pictures[-1]) <= 1
    assert not (folder / FILE).exists()


def test_a_run_leaves_its_record(run: Run, settings: Callable[..., Any], base: Path) -> None:
    folder = run(max_train_steps=5, logging_steps=2, checkpointing_steps=5)
    metrics = read_metrics(folder)
    assert [line["step"] for line in metrics] == [2, 4, 5]
    for line in metrics:
        names = set(line)
        assert METRICS <= names
        assert all("/t_" in name for name in names - METRICS - {"alarm", "skipped", "loss_mode"})
        assert all(isinstance(line[name], int | float) for name in METRICS)
    assert from_yaml(folder / "config.yaml") == settings(max_train_steps=5, logging_steps=2, checkpointing_steps=5)
    environment = json.loads((folder / "environment.json").read_text())
    assert {"versions", "git_commit", "command", "platform", "gpus"} <= set(environment)
    assert {"torch", "diffusers", "peft", "accelerate"} <= set(environment["versions"])
    card, report = (folder / "README.md").read_text(), (folder / "report.html").read_text()
    assert "library_name: diffusers" in card and str(base) in card and "load_lora_weights" in card
    assert "http://" not in report.replace("http://www.w3.org", "") and "rewards" in report
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob(".*"))
    (folder / "new").touch()
    readable = (folder / "new").stat().st_mode
    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {readable}


@pytest.mark.slow
def test_the_files_of_another_run_go_when_asked(run: Run) -> None:
    folder = run(max_train_steps=2, checkpointing_steps=1, validation_prompts=["a dog"])
    with pytest.raises(ValueError, match="holds another run"):
        run(max_train_steps=1)
    assert (folder / "checkpoint-2").exists()
    run(max_train_steps=1, overwrite_output_dir=True, adapter="full")
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"] and not (folder / FILE).exists()
    assert not (folder / "samples").exists() and len(read_metrics(folder)) == 1
