"""PickScore on a tiny CLIPModel: its numbers are those of transformers' own forward, one by one in float64."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffpref.rewards import find_reward
from diffpref.rewards.pickscore import PickScore, PickScoreSettings
from tests.rewards.small_clip import LOG_100, PROMPTS, TOKENIZER, pictures, save_rule, save_small_clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_clip(tmp_path_factory.mktemp("pickscore"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def load(folder: Path, **settings) -> PickScore:
    return PickScoreSettings(str(folder), **{"processor": "", **settings}).load(CPU)


@torch.no_grad()
def published(folder: Path, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
    """`logits_per_image` of transformers' own model, tokenizer (padded to the longest of one) and image processor."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(folder, dtype=torch.float64)
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        flat = image.convert("RGB")
        flat.info.clear()
        pixels = processor(flat, return_tensors="pt")["pixel_values"].double()
        text = tokenizer([prompt], padding=True, truncation=True, max_length=24, return_tensors="pt")
        scores.append(model(pixel_values=pixels, **text).logits_per_image.item())
    return torch.tensor(scores)


@pytest.fixture(scope="module")
def expected(folder: Path) -> torch.Tensor:
    return published(folder, pictures(), PROMPTS)


def test_scores_are_transformers_own_in_every_dialect(folder: Path, expected: torch.Tensor) -> None:
    """Float32 against float64: 1e-6 of cosines, 1e-4 of a hundred times them."""
    assert expected.std() > 5, "the pictures must differ for this to say anything"
    scale = torch.tensor(LOG_100).exp().item()
    for dialect, unit in [("scaled", scale), ("cosine", 1.0), ("scaled_26", scale / 26)]:
        reward = load(folder, dialect=dialect, batch_size=4)
        scores = reward.score(pictures(), PROMPTS)
        assert scores.dtype == torch.float32 and reward.provenance["unit"] == dialect
        torch.testing.assert_close(scores / unit, expected / scale, atol=2e-6, rtol=0)
        logit = reward.pair_logit(scores[:3], scores[3:])
        torch.testing.assert_close(logit, expected[:3] - expected[3:], atol=4e-4, rtol=0)


def test_by_name_batched_and_in_any_order(folder: Path, expected: torch.Tensor) -> None:
    reward = find_reward("pickscore", settings={"checkpoint": str(folder), "processor": "", "batch_size": 4})
    images = pictures()
    one_by_one = torch.cat([reward([i], [p]) for i, p in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(one_by_one, expected, atol=4e-4, rtol=0)
    torch.testing.assert_close(reward(images[::-1], PROMPTS[::-1]).flip(0), one_by_one, atol=4e-4, rtol=0)
    assert len(reward([], [])) == 0
    with pytest.raises(ValueError, match="got 1 for 6 images"):
        reward(images, PROMPTS[:1])
    with pytest.raises(ValueError, match="got 1 for 6 images"):
        load(folder).score(images, PROMPTS[:1])


def test_each_prompt_is_encoded_once(folder: Path) -> None:
    reward, seen = load(folder, batch_size=2), []
    reward.model.text_model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    reward.score(pictures(), ["a", "b", "a", "c", "b", "a"])
    assert seen == [2, 1]


def test_tokens_are_the_published_tokenizers(folder: Path) -> None:
    """The fast tokenizer's own file, read without transformers: begin, cut to what fits, end, and ends as padding."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    ids = load(folder).processor.tokens(PROMPTS)
    for row, prompt in zip(ids.tolist(), PROMPTS, strict=True):
        words = plain.encode(prompt, add_special_tokens=False).ids[:22]
        assert row == [1312, *words, 1313] + [1313] * (22 - len(words))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_only_the_towers_are_in_half_precision(folder: Path, expected: torch.Tensor, dtype: str) -> None:
    """The scores are the exact ones of the towers' embeddings, with exp(logit_scale) = 100.003 and not 98.9."""
    reward = load(folder, dtype=dtype)
    images = pictures()
    scores = reward.score(images, PROMPTS)
    assert scores.dtype == torch.float32
    with torch.no_grad():
        a, b = reward.encode_images(images), reward.encode_texts(PROMPTS)
    assert a.dtype == b.dtype == reward.model.visual_projection.weight.dtype == getattr(torch, dtype)
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1)
    # Batches of six and of five distinct texts may differ by a step of the half precision in an embedding's number.
    torch.testing.assert_close(scores.double(), 100.00296 * cosine, atol=0.05, rtol=0)
    torch.testing.assert_close(scores, load(folder, dtype=dtype, dialect="cosine").score(images, PROMPTS) * 100.00296)
    assert (scores - expected).abs().max() < 5
    alike = reward.score([images[0]] * 2, [PROMPTS[0]] * 2)
    assert alike[0] == alike[1]


def test_a_checkpoint_saved_in_half_precision_and_by_an_old_release(folder: Path, copy: Path) -> None:
    """position_ids, which transformers once saved, are no weights; float16 files are computed on in float32."""
    old = load_file(folder / "model.safetensors")
    old = {name: tensor.half() for name, tensor in old.items()}
    old |= {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    (copy / "model.safetensors").unlink()
    torch.save(old, copy / "pytorch_model.bin")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "dtype": "float16"}), encoding="utf-8")
    reward = load(copy)
    assert reward.model.dtype == torch.float32
    assert reward.logit_scale == pytest.approx(float(torch.tensor(LOG_100).half().float().exp()))
    difference = reward.score(pictures(), PROMPTS) - load(folder).score(pictures(), PROMPTS)
    assert difference.abs().max() < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("logit_scale"), "model.safetensors holds other weights.*missing keys like 'logit_scale'"),
        (lambda t: t.update({"head.weight": torch.ones(2)}), "unexpected keys like 'head.weight'"),
        (lambda t: t.update({"visual_projection.weight": torch.ones(3, 24)}), "cannot be loaded as a CLIPModel"),
    ],
)
def test_other_weights_are_refused(copy: Path, change, message: str) -> None:
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load(copy)


