"""A run's first step: log-ratios of exactly 0, one line where a kernel rounds, no training where the models differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from diffpref.backbones import Kind
from diffpref.backbones.adapters import Full, trainable
from diffpref.training.config import TrainConfig
from diffpref.training.loop import train
from tests import small_edm
from tests.small_sdxl import read_metrics, save_pairs

RUNS: Mapping[str, Mapping[str, Any]] = {
    "joint": {"loss_mode": "joint"},
    "deferred": {"loss_mode": "deferred", "micro_batch": 1},
    "two pass": {"loss_mode": "two-pass", "gradient_checkpointing": True},
    "all weights": {"adapter": "full"},
    "all weights, deferred in bf16": {"adapter": "full", "loss_mode": "deferred", "mixed_precision": "bf16"},
    "streamed, checkpointed": {"adapter": "full", "reference_memory": "streamed", "gradient_checkpointing": True},
    "inverted": {"probe": "inversion", "inversion_steps": 2, "adapter": "full"},
    "stored": {"stored_reference": 1},
}


@dataclass(frozen=True)
class Off(Full):
    """All weights, moved after the reference was copied: another start than `starts_equal` promises."""

    by: float = 0.0
    """The share by which the weights grow."""

    def attach(self, network: torch.nn.Module, family: Kind, *, seed: int) -> Sequence[str]:
        with torch.no_grad():
            for parameter in trainable(network):
                parameter.mul_(1 + self.by)
        return ()


def said(config: TrainConfig) -> list[str]:
    AcceleratorState._reset_state(reset_partial_state=True)
    lines: list[str] = []
    train(config, say=lines.append)
    return [line for line in lines if line.startswith("before the first update")]


def starts_at_zero(folder: Path) -> None:
    first = read_metrics(folder)[0]
    assert first["step"] == 1
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "margins/p90"):
        assert first[name] == 0.0, name
    assert first["rewards/accuracies"] == 0.5 and first["error/chosen/ratio"] == first["error/rejected/ratio"] == 1.0


@pytest.mark.parametrize("name", RUNS)
def test_a_run_starts_at_exactly_zero(settings: Callable[..., TrainConfig], tmp_path: Path, name: str) -> None:
    assert said(settings(max_train_steps=1, **RUNS[name])) == []
    starts_at_zero(tmp_path / "run")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_edm_with_classes_starts_at_exactly_zero(
    settings: Callable[..., TrainConfig], tmp_path: Path, precision: str
) -> None:
    """Its class embedding is what a reference in bf16 rounded."""
    base = small_edm.save_pipeline(tmp_path / "edm", channels=3)
    config = settings(
        pretrained_model_name_or_path=str(base),
        dataset_name=str(save_pairs(tmp_path / "pairs", prompts=small_edm.CLASSES)),
        resolution=small_edm.SIZE,
        adapter="full",
        mixed_precision=precision,
        max_train_steps=1,
    )
    assert said(config) == []
    starts_at_zero(tmp_path / "run")


def test_two_models_are_refused_before_the_first_update(settings: Callable[..., TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy and reference differ by 0\.\d+ .* they are not one model.*at random"):
        said(settings(adapter=f"{__file__}:Off", by=0.1, max_train_steps=1))
    assert not any((tmp_path / "run").glob("checkpoint-*"))


def test_rounding_is_said_once_with_its_size(settings: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (line,) = said(settings(adapter=f"{__file__}:Off", by=3e-6, train_batch_size=1, max_train_steps=2))
    assert "in float32, up to " in line and "docs/troubleshooting.md" in line
    first = read_metrics(tmp_path / "run")[0]
    largest = max(abs(first["rewards/chosen"]), abs(first["rewards/rejected"]))
    assert float(line.partition("up to ")[2].split()[0]) == pytest.approx(largest, rel=0.06)  # two digits are said


def test_a_lora_that_is_trained_on_may_start_elsewhere(settings: Callable[..., TrainConfig], tmp_path: Path) -> None:
    said(settings(max_train_steps=2, learning_rate=0.05, output_dir=str(tmp_path / "first")))
    lora = str(tmp_path / "first")
    assert said(settings(max_train_steps=1, adapter_weights=lora)) == []
    assert read_metrics(tmp_path / "run")[0]["rewards/margins"] != 0.0
