"""LAION's aesthetic score: the published head as one affine map, on a tiny CLIP's embeddings and on its own."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffpref.rewards import find_reward
from diffpref.rewards.aesthetic import Aesthetic, AestheticSettings, read_head
from tests.rewards.small_aesthetic import head, save_head
from tests.rewards.small_clip import PROMPTS, SIZE, add_small_architecture, pictures, small_open_clip

NAME = "diffpref-tiny-aesthetic"
PUBLISHED = Path(os.environ.get("DIFFPREF_TEST_DATA", "no data"), "laion-aesthetic-v2-linear.pth")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("aesthetic")
    add_small_architecture(folder, NAME, quick_gelu=True)
    save_file(small_open_clip(NAME, seed=2).state_dict(), folder / "clip.safetensors")
    return save_head(head(16), folder / "head.pth"), folder / "clip.safetensors"


def load(files: tuple[Path, Path], **settings) -> Aesthetic:
    given = {"checkpoint": str(files[0]), "clip": str(files[1]), "architecture": NAME, **settings}
    return AestheticSettings(**given).load(torch.device("cpu"))


@torch.no_grad()
def published() -> Tensor:
    """The layers one after another on open_clip's own embeddings, one by one in float64."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model, layers = small_open_clip(NAME, seed=2).double(), head(16).double()
    preprocess = image_transform_v2(PreprocessCfg(size=SIZE), is_train=False)
    found = []
    for image in pictures():
        embedding = model.encode_image(preprocess(image)[None].double())
        found.append(layers(embedding / embedding.norm())[0, 0])
    return torch.stack(found)


def test_scores_are_the_layers_own(files: tuple[Path, Path]) -> None:
    expected = published()
    assert expected.std() > 1e-3, "the pictures must differ for this to say anything"
    scores = load(files, batch_size=4).score(pictures(), PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, atol=2e-6, rtol=0)


def test_by_name_empty_half_and_without_a_pair_logit(files: tuple[Path, Path]) -> None:
    settings = {"checkpoint": str(files[0]), "clip": str(files[1]), "architecture": NAME, "dtype": "bfloat16"}
    reward = find_reward("aesthetic", settings=settings)
    scores = reward(pictures(), PROMPTS)
    assert torch.equal(scores, reward(pictures(), [""] * 6)), "it does not look at the prompts"
    assert 0 < (scores - published()).abs().max() < 0.02
    assert len(reward([], [])) == 0
    with pytest.raises(ValueError, match="'aesthetic' has no pair_logit: it was trained on mean ratings"):
        reward.pair_logit(scores, scores)
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert reward.provenance["sha256"] == f"head:{sums[0]} clip:{sums[1]}"
    assert reward.provenance["tokenizer"] == "none" and reward.provenance["dtype"] == "bfloat16"


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"needs {PUBLISHED.name} in the folder DIFFPREF_TEST_DATA")
def test_the_published_head_is_affine() -> None:
    """Its five layers in float32, on directions of all kinds; b and |w| as measured of the file."""
    weight, bias = read_head(PUBLISHED)
    assert bias.item() == pytest.approx(5.2366, abs=5e-5) and weight.norm().item() == pytest.approx(17.996, abs=5e-4)
    tensors = torch.load(PUBLISHED, "cpu", weights_only=True)
    layers = head(768)
    layers.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in tensors.items()})
    x = torch.randn(200, 768, generator=torch.Generator().manual_seed(0))
    x /= x.norm(dim=1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close((x.double() @ weight + bias).float(), layers(x)[:, 0], atol=2e-5, rtol=0)


def test_other_heads_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = torch.load(files[0], weights_only=True)
    for change, message in [
        ({"layers.4.bias": None}, "missing 'layers.4.bias'"),
        ({"layers.0.weight": None, "layers.0.bias": None}, "missing 'layers.0.weight' and 1 more"),
        ({"linear.weight": torch.ones(1, 16)}, "unexpected 'linear.weight'"),
        ({"layers.7.weight": torch.ones(2, 16)}, r"'layers.7.weight' has shape \(2, 16\), must have \(1, 16\)"),
    ]:
        other = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=f"other.pth holds other weights: {message}.*Take sac"):
            load((tmp_path / "other.pth", files[1]))
    wide = save_head(head(24), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=f"wide.pth takes embeddings of 24 numbers, and {NAME} gives 16"):
        load((wide, files[1]))
    with pytest.raises(ValueError, match="checkpoint 'sac.*linearMSE.pth': there is no such file; name .*github.com"):
        AestheticSettings().load(torch.device("cpu"))
