"""What a command imports before it does anything: counted in a process of its own, not timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.small_sdxl import SIZE, save_pairs, save_pipeline

ROOT = Path(__file__).parent.parent
HELP = """
import contextlib, io, json, sys
from diffpref.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["train", "--help"])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
HEAVY = {"diffusers", "transformers", "peft", "datasets", "pandas", "open_clip", "torchvision", "scipy", "xformers"}
UNUSED = (
    "diffusers.training_utils",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "diffpref.backbones.sd3",
    "diffpref.backbones.edm",
    "open_clip",
)
"""Of averages, of other families and of rewards: a LoRA run on SDXL needs none of them."""


def answer(*command: str) -> list[str]:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_settings_are_read_without_the_libraries_of_networks() -> None:
    loaded = set(answer("-c", HELP))
    assert "tyro" in loaded and not loaded & HEAVY


@pytest.mark.slow
def test_a_first_step_imports_what_it_uses(tmp_path: Path) -> None:
    data = {
        "pretrained_model_name_or_path": str(save_pipeline(tmp_path / "base")),
        "dataset_name": str(save_pairs(tmp_path / "pairs")),
        "resolution": SIZE,
        "cache_dir": str(tmp_path / "cache"),
        "max_train_steps": 1,
        "output_dir": str(tmp_path / "run"),
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(data))
    used = ["diffpref.backbones.sdxl", "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl"]
    asked = ",".join((*used, *UNUSED))
    assert answer("-m", "tests.programs.first_step", asked, "--config", str(config)) == used
