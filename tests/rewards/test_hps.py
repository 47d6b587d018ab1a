"""HPSv2 on a tiny open_clip model: its numbers against the towers run one by one in float64."""

from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as V
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from diffpref.rewards import find_reward
from diffpref.rewards.hps import FILES, HPS, HPSSettings
from tests.rewards.small_clip import LOG_100, PROMPTS, SIZE, add_small_architecture, pictures, small_open_clip

NAME = "diffpref-tiny-hps"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the published ones are: ["state_dict"] beside the training's own numbers."""
    folder = tmp_path_factory.mktemp("hps")
    add_small_architecture(folder, NAME)
    torch.save({"epoch": 3, "name": "tiny", "state_dict": small_open_clip(NAME).state_dict()}, folder / "hps.pt")
    return folder / "hps.pt"


def load(file: Path, **settings) -> HPS:
    return HPSSettings(**{"checkpoint": str(file), "architecture": NAME, **settings}).load(torch.device("cpu"))


def see(image: Image.Image, *, antialias: bool) -> Tensor:
    """HPSv2's letterbox with torchvision's functions."""
    x = V.to_tensor(image.convert("RGB")).double()
    longest = max(x.shape[1:])
    new = [round(side * (SIZE / longest)) for side in x.shape[1:]]
    x = V.resize(x.float(), new, V.InterpolationMode.BICUBIC, antialias=antialias)
    left, top = (SIZE - new[1]) // 2, (SIZE - new[0]) // 2
    return V.normalize(V.pad(x, [left, top, SIZE - new[1] - left, SIZE - new[0] - top]), MEAN, STD)[None]


@torch.no_grad()
def published(*, antialias: bool) -> Tensor:
    from open_clip import get_tokenizer

    model, tokenizer = small_open_clip(NAME).double(), get_tokenizer("ViT-H-14")
    found = []
    for image, prompt in zip(pictures(), PROMPTS, strict=True):
        outputs = model(see(image, antialias=antialias).double(), tokenizer([prompt]))
        found.append((outputs[0] * outputs[1]).sum())
    return torch.stack(found)


@pytest.mark.parametrize("antialias", [False, True])
def test_scores_are_the_models_own_cosines(file: Path, antialias: bool) -> None:
    """Float32 against float64; the two resizes must differ by more than that for this to say anything."""
    expected = published(antialias=antialias)
    assert expected.std() > 0.05 and (expected - published(antialias=not antialias)).abs().max() > 1e-3
    reward = load(file, antialias=antialias, batch_size=4)
    scores = reward.score(pictures(), PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, atol=2e-6, rtol=0)
    logit = reward.pair_logit(scores[:3], scores[3:])
    torch.testing.assert_close(logit.double(), 100.00296 * (expected[:3] - expected[3:]), atol=4e-4, rtol=0)
    assert ("not antialiased" in reward.provenance["preprocessing"]) == (not antialias)


def test_both_versions_by_name(file: Path) -> None:
    """Each name its file in the repository; one of one's own is read the same under either."""
    settings = {"checkpoint": str(file), "architecture": NAME}
    two, one = (find_reward(name, settings=settings) for name in ("hpsv2", "hpsv2.1"))
    assert (two.provenance["scorer"], one.provenance["scorer"]) == ("hpsv2.0", "hpsv2.1")
    assert torch.equal(two(pictures(), PROMPTS), one(pictures(), PROMPTS))
    assert FILES == {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


@pytest.mark.parametrize(
    ("name", "expected"), [("hpsv2", "HPS_v2_compressed.pt"), ("hpsv2.1", "HPS_v2.1_compressed.pt")]
)
def test_the_default_is_the_hubs_file_of_the_version(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    """Only the download is replaced, by one that answers as the hub's cache does."""
    asked = []

    def download(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(find_reward(name, settings={"architecture": NAME})(pictures(), PROMPTS)) == 6
    assert asked == [("xswu/HPSv2", expected)]


def test_the_architecture_is_the_published_one() -> None:
    """ViT-H/14 without QuickGELU at 224 pixels, from open_clip's own table; too large to be built here."""
    from open_clip import get_model_config

    config = get_model_config(HPSSettings().architecture)
    assert config["embed_dim"] == 1024 and not config.get("quick_gelu")
    vision = config["vision_cfg"]
    assert (vision["image_size"], vision["layers"], vision["width"], vision["patch_size"]) == (224, 32, 1280, 14)


def test_batched_in_any_order_and_empty(file: Path) -> None:
    reward, images = load(file, batch_size=4), pictures()
    scores = reward.score(images, PROMPTS)
    one_by_one = torch.cat([reward.score([i], [p]) for i, p in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(scores, one_by_one, atol=2e-6, rtol=0)
    torch.testing.assert_close(reward.score(images[::-1], PROMPTS[::-1]).flip(0), scores, atol=2e-6, rtol=0)
    assert reward.score([], []).shape == (0,)


def test_each_prompt_is_encoded_once(file: Path) -> None:
    reward, seen = load(file, batch_size=2), []
    reward.clip.model.token_embedding.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    reward.score(pictures(), ["a", "b", "a", "c", "b", "a"])
    assert seen == [2, 1]


def test_only_the_towers_are_in_half_precision(file: Path) -> None:
    reward = load(file, dtype="bfloat16")
    scores = reward.score(pictures(), PROMPTS)
    a, b = reward.clip.encode_images(pictures()), reward.clip.encode_texts(PROMPTS)
    assert a.dtype == b.dtype == torch.bfloat16 and scores.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1)
    # Batches of six and of five distinct texts may differ by a step of bfloat16 in an embedding's number.
    torch.testing.assert_close(scores.double(), cosine, atol=2e-3, rtol=0)
    assert not torch.equal(scores, scores.bfloat16().float())
    assert reward.clip.logit_scale == pytest.approx(torch.tensor(LOG_100).exp().item(), rel=1e-7)


def test_a_plain_safetensors_file_will_do(file: Path, tmp_path: Path) -> None:
    save_file(small_open_clip(NAME).state_dict(), tmp_path / "hps.safetensors")
    assert torch.equal(
        load(tmp_path / "hps.safetensors").score(pictures(), PROMPTS), load(file).score(pictures(), PROMPTS)
    )


def test_what_does_not_fit_is_named(file: Path, tmp_path: Path) -> None:
    tensors = small_open_clip(NAME).state_dict()
    for change, message in [
        ({"visual.proj": None}, "missing 'visual.proj'"),
        ({"extra": torch.ones(1)}, "unexpected 'extra'"),
        ({"visual.proj": torch.ones(2, 2)}, r"'visual.proj' has shape \(2, 2\), must have \(32, 16\)"),
    ]:
        other = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        torch.save({"state_dict": other}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=rf"other.pt holds other weights: {message}.*{NAME}"):
            load(tmp_path / "other.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    with pytest.raises(ValueError, match="module.pt is no file of tensors alone.*is refused.*save_file"):
        load(tmp_path / "module.pt")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.pt")
    with pytest.raises(ValueError, match="numbers.pt must hold named tensors"):
        load(tmp_path / "numbers.pt")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="torn.safetensors is no safetensors file"):
        load(tmp_path / "torn.safetensors")
    with pytest.raises(ValueError, match="there is no such file; name HPS_v2_compressed.pt, or 'xswu/HPSv2'"):
        load(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="architecture must be one of open_clip.* got 'ViT-H-41'. Perhaps you meant"):
        load(file, architecture="ViT-H-41")
    for other in ("coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"):
        with pytest.raises(ValueError, match=f"{other}' has another text tower"):
            load(file, architecture=other)
