"""ImageReward on a small model in the published layout: scores, pictures, tokens, units, and files that are refused."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from diffpref.rewards import Scorer, find_reward
from diffpref.rewards.blip import BlipReward
from diffpref.rewards.blip_model import IGNORED
from diffpref.rewards.imagereward import RECIPE, ImageRewardSettings
from tests.rewards.small_blip import PROMPTS, WORDS, head_output, pictures, weights, write_tokenizer

CPU = torch.device("cpu")
WEIGHTS = weights((0, 2, 4, 6, 7))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(WEIGHTS, folder / "ImageReward.pt")
    write_tokenizer(folder / "bert")
    return folder


def settings(files: Path, name: str = "ImageReward.pt", **more) -> ImageRewardSettings:
    return ImageRewardSettings(checkpoint=str(files / name), tokenizer=str(files / "bert"), **more)


@pytest.fixture(scope="module")
def reward(files: Path) -> BlipReward:
    return settings(files, batch_size=2).load(CPU)


def published_pixels(image: Image.Image, size: int = 224) -> torch.Tensor:
    """The transform as torchvision has it."""
    transforms = pytest.importorskip("torchvision.transforms")
    composed = transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            lambda picture: picture.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    return composed(image)


def published_tokens(files: Path, prompt: str, length: int):
    from transformers import BertTokenizer

    tokenizer = BertTokenizer.from_pretrained(str(files / "bert"))
    return tokenizer([prompt], padding="max_length", truncation=True, max_length=length, return_tensors="pt")


def test_scores_are_the_published_codes(reward: BlipReward) -> None:
    """zai-org/ImageReward at c1392c6, its transformers imports mended, on these weights, pictures and prompts.

    Scores of about 1 in float32, two towers deep: 1e-5."""
    assert isinstance(reward, Scorer)
    published = [
        -1.2147090435028076,
        -1.4163329601287842,
        -1.4863498210906982,
        -1.2707401514053345,
        -1.6186981201171875,
    ]
    torch.testing.assert_close(reward.score(pictures(5), PROMPTS), torch.tensor(published), atol=1e-5, rtol=0)


def test_scores_by_another_way(reward: BlipReward, files: Path) -> None:
    """float64, one pair at a time, no padding; (head - mean) / std with the published constants."""
    images = [*pictures(3), pictures(1)[0].convert("L")]
    prompts = [PROMPTS[1], PROMPTS[2], PROMPTS[0], PROMPTS[1]]
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        found = published_tokens(files, prompt, 35)
        ids = found["input_ids"][0, : int(found["attention_mask"].sum())].tolist()
        output = head_output(WEIGHTS, published_pixels(image), ids, gelu=False)
        expected.append((output - 0.16717362830052426) / 1.0333394966054072)
    scores = reward.score(images, prompts)
    assert scores.dtype == torch.float32 and scores.device == CPU
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=0)
    # The sigmoid of a difference of heads was trained, so that a logit is free of the mean and larger than a - b.
    logit = (expected[0] - expected[1]) * 1.0333394966054072
    torch.testing.assert_close(reward.pair_logit(scores[:1], scores[1:2]), torch.tensor([logit]), atol=2e-5, rtol=0)


def kinds() -> dict[str, Image.Image]:
    noise = np.random.RandomState(7).randint(0, 256, (333, 500, 4)).astype(np.uint8)
    photo = Image.fromarray(noise[..., :3])
    return {
        "landscape": photo,
        "portrait": photo.transpose(Image.Transpose.ROTATE_90),
        "square": photo.crop((0, 0, 300, 300)),
        "as it is": photo.crop((0, 0, 224, 224)),
        "odd surplus": photo.crop((0, 0, 261, 224)),
        "small": photo.crop((0, 0, 31, 20)),
        "very long": photo.crop((0, 0, 500, 12)),
        "grey": photo.convert("L"),
        "grey, alpha": photo.convert("LA"),
        "alpha": Image.fromarray(noise),
        "palette": photo.convert("P"),
        "1 bit": photo.convert("1"),
    }


@pytest.mark.parametrize("kind", kinds())
def test_pictures_are_torchvisions(reward: BlipReward, kind: str) -> None:
    image = kinds()[kind]
    torch.testing.assert_close(reward.pixels([image])[0], published_pixels(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_berts(reward: BlipReward, files: Path, prompt: str) -> None:
    ids, mask = reward.tokens([prompt])
    assert ids.shape == mask.shape == (1, 35)
    if "[ENC]" not in prompt:
        expected = published_tokens(files, prompt, 35)
        assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"])
    else:  # [CLS], BLIP's own token, which is the last that the model knows, [UNK] 1 ##0 and [SEP]
        assert ids[0, : int(mask.sum())].tolist() == [2, len(WORDS) + 1, 1, WORDS.index("1"), WORDS.index("##0"), 3]


def test_batches_and_order_change_nothing(reward: BlipReward, files: Path) -> None:
    images, prompts = pictures(5), [PROMPTS[i] for i in (0, 1, 0, 2, 1)]
    scores = reward.score(images, prompts)
    alone = torch.cat([reward.score([image], [prompt]) for image, prompt in zip(images, prompts, strict=True)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(reward.score(images[::-1], prompts[::-1]), scores.flip(0), atol=1e-5, rtol=0)
    assert scores.unique().numel() == 5
    assert reward.score([], []).shape == (0,)
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        reward.score(images[:2], prompts[:1])


def test_towers_in_bfloat16_and_a_head_in_float32(reward: BlipReward, files: Path) -> None:
    """bfloat16 keeps 8 bits: scores of about 1 move by a few hundredths, but not to bfloat16's own values."""
    low = settings(files, dtype="bfloat16").load(CPU)
    assert {parameter.dtype for parameter in low.model.head.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in low.model.vision.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in low.model.text.parameters()} == {torch.bfloat16}
    scores, exact = low.score(pictures(3), PROMPTS[:3]), reward.score(pictures(3), PROMPTS[:3])
    torch.testing.assert_close(scores, exact, atol=0.1, rtol=0)
    assert not torch.equal(scores, scores.bfloat16().float()) and not torch.equal(scores, exact)


