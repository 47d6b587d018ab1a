"""A small CLIP of random weights and pairs whose brighter image is preferred; a run is a fraction of a second."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from diffpref.rewards.training.loop import train
from diffpref.rewards.training.settings import READER
from tests.rewards.training.reward_run import SIZE, png

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit is promised on the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "assets" / "tiny-sdxl" / "tokenizer")
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **shape, **ends)
    vision = CLIPVisionConfig(image_size=SIZE, patch_size=8, **shape)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pick-a-Pic's columns: 12 pairs of 8 prompts, the brighter image preferred; two are ties."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    rows = []
    for i in range(12):
        high, low = png(170 + i), png(60 + 2 * i, (24, 17) if i == 3 else (SIZE, SIZE))
        swap, tie = i % 2, i in (4, 9)
        label = 0.5 if tie else float(1 - swap)
        pair = [low, high] if swap else [high, low]
        prompt = f"thing {max(0, i - 4)}"
        rows.append({"caption": prompt, "jpg_0": pair[0], "jpg_1": pair[1], "label_0": label, "label_1": 1 - label})
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.fixture
def run(small_clip: Path, pairs: Path, tmp_path: Path) -> Callable[..., Path]:
    """A short run in silence; returns the output directory."""

    def go(name: str = "run", **changes: object) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        values: dict[str, object] = {
            "pretrained_model_name_or_path": str(small_clip),
            "dataset_name": str(pairs),
            "output_dir": str(tmp_path / name),
            "learning_rate": 3e-3,
            "train_batch_size": 4,
            "max_train_steps": 4,
            "logging_steps": 1,
        }
        return train(READER.from_mapping(values | changes, "test"), say=lambda line: None)

    return go
