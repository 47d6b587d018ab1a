"""HPSv3 on a small Qwen2-VL: the published scores, positions, weights' names, and what is refused."""

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffpref.rewards import find_reward
from diffpref.rewards.hpsv3 import QUESTION, Hpsv3, Hpsv3Settings
from diffpref.rewards.qwen import resized, smart_size
from tests.rewards.small_hpsv3 import head, write_model
from tests.small_qwen import picture, save_model

PICTURES = [picture(448, 448, phase=0), picture(300, 200, phase=1), picture(64, 640, phase=2)]
PROMPTS = ["a red cat", "the blue dog and the {cat}", "no"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hpsv3"))


def load(folder: Path, **settings: object) -> Hpsv3:
    values = {"checkpoint": str(folder), "base": str(folder), "dtype": "float32", **settings}
    return Hpsv3Settings(**values).load(torch.device("cpu"))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def reward(folder: Path) -> Hpsv3:
    return load(folder)


# mu of these pictures, prompts and weights by the published code: PyPI hpsv3 1.0.0 on transformers 4.45.2.
REFERENCE = torch.tensor([0.5793639, 0.4027891, 0.6673223])


def test_the_published_codes_scores(reward: Hpsv3) -> None:
    """float32 through two layers: 2e-6 of rounding. transformers 5's own positions miss the first by 0.4."""
    scores = reward.score(PICTURES, PROMPTS)
    assert scores.dtype == torch.float32 and scores.device.type == "cpu"
    torch.testing.assert_close(scores, REFERENCE, atol=3e-6, rtol=0)


def test_one_by_one_without_padding(folder: Path, reward: Hpsv3) -> None:
    """The language model alone on embeddings of one unpadded question, and the head by hand: the same mu."""
    tensors, layers = load_file(folder / "HPSv3.safetensors"), head()
    tokenizer = reward.processor.tokenizer  # type: ignore[attr-defined]
    for picture_, prompt, score in zip(PICTURES, PROMPTS, reward.score(PICTURES, PROMPTS), strict=True):
        small = resized(picture_, factor=28, min_pixels=200704, max_pixels=200704)
        pixels = reward.processor.image_processor(small, do_resize=False, return_tensors="pt")  # type: ignore[attr-defined]
        places = int(pixels["image_grid_thw"].prod()) // 4
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            + "<|image_pad|>" * places
            + f"<|vision_end|>{QUESTION.replace('{}', prompt)}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        words = tensors["model.embed_tokens.weight"][ids]
        seen = reward.backbone.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        words[ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")] = seen
        hidden = reward.backbone.language_model(inputs_embeds=words, use_cache=False).last_hidden_state
        place = ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<|Reward|>"))
        torch.testing.assert_close(layers(hidden[0, place])[0], score, atol=3e-6, rtol=0)


def test_pictures_and_prompts_matter_and_order_does_not(reward: Hpsv3) -> None:
    scores = reward.score([*PICTURES, PICTURES[0]], [*PROMPTS, PROMPTS[1]])
    back = reward.score([PICTURES[0], *PICTURES[::-1]], [PROMPTS[1], *PROMPTS[::-1]])
    torch.testing.assert_close(scores, back.flip(0), atol=3e-6, rtol=0)
    assert (scores[3] - scores[0]).abs() > 1e-3  # another prompt
    assert (scores[3] - scores[1]).abs() > 1e-3  # another picture
    assert len(reward.score([], [])) == 0


def test_by_name_in_bfloat16(folder: Path) -> None:
    """The backbone's eight bits of mantissa, but a head in float32; a local file instead of its folder."""
    settings = {"checkpoint": str(folder / "HPSv3.safetensors"), "base": str(folder), "batch_size": 2}
    by_name = find_reward("hpsv3", settings=settings)
    written = (folder / "HPSv3.safetensors").read_bytes()
    assert by_name.provenance["sha256"] == sha256(written).hexdigest()
    assert by_name.provenance["dtype"] == "bfloat16, head float32" and by_name.provenance["unit"] == "mu"
    torch.testing.assert_close(by_name(PICTURES, PROMPTS), REFERENCE, atol=0.05, rtol=0)
    half = load(folder, dtype="bfloat16")
    assert {weight.dtype for weight in half.backbone.parameters()} == {torch.bfloat16}
    assert all(torch.equal(weight, head().state_dict()[name]) for name, weight in half.head.state_dict().items())


def test_the_later_layout_of_names(folder: Path, tmp_path: Path) -> None:
    """What transformers 4.52 and later saves, without the language model's output layer."""
    later = {}
    for name, tensor in load_file(folder / "HPSv3.safetensors").items():
        if name.startswith("model."):
            name = "model.language_model." + name[6:]
        later[f"model.{name}" if name.startswith("visual.") else name] = tensor
    del later["lm_head.weight"]
    save_file(later, tmp_path / "later.safetensors")
    again = load(folder, checkpoint=str(tmp_path / "later.safetensors"))
    torch.testing.assert_close(again.score(PICTURES[:1], PROMPTS[:1]), REFERENCE[:1], atol=3e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rm_head.5.bias": None}, r"other.safetensors holds other weights: missing 'rm_head.5.bias'\. Name HPSv3"),
        (
            {"model.extra.weight": torch.zeros(2)},
            r"other.safetensors holds other weights: unexpected 'language_model.extra.weight'",
        ),
        (
            {"model.embed_tokens.weight": torch.zeros(9, 32)},
            r"embed_tokens.weight' has shape \(9, 32\), must have \(286, 32\)",
        ),
        ({"rm_head.0.weight": torch.zeros(4, 32)}, r"rm_head.0.weight' has shape \(4, 32\), must have \(1024, 32\)"),
    ],
)
def test_other_weights_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    tensors = {**load_file(folder / "HPSv3.safetensors"), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=message):
        load(folder, checkpoint=str(tmp_path / "other.safetensors"))


def test_missing_files_and_other_bases_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be HPSv3.safetensors, a folder that holds it"):
        load(folder, checkpoint=str(tmp_path))
    with pytest.raises(ValueError, match="no processor can be loaded"):
        load(folder, base=str(tmp_path / "absent"))
    save_model(tmp_path / "newer", "qwen2_5_vl")
    with pytest.raises(ValueError, match="must be a Qwen2-VL, got the model type 'qwen2_5_vl'"):
        load(folder, base=str(tmp_path / "newer"))
    with pytest.raises(ValueError, match="batch_size must be 1 or above, got 0"):
        Hpsv3Settings(batch_size=0)


def test_prompts_and_pictures_that_break_the_question(reward: Hpsv3) -> None:
    with pytest.raises(ValueError, match=r"prompt 1 .* holds '<\|Reward\|>'"):
        reward.score(PICTURES[:2], ["", "a <|Reward|> ceremony"])
    with pytest.raises(ValueError, match="ratio of at most 200; crop it"):
        reward.score([picture(402, 2, phase=0)], [""])


def test_the_question_is_the_published_one() -> None:
    """The SHA-256 of INSTRUCTION + prompt_with_special_token of PyPI hpsv3 1.0.0, its placeholder written as {}."""
    assert sha256(QUESTION.encode()).hexdigest() == "8c1fc61108c0b8e9c664e60a6a31bc2880cadf8950e81ca86c9b3a3be6794b0e"


@pytest.mark.parametrize("size", [(448, 448), (300, 200), (64, 640), (4000, 30), (1024, 1024), (28, 28), (130, 777)])
def test_sizes_are_transformers_own(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for low, high in [(200704, 200704), (3136, 12845056), (3136, 12544)]:
        height, width = smart_resize(size[1], size[0], 28, low, high)
        assert smart_size(*size, factor=28, min_pixels=low, max_pixels=high) == (width, height)


def test_the_pairs_logit_is_the_difference(reward: Hpsv3) -> None:
    """P = sigmoid(difference): 3 against 1 nats is 0.8808; swapped, one minus it."""
    a, b = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(reward.pair_logit(a, b).sigmoid(), torch.tensor([0.8807971, 0.5]))
    assert torch.equal(reward.pair_logit(b, a), -reward.pair_logit(a, b))