def test_by_name_and_what_the_scores_depend_on(reward: BlipReward, files: Path) -> None:
    named = {"checkpoint": str(files / "ImageReward.pt"), "tokenizer": str(files / "bert"), "batch_size": 2}
    found = find_reward("imagereward", settings=named)
    assert torch.equal(found(pictures(2), PROMPTS[:2]), reward.score(pictures(2), PROMPTS[:2]))
    told = found.provenance
    assert told["sha256"] == hashlib.sha256((files / "ImageReward.pt").read_bytes()).hexdigest()
    assert told["checkpoint"] == named["checkpoint"] and "35 tokens" in told["tokenizer"]
    assert told["dtype"] == "float32" and "shorter side 224" in told["preprocessing"] and "transformers" in told


def test_safetensors_without_what_no_score_reads(reward: BlipReward, files: Path) -> None:
    save_file({name: t for name, t in WEIGHTS.items() if name not in IGNORED}, files / "small.safetensors")
    again = settings(files, "small.safetensors").load(CPU)
    scores = reward.score(pictures(2), PROMPTS[:2])
    # Memory that is aligned otherwise may add up in another order, hence float32's 1e-6.
    torch.testing.assert_close(again.score(pictures(2), PROMPTS[:2]), scores, atol=1e-6, rtol=1e-6)


def test_the_published_file_comes_from_the_hubs_cache(files: Path, tmp_path: Path, monkeypatch) -> None:
    """The cache as the hub's own client lays it out; without the network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    default = ImageRewardSettings(tokenizer=str(files / "bert"))
    with pytest.raises(ValueError, match="ImageReward.pt of THUDM/ImageReward is neither cached nor reachable"):
        default.load(CPU)
    cache = tmp_path / "models--THUDM--ImageReward"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (cache / "snapshots" / ("0" * 40) / "ImageReward.pt").symlink_to(files / "ImageReward.pt")
    assert default.load(CPU).provenance["checkpoint"] == "THUDM/ImageReward"
    with pytest.raises(ValueError, match="tokenizer 'bert-base-uncased' .*download bert-base-uncased"):
        ImageRewardSettings().load(CPU)


LAYER = "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({LAYER: None}, f"bad.pt holds other weights: missing '{LAYER}'. Name the published weights of imagereward"),
        ({"blip.visual_encoder.pos_embed": None}, "missing 'blip.visual_encoder.pos_embed'"),
        ({"mlp.layers.7.weight": None}, "missing 'mlp.layers.7.weight'"),
        ({"blip.itm_head.weight": torch.zeros(2)}, "unexpected 'blip.itm_head.weight'"),
        ({"mlp.layers.8.weight": torch.zeros(1, 1)}, "unexpected 'mlp.layers.8.weight'"),
        ({LAYER: torch.zeros(192, 192)}, rf"'{LAYER}' has shape \(192, 192\), must have \(192, 128\)"),
    ],
)
def test_other_weights_are_refused(files: Path, change: dict, message: str) -> None:
    changed = {name: tensor for name, tensor in {**WEIGHTS, **change}.items() if tensor is not None}
    torch.save(changed, files / "bad.pt")
    with pytest.raises(ValueError, match=message):
        settings(files, "bad.pt").load(CPU)


def test_files_that_are_none_are_refused(files: Path) -> None:
    with pytest.raises(ValueError, match="absent.pt.*no such file; name ImageReward.pt, or THUDM/ImageReward"):
        settings(files, "absent.pt").load(CPU)
    (files / "pickle.pt").write_bytes(pickle.dumps(nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="pickle.pt is no file of tensors alone"):
        settings(files, "pickle.pt").load(CPU)
    with pytest.raises(ValueError, match="batch_size must be 1 or above, got 0"):
        settings(files, batch_size=0)


def test_another_models_tokenizer_is_refused(files: Path, tmp_path: Path) -> None:
    words = (files / "bert" / "vocab.txt").read_text() + "more\n"
    (tmp_path / "vocab.txt").write_text(words)
    with pytest.raises(ValueError, match="has 34 tokens, .* the model knows 33; "):
        ImageRewardSettings(checkpoint=str(files / "ImageReward.pt"), tokenizer=str(tmp_path)).load(CPU)


def test_the_recipe() -> None:
    """zai-org/ImageReward:ImageReward/ImageReward.py at c1392c6."""
    assert (RECIPE.mean, RECIPE.std, RECIPE.max_length) == (0.16717362830052426, 1.0333394966054072, 35)
