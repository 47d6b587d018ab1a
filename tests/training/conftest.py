"""What the training tests share: a small pipeline, pairs, and one call that trains on them and reads the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from diffpref.run import randomness
from diffpref.training.config import TrainConfig
from diffpref.training.loop import train
from diffpref.training.settings import from_mapping
from tests.small_sdxl import SIZE, save_pairs, save_pipeline

Settings = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def v_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that learns within seconds: where x_t is mostly noise, v is near -x0, and even a constant output tells
    bright from dark."""
    noisy = {"beta_start": 0.01, "beta_end": 0.02, "beta_schedule": "linear"}
    return save_pipeline(tmp_path_factory.mktemp("v_base"), prediction_type="v_prediction", **noisy)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit is promised on the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@pytest.fixture
def settings(base: Path, pairs: Path, shared_cache: Path, tmp_path: Path) -> Settings:
    """The settings of a short run into tmp_path/run, with any key replaced."""

    def make(**changes: Any) -> TrainConfig:
        values = {
            "pretrained_model_name_or_path": str(base),
            "dataset_name": str(pairs),
            "resolution": SIZE,
            "cache_dir": str(shared_cache),
            "cache_dtype": "float32",
            "output_dir": str(tmp_path / "run"),
            "learning_rate": 1e-3,
            "train_batch_size": 2,
            "max_train_steps": 4,
            "logging_steps": 1,
            "proportion_empty_prompts": 0.0,
            "num_inference_steps": 3,
            # Drift has tests of its own; elsewhere it would only cost time.
            "drift_samples": 0,
        }
        lora = {"rank": 4} if changes.get("adapter", "lora") == "lora" else {}
        return from_mapping(values | lora | changes, "test")

    return make


@pytest.fixture
def run(settings: Settings) -> Callable[..., Path]:
    """Train in silence; returns the output directory."""

    def go(**changes: Any) -> Path:
        # As a new process would: nothing is kept from the run before.
        AcceleratorState._reset_state(reset_partial_state=True)
        randomness.epoch_order.cache_clear()
        return train(settings(**changes), say=lambda line: None)

    return go
