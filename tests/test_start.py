"""What a command imports before it does anything: counted in a process of its own, not timed."""

import json
import subprocess
import sys
from pathlib import Path

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
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "diffpref.backbones.sd3",
    "diffpref.backbones.edm",
    "open_clip",
)
"""Of averages, and of drawing and encoding: where nothing is drawn and all is encoded, no step needs them."""


def answer(*command: str) -> list[str]:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_settings_are_read_without_the_libraries_of_networks() -> None:
    loaded = set(answer("-c", HELP))
    assert "tyro" in loaded and not loaded & HEAVY


def test_a_first_step_imports_what_it_uses(tmp_path: Path) -> None:
    """The second run finds everything encoded."""
    data = {
        "pretrained_model_name_or_path": str(save_pipeline(tmp_path / "base")),
        "dataset_name": str(save_pairs(tmp_path / "pairs")),
        "resolution": SIZE,
        "cache_dir": str(tmp_path / "cache"),
        "max_train_steps": 1,
    }
    found = []
    for name in ("first", "second"):
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump({**data, "output_dir": str(tmp_path / name)}))
        asked = ",".join(("diffpref.backbones.sdxl", *UNUSED))
        found.append(answer("-m", "tests.programs.first_step", asked, "--config", str(config)))
    assert found[1] == ["diffpref.backbones.sdxl"]
    assert "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl" in found[0], "the list has true names"
