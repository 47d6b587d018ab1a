"""configs/sdxl/dpo.yaml, the real one, on a random small SDXL: only the base, the data and the sizes are replaced."""

from pathlib import Path

import pytest

from diffpref.settings import from_mapping, from_yaml
from diffpref.training.loop import train
from tests.small_sdxl import SIZE, read_metrics, read_weights

CONFIG = Path(__file__).parents[2] / "configs" / "sdxl" / "dpo.yaml"


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_sdxl_config_trains_a_small_sdxl(base: Path, pairs: Path, tmp_path: Path, adapter: str) -> None:
    published = from_yaml(CONFIG)
    small = {
        "pretrained_model_name_or_path": str(base),
        "pretrained_vae_model_name_or_path": None,
        "dataset_name": str(pairs),
        "resolution": SIZE,
        "adapter": adapter,
        "rank": 4,
        "gradient_accumulation_steps": 2,
        "max_train_steps": 3,
        "logging_steps": 1,
        "num_inference_steps": 2,
        "output_dir": str(tmp_path / "run"),
    }
    config = from_mapping(small, "the test", published)
    assert config.objective.beta == 5000 and config.optimization.optimizer == "adafactor"
    assert config.run.mixed_precision == "bf16" and config.run.gradient_checkpointing
    run = train(config, say=lambda line: None)
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    # The warm-up of 200 steps: the rate grows by a 200th a step.
    assert lines[-1]["learning_rate"] == pytest.approx(3 / 200 * config.optimization.learning_rate)
    if adapter == "lora":
        weights = read_weights(run)
        assert weights and all(tensor.isfinite().all() for tensor in weights.values())
        # In bfloat16 too, a switched-off adapter is the very network that the policy starts from.
        assert lines[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    else:
        assert (run / "unet" / "diffusion_pytorch_model.safetensors").is_file()
