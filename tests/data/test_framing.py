"""What the network is told of sizes and crops, and the posterior that latents are drawn from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffpref.backbones import Checkpoint, PosteriorEncoder, Sized
from diffpref.backbones.latents import unscale_latents
from diffpref.backbones.sd15 import SD15
from diffpref.backbones.sdxl import SDXL
from diffpref.data.encode import encode_preferences
from diffpref.data.framing import Framing, to_square
from diffpref.data.preferences import read_preferences
from diffpref.files.store import TensorStore
from tests.small_sdxl import save_pairs, save_pipeline
from tests.training.test_cache import Counter


def places(width: int, height: int) -> Image.Image:
    """A picture whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("size", [(80, 32), (32, 90), (32, 32)])
@pytest.mark.parametrize("offset", [(0.5, 0.5), (0.13, 0.8)])
def test_the_crop_that_is_told_is_where_the_picture_was_cut(
    size: tuple[int, int], offset: tuple[float, float], tmp_path: Path
) -> None:
    picture = places(*size)
    picture.save(tmp_path / "places.png")
    told = Framing(32).told(tmp_path / "places.png", offset)
    square = ((to_square(picture, 32, offset) + 1) * 127.5).round()
    assert (told.width, told.height) == size
    assert (told.left, told.top) == (int(square[0, 0, 0]), int(square[1, 0, 0]))
    # As in diffusers' script, which mirrors first: what is cut from the mirrored picture is the mirrored square.
    flipped = torch.from_numpy(np.array(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))).permute(2, 0, 1).float()
    cut = flipped[:, told.top : told.top + 32, told.mirrored_left : told.mirrored_left + 32]
    assert torch.equal(cut, square.flip(-1))


def test_sizes_are_those_before_resizing_and_crops_those_after(tmp_path: Path) -> None:
    places(240, 120).save(tmp_path / "wide.png")
    # To 64 x 32, of which the middle 32 columns stay: 16 on each side.
    assert Framing(32).told(tmp_path / "wide.png", (0.5, 0.5)) == (120, 240, 0, 16, 16)
    # At the left edge of the picture, which is the right edge of the mirrored one.
    assert Framing(32).told(tmp_path / "wide.png", (0.0, 0.5)) == (120, 240, 0, 0, 32)


def test_time_ids_have_the_pipelines_order() -> None:
    family, prompts = SDXL(Checkpoint("")), {"prompt_embeds": torch.zeros(2, 3, 4), "pooled": torch.zeros(2, 4)}
    framing = torch.tensor([[600.0, 800.0, 3.0, 40.0], [512.0, 512.0, 0.0, 0.0]])
    cond = family.group_cond({**prompts, "framing": framing}, 512)
    # original size + crop + target size, each height first, as StableDiffusionXLPipeline._get_add_time_ids adds them.
    assert cond["time_ids"].tolist() == [[600, 800, 3, 40, 512, 512], [512, 512, 0, 0, 512, 512]]
    assert set(cond) == {"prompt_embeds", "pooled", "time_ids"}
    assert family.group_cond(prompts, 512)["time_ids"].tolist() == [[512, 512, 0, 0, 512, 512]] * 2
    assert isinstance(family, Sized) and not isinstance(SD15(Checkpoint("")), Sized)


def test_mean_and_deviation_are_the_autoencoders(base: Path) -> None:
    encoder = SDXL(Checkpoint(str(base))).load_encoder(torch.device("cpu"))
    assert isinstance(encoder, PosteriorEncoder)
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = encoder.encode_posteriors(pictures)
    with torch.no_grad():
        posterior = encoder.vae.encode(pictures).latent_dist
    torch.testing.assert_close(mean, posterior.mean * encoder.vae.config.scaling_factor)
    torch.testing.assert_close(std, posterior.std * encoder.vae.config.scaling_factor)
    # The draw that is kept by default is from the same posterior.
    draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
    drawn = encoder.encode_pictures(pictures, draws)
    noise = torch.stack([torch.randn(drawn.shape[1:], generator=torch.Generator().manual_seed(s)) for s in range(3)])
    torch.testing.assert_close(drawn, mean + std * noise)
    torch.testing.assert_close(unscale_latents(mean, encoder.vae.config), posterior.mean)


def test_each_way_has_keys_of_its_own_and_the_default_keeps_its_own(base: Path, tmp_path: Path) -> None:
    rows = read_preferences(save_pairs(tmp_path / "pairs", size=(48, 32)))
    encoder, store = SDXL(Checkpoint(str(base))).load_encoder(torch.device("cpu")), TensorStore(tmp_path / "cache")
    prints, kept = {}, {}
    ways = {w: Framing(32, posterior=w) for w in ("kept", "fresh", "mean")} | {"sizes": Framing(32, sizes=True)}
    for way, framing in ways.items():
        data = encode_preferences(rows, encoder, store, framing, dtype="float32")
        prints[way], kept[way] = data.fingerprint, data
    assert len(set(prints.values())) == 4
    assert kept["sizes"].groups == kept["kept"].groups, "the same tensors"
    assert kept["sizes"].sizes[0] == (32, 48, 0, 8, 8) and not kept["kept"].sizes
    mean = kept["mean"].group(0, mirrored=False)[0]
    assert torch.equal(kept["fresh"].group(0, mirrored=False)[0], mean)
    drawn = [kept["fresh"].group(0, mirrored=False, draw=torch.Generator().manual_seed(s))[0] for s in range(400)]
    std = torch.stack([store.get(key)["std"] for key in kept["fresh"].groups[0].pictures])
    standard = (torch.stack(drawn) - mean) / std
    # 400 draws of each of 512 numbers, which are independent of each other.
    assert abs(float(standard.mean())) < 0.01 and float(standard.std()) == pytest.approx(1, abs=0.01)
    assert abs(float((standard[:, 0] * standard[:, 1]).mean())) < 0.02, "each picture has noise of its own"


def test_pixels_have_no_posterior(tmp_path: Path) -> None:
    rows = read_preferences(save_pairs(tmp_path / "pairs"))
    encoder = Counter()
    for posterior in ("fresh", "mean"):
        with pytest.raises(ValueError, match=f"posterior: {posterior} is for backbones with an autoencoder"):
            encode_preferences(
                rows, encoder, TensorStore(tmp_path / "cache"), Framing(32, posterior=posterior), dtype="float32"
            )
    assert (encoder.pictures, encoder.prompts) == (0, 0), "refused before anything is encoded"
