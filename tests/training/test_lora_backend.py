"""Training with fused LoRA layers is training with peft's: the same losses, the same file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffpref.training.config import TrainConfig
from diffpref.training.loop import train
from tests.small_sdxl import read_metrics, read_weights


@pytest.mark.slow
def test_the_losses_and_the_file_are_pefts(run: Callable[..., Path], tmp_path: Path) -> None:
    # At beta 5000 a rounding of 1e-8 in an error is 2e-5 in the loss.
    changes = {"beta": 200, "max_train_steps": 6}
    folders = [run(lora_backend=name, output_dir=str(tmp_path / name), **changes) for name in ("peft", "fused")]
    peft, fused = (read_metrics(folder) for folder in folders)
    assert len(peft) == len(fused) == 6
    losses = [line["loss"] for line in peft]
    assert max(losses) - min(losses) > 1e-3, "there is a curve to compare"
    for one, other in zip(peft, fused, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    weights, others = (read_weights(folder) for folder in folders)
    assert weights.keys() == others.keys()
    moved = max((weights[name] - others[name]).abs().max().item() for name in weights)
    # Adam divides by the gradient's size, so that roundings of tiny gradients move weights by a part of the rate.
    assert moved < 1e-3 and any(tensor.any() for name, tensor in weights.items() if "lora_up" in name)


def test_the_log_says_what_attention_and_lora_are(settings: Callable[..., TrainConfig]) -> None:
    lines: list[str] = []
    train(settings(max_train_steps=1), say=lines.append)
    assert any(line.startswith("attention: flash, ") for line in lines)
    assert sum(line.startswith("LoRA: ") and "layers fused" in line for line in lines) == 1


def test_half_precision_starts_from_no_difference(run: Callable[..., Path]) -> None:
    first, *_ = read_metrics(run(mixed_precision="bf16", max_train_steps=2))
    assert first["rewards/margins"] == 0 and first["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item())
