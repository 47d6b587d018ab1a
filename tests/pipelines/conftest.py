"""Small stock pipelines, and finished runs over them: a few steps of real training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline

from diffpref.run import randomness
from diffpref.training.loop import train
from diffpref.training.settings import from_mapping
from tests import small_sd3, small_sd15, small_sdxl

SAVE: dict[str, Callable[..., Path]] = {
    "sdxl": small_sdxl.save_pipeline,
    "sd15": small_sd15.save_pipeline,
    "sd3": small_sd3.save_pipeline,
}
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's base model, made once."""
    folder, made = tmp_path_factory.mktemp("bases"), {}

    def base(family: str) -> Path:
        if family not in made:
            made[family] = SAVE[family](folder / family)
        return made[family]

    return base


@pytest.fixture(scope="session")
def runs(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A finished run of a family and an adapter, trained once; other settings make another."""
    folder = tmp_path_factory.mktemp("runs")
    pairs = small_sdxl.save_pairs(folder / "pairs", count=4)
    made: dict[str, Path] = {}

    def run(family: str = "sdxl", adapter: str = "lora", **changes: Any) -> Path:
        name = "-".join([family, adapter, *(f"{key}={value}" for key, value in changes.items())]).replace("/", "_")
        if name not in made:
            values = {
                "pretrained_model_name_or_path": str(bases(family)),
                "dataset_name": str(pairs),
                "resolution": small_sdxl.SIZE,
                "output_dir": str(folder / name),
                "adapter": adapter,
                "max_train_steps": 3,
                "train_batch_size": 2,
                "learning_rate": 3e-2 if adapter == "lora" else 3e-3,
                "beta": 500.0,
                "cache_dir": str(folder / "cache"),
            }
            values |= {"rank": 4} if adapter == "lora" else {}
            values |= {"max_sequence_length": small_sd3.TOKENS} if family == "sd3" else {}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ACCELERATE_USE_CPU", "1")
                AcceleratorState._reset_state(reset_partial_state=True)
                randomness.epoch_order.cache_clear()
                made[name] = train(from_mapping(values | changes, "test"), say=lambda line: None)
        return made[name]

    return run


@pytest.fixture
def stock(bases: Callable[[str], Path]) -> Callable[[str], Any]:
    """A fresh stock pipeline of a family."""

    def fresh(family: str = "sdxl") -> Any:
        without = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
        pipe: Any = DiffusionPipeline.from_pretrained(bases(family), dtype=torch.float32, **without)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return fresh
