"""The autoencoder is of the class that its own configuration names, and may have one latent for a picture."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL

from diffpref.backbones import Checkpoint
from diffpref.backbones.latents import encode_pictures, load_vae
from tests.small_sdxl import SIZE


@pytest.fixture(scope="module")
def deterministic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SANA's kind of autoencoder, tiny."""
    blocks = {"encoder_block_types": ("ResBlock", "ResBlock"), "decoder_block_types": ("ResBlock", "ResBlock")}
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    scales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    torch.manual_seed(0)
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, scaling_factor=0.5, **blocks, **widths, **layers, **scales
    )
    vae.save_pretrained(folder := tmp_path_factory.mktemp("dc"))
    return folder


def test_the_class_is_the_configurations(base: Checkpoint, deterministic: Path) -> None:
    assert type(load_vae(base)) is AutoencoderKL
    assert type(load_vae(Checkpoint(base.source, vae=str(deterministic)))) is AutoencoderDC


def test_a_deterministic_autoencoder_draws_nothing(base: Checkpoint, deterministic: Path) -> None:
    vae = load_vae(Checkpoint(base.source, vae=str(deterministic)))
    pictures = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    draws = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    before = [draw.get_state() for draw in draws]
    found = encode_pictures(vae, pictures, draws)
    with torch.no_grad():
        torch.testing.assert_close(found, vae.encode(pictures).latent * 0.5)
    assert all(torch.equal(draw.get_state(), state) for draw, state in zip(draws, before, strict=True))


def test_what_is_no_autoencoder_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="its autoencoder is a UNet2DModel, which is none of diffusers"):
        load_vae(Checkpoint(base.source, vae=str(tmp_path)))
