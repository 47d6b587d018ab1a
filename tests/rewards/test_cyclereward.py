"""CycleReward on a small model in the published layout: its head, its length, its unit; the rest is ImageReward's."""

from pathlib import Path

import pytest
import torch

from diffpref.rewards import find_reward
from diffpref.rewards.blip import BlipReward
from diffpref.rewards.cyclereward import CycleRewardSettings
from tests.rewards.small_blip import PROMPTS, head_output, pictures, weights, write_tokenizer

CPU = torch.device("cpu")
WEIGHTS = weights((0, 2, 4, 6, 8))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cyclereward")
    torch.save(WEIGHTS, folder / "CycleReward-Combo.pth")
    write_tokenizer(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def reward(files: Path) -> BlipReward:
    return CycleRewardSettings(str(files / "CycleReward-Combo.pth"), tokenizer=str(files / "bert")).load(CPU)


def test_scores_are_the_published_codes(reward: BlipReward) -> None:
    """hjbahng/cyclereward at 36e1077, its transformers imports mended, on these weights, pictures and prompts."""
    published = [
        *[-0.22188034653663635, -0.2544787526130676, -0.240785613656044],
        *[-0.2006089985370636, -0.2281975895166397],
    ]
    torch.testing.assert_close(reward.score(pictures(5), PROMPTS), torch.tensor(published), atol=3e-6, rtol=0)


def test_scores_by_another_way(reward: BlipReward) -> None:
    """float64, without padding; the prompt of 241 words and marks is cut to 128 tokens, and the head has GELU."""
    images, prompts = pictures(3), PROMPTS[:3]
    ids, mask = reward.tokens(prompts)
    assert ids.shape == (3, 128) and mask.sum(1).tolist()[2] == 128
    expected = [
        head_output(WEIGHTS, pixels, row[: int(seen.sum())].tolist(), gelu=True)
        for pixels, row, seen in zip(reward.pixels(images), ids, mask, strict=True)
    ]
    scores = reward.score(images, prompts)
    torch.testing.assert_close(scores, torch.tensor(expected), atol=3e-6, rtol=0)
    torch.testing.assert_close(reward.pair_logit(scores[:1], scores[1:2]), scores[:1] - scores[1:2])


def test_tokens_are_berts(reward: BlipReward, files: Path) -> None:
    from transformers import BertTokenizer

    direct = BertTokenizer.from_pretrained(str(files / "bert"))
    expected = direct(PROMPTS[:4], padding="max_length", truncation=True, max_length=128, return_tensors="pt")
    ids, mask = reward.tokens(PROMPTS[:4])
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"])


def test_by_name(reward: BlipReward, files: Path) -> None:
    named = {"checkpoint": str(files / "CycleReward-Combo.pth"), "tokenizer": str(files / "bert"), "batch_size": 1}
    found = find_reward("cyclereward", settings=named)
    scores = reward.score(pictures(2), PROMPTS[:2])
    torch.testing.assert_close(found(pictures(2), PROMPTS[:2]), scores, atol=1e-6, rtol=0)
    assert found.provenance["scorer"] == "cyclereward" and "128 tokens" in found.provenance["tokenizer"]


def test_neither_models_file_passes_for_the_others(files: Path) -> None:
    tokenizer = str(files / "bert")
    torch.save(weights((0, 2, 4, 6, 7)), files / "ImageReward.pt")
    with pytest.raises(ValueError, match="missing 'mlp.layers.8.weight'. Name the published weights of cyclereward"):
        CycleRewardSettings(str(files / "ImageReward.pt"), tokenizer=tokenizer).load(CPU)
    named = {"checkpoint": str(files / "CycleReward-Combo.pth"), "tokenizer": tokenizer}
    with pytest.raises(ValueError, match="missing 'mlp.layers.7.weight'"):
        find_reward("imagereward", settings=named)


@pytest.mark.parametrize("file", ["CycleReward-T2I.pth", "model.safetensors"])
def test_a_published_variant_comes_from_the_hubs_cache(files: Path, tmp_path: Path, monkeypatch, file: str) -> None:
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    settings = CycleRewardSettings(variant="T2I", tokenizer=str(files / "bert"))
    with pytest.raises(
        ValueError, match="CycleReward-T2I could not be had .*download CycleReward-T2I.pth from release"
    ):
        settings.load(CPU)
    snapshot = tmp_path / "models--carolineec--CycleReward-T2I" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (save_file if file.endswith("safetensors") else torch.save)(WEIGHTS, snapshot / file)
    assert settings.load(CPU).provenance["checkpoint"] == "CycleReward-T2I"
    with pytest.raises(ValueError, match="variant must be one of Combo, I2T, T2I, got 'T2T'"):
        find_reward("cyclereward", settings={"variant": "T2T"})