def test_the_folders_picture_rule_is_used_or_refused(folder: Path, copy: Path) -> None:
    assert load(folder).processor.rule.mean == (0.5, 0.4, 0.3)
    nested = json.loads((copy / "preprocessor_config.json").read_text(encoding="utf-8"))
    (copy / "preprocessor_config.json").unlink()
    assert "normalised by CLIP's" in load(copy).provenance["preprocessing"]
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": nested}), encoding="utf-8")
    assert load(copy).processor.rule == load(folder).processor.rule
    (copy / "processor_config.json").unlink()
    save_rule(copy, size=40, crop_size=32)
    assert (load(copy).processor.rule.shorter, load(copy).processor.rule.crop) == (40, 32)
    for change in ({"resample": 2}, {"size": {"height": 32, "width": 32}}, {"do_center_crop": False}):
        save_rule(copy, **change)
        with pytest.raises(ValueError, match="must ask for bicubic"):
            load(copy)
    save_rule(copy, size=40, crop_size=40)
    with pytest.raises(ValueError, match="cuts images to 40 x 40 pixels, and the model takes 32 x 32"):
        load(copy)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, copy: Path) -> None:
    """Read at a token that is not there, every text would be its first token, and every prompt score the same."""
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    for eos, vocabulary, message in [(1300, 1314, "ends a text with token 1313"), (1313, 1000, "1000 tokens")]:
        config["text_config"] |= {"eos_token_id": eos, "vocab_size": vocabulary}
        (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
        tensors = load_file(folder / "model.safetensors")
        name = "text_model.embeddings.token_embedding.weight"
        save_file(
            tensors | {name: tensors[name][:vocabulary].clone()}, copy / "model.safetensors", metadata={"format": "pt"}
        )
        with pytest.raises(ValueError, match=message):
            load(copy)


def test_clips_first_configurations_find_the_end_by_its_size(folder: Path, copy: Path, expected: torch.Tensor) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["eos_token_id"] = 2
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.testing.assert_close(load(copy).score(pictures(), PROMPTS), expected, atol=4e-4, rtol=0)


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent': no config.json of a CLIPModel can be loaded"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match="processor '.*absent': no tokenizer"):
        load(folder, processor=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="batch_size must be 1 or above, got 0"):
        load(folder, batch_size=0)
    with pytest.raises(ValueError, match="dialect must be one of scaled, cosine, scaled_26, got 'raw'"):
        find_reward("pickscore", settings={"dialect": "raw"})


def test_provenance(folder: Path) -> None:
    import hashlib

    found = load(folder).provenance
    assert found["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found["scorer"] == "pickscore" and found["checkpoint"] == str(folder) and found["dtype"] == "float32"
    assert "shorter side 32" in found["preprocessing"] and "24 tokens" in found["tokenizer"]
    assert torch.__version__.startswith(found["torch"]) and found["transformers"]
