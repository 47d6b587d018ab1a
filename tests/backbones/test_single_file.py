"""A base model in one file: what is refused before anything is read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffpref.backbones.single_file import pipeline_folder


def test_other_sources_stay_as_they_are(tmp_path: Path) -> None:
    for source in ("stabilityai/stable-diffusion-xl-base-1.0", str(tmp_path), ""):
        assert pipeline_folder(source) == source


def test_what_is_no_base_model_is_refused(tmp_path: Path) -> None:
    lora, pickled = tmp_path / "lora.safetensors", tmp_path / "model.ckpt"
    save_file({"lora_unet_down.lora_up.weight": torch.ones(2, 2)}, lora)
    pickled.write_bytes(b"\x80\x04.")
    for source, rule in (
        (str(tmp_path / "none.safetensors"), "there is no none.safetensors in"),
        (str(lora), "is no base model.*base_adapters"),
        (str(pickled), "is a pickle"),
    ):
        with pytest.raises(ValueError, match=rule):
            pipeline_folder(source)
    with pytest.raises(ValueError, match="single_file_config is for a base model in one file"):
        pipeline_folder(str(tmp_path), "some/pipeline")
