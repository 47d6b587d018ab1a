"""The output of an EDM run is a pipeline's folder: stock diffusers loads it, and a run may start from it."""

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from diffpref.pipelines import EDMPipeline, load, preference_guidance
from diffpref.pipelines import edm as home
from diffpref.training.loop import train
from diffpref.training.settings import from_mapping
from tests import small_edm, small_sdxl


def pictures(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    return pipe(class_labels=[0, 1], num_inference_steps=3, generator=seed, output_type="pt").images


@pytest.mark.slow
def test_a_runs_folder_is_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    base, pairs = small_edm.save_pipeline(tmp_path / "base"), small_sdxl.save_pairs(tmp_path / "pairs", count=4)
    rows = pairs.read_text()
    for prompt in small_sdxl.PROMPTS:
        rows = rows.replace(f'"{prompt}"', f'"{small_edm.CLASSES[0]}"')
    pairs.write_text(rows)
    values = {"pretrained_model_name_or_path": str(base), "dataset_name": str(pairs), "adapter": "full"}
    short = {"resolution": small_edm.SIZE, "max_train_steps": 2, "learning_rate": 1e-2}
    run = train(from_mapping({**values, **short, "output_dir": str(tmp_path / "run")}, "test"), say=lambda line: None)
    tuned = pictures(EDMPipeline.from_pretrained(run))
    before = pictures(EDMPipeline.from_pretrained(base))
    assert torch.equal(pictures(DiffusionPipeline.from_pretrained(run, trust_remote_code=True)), tuned)
    # Stock diffusers' class is another than ours, and does as well.
    pipe = load(DiffusionPipeline.from_pretrained(base, trust_remote_code=True), run)
    assert not isinstance(pipe, EDMPipeline) and torch.equal(pictures(pipe), tuned)
    with preference_guidance(pipe, 0):
        assert torch.equal(pictures(pipe), before)
    again = {**values, **short, "pretrained_model_name_or_path": str(run), "output_dir": str(tmp_path / "again")}
    assert (train(from_mapping(again, "test"), say=lambda line: None) / "pipeline.py").is_file()


def test_what_goes_along_needs_diffusers_alone() -> None:
    tree = ast.parse(Path(home.__file__).read_text(encoding="utf-8"))
    named = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    named += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    assert {name.split(".")[0] for name in named} - set(sys.stdlib_module_names) == {"torch", "diffusers", "PIL"}
