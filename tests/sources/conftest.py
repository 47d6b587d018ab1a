"""The settings of short rounds on small models, and a reward and a measure of the user's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate.state import AcceleratorState

from diffpref.backbones import Family
from diffpref.run import randomness
from diffpref.training.config import TrainConfig
from diffpref.training.loop import basis_of, train
from diffpref.training.settings import from_mapping
from tests import small_edm, small_sd3, small_sdxl

Go = Callable[..., Path]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "sdxl": small_sdxl.save_pipeline(tmp_path_factory.mktemp("sdxl")),
        "sd3": small_sd3.save_pipeline(tmp_path_factory.mktemp("sd3")),
        "edm": small_edm.save_pipeline(tmp_path_factory.mktemp("edm")),
    }


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


def start(config: TrainConfig, said: list[str] | None = None) -> Path:
    """As a new process would: nothing is kept from the run before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    randomness.epoch_order.cache_clear()
    return train(config, say=lambda line: said.append(line) if said is not None else None)


def opened(config: TrainConfig) -> Family:
    """The backbone of a run's settings."""
    return basis_of(config, lambda line: None).family


@pytest.fixture
def reward(tmp_path: Path) -> str:
    """A reward of the user's: how bright the picture is; it tells any two random pictures apart."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\n"
        "def bright(pictures, prompts):\n    return [float(np.asarray(p, dtype=float).mean()) for p in pictures]\n\n\n"
        "def same(pictures, prompts):\n    return [1.0] * len(pictures)\n\n\n"
        "def fresh(pictures, prompts):\n    return bright(pictures, prompts)[0]\n"
    )
    return f"{tmp_path / 'mine.py'}"


@pytest.fixture
def d3po(bases: dict[str, Path], reward: str, tmp_path: Path) -> Callable[..., TrainConfig]:
    (tmp_path / "prompts.txt").write_text("\n".join(small_sdxl.PROMPTS))

    def make(base: str = "sdxl", **changes: Any) -> TrainConfig:
        values = {
            "objective": "d3po",
            "probe": "transition",
            "labels": f"{reward}:bright",
            "rounds": 2,
            "prompts_per_round": 4,
            "chains_per_prompt": 2,
            "chain_steps": 3,
            "pretrained_model_name_or_path": str(bases[base]),
            "dataset_name": str(tmp_path / "prompts.txt"),
            "resolution": small_sdxl.SIZE,
            "cache_dtype": "float32",
            "output_dir": str(tmp_path / "run"),
            "learning_rate": 1e-3,
            "train_batch_size": 2,
            "max_train_steps": 2,
            "logging_steps": 1,
            "proportion_empty_prompts": 0.0,
            "drift_samples": 0,
        }
        lora = {"rank": 4} if changes.get("adapter", "lora") == "lora" else {}
        return from_mapping(values | lora | changes, "test")

    return make


@pytest.fixture
def ddo(bases: dict[str, Path], reward: str, tmp_path: Path) -> Callable[..., TrainConfig]:
    import numpy as np
    from PIL import Image

    draws, rows = np.random.default_rng(0), []
    for place in range(6):
        file = tmp_path / f"real-{place}.png"
        Image.fromarray(draws.integers(0, 256, (small_edm.SIZE, small_edm.SIZE), np.uint8)).save(file)
        rows.append({"image": {"bytes": file.read_bytes(), "path": None}, "label": place % 3})
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "real.parquet")

    def make(**changes: Any) -> TrainConfig:
        values = {
            "objective": "ddo",
            "rounds": 2,
            "measure": f"{reward}:fresh",
            "measure_samples": 3,
            "pretrained_model_name_or_path": str(bases["edm"]),
            "dataset_name": str(tmp_path / "real.parquet"),
            "resolution": small_edm.SIZE,
            "output_dir": str(tmp_path / "run"),
            "adapter": "full",
            "learning_rate": 1e-3,
            "train_batch_size": 2,
            "max_train_steps": 4,
            "validation_steps": 2,
            "checkpointing_steps": 1,
            "logging_steps": 1,
            "num_inference_steps": 2,
            "proportion_empty_prompts": 0.0,
            "drift_samples": 0,
        }
        return from_mapping(values | changes, "test")

    return make
