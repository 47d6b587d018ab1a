"""MPS with random weights in the published layout, against float64 by loops over heads and complex rotations."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffpref.rewards import find_reward
from diffpref.rewards.mps import MPS, OVERALL, MPSSettings
from diffpref.rewards.mps_cross import rotary_angles, rotate
from tests.rewards.small_clip import LOG_100, PROMPTS, pictures, small_config
from tests.rewards.small_mps import HEADS, all_tensors, small_clip, write_processor

PATCHES = 17
CPU = torch.device("cpu")
CONDITION = "colour, hands, cats"


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP's folder without weights, as the published processor is used."""
    return write_processor(tmp_path_factory.mktemp("mps"))


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return all_tensors()


@pytest.fixture(scope="module")
def file(tensors: dict[str, Tensor], processor: Path) -> Path:
    save_file(tensors, processor / "mps.safetensors")
    return processor / "mps.safetensors"


def load(file: Path, **settings) -> MPS:
    given = {"checkpoint": str(file), "processor": str(file.parent), "condition": CONDITION, **settings}
    return MPSSettings(**given).load(CPU)


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * weight


def gated(x: Tensor) -> Tensor:
    value, gate = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return value * gate / (1 + torch.exp(-gate))


def turn(x: Tensor) -> Tensor:
    """RoPE as it is defined: numbers 32 apart are a complex number, multiplied by exp(i position frequency)."""
    angle = torch.arange(len(x))[:, None] / 10000 ** (torch.arange(32).double() / 32)
    z = torch.complex(x[:, :32], x[:, 32:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head's attention; masked keys are simply not given."""
    weight = torch.exp(q @ k.T / 8)
    return weight / weight.sum(-1, keepdim=True) @ v


def cross(t: dict[str, Tensor], picture: Tensor, text: Tensor) -> Tensor:
    """The four layers for one picture (p, w) and the tokens of one prompt that may be read (l, w)."""
    for layer in range(4):
        w = {k.split(".fn.")[1]: v for k, v in t.items() if k.startswith(f"cross_model.layers.{layer}.0.")}
        x = layer_norm(picture, w["norm.weight"])
        q, kv = x @ w["to_q.weight"].T, text @ w["to_kv.weight"].T
        heads = [attend(q[:, 64 * h : 64 * h + 64], kv[:, :64], kv[:, 64:]) for h in range(HEADS)]
        wide = gated(x @ w["ff.0.weight"].T) @ w["ff.2.weight"].T
        picture = picture + torch.cat(heads, -1) @ w["to_out.weight"].T + wide
        w = {k.split(".fn.")[1]: v for k, v in t.items() if k.startswith(f"cross_model.layers.{layer}.1.")}
        x = layer_norm(picture, w["norm.weight"]) @ w["fused_attn_ff_proj.weight"].T
        end = 64 * HEADS
        k, v = turn(x[:, end : end + 64]), x[:, end + 64 : end + 128]
        heads = [attend(turn(x[:, 64 * h : 64 * h + 64]), k, v) for h in range(HEADS)]
        wide = gated(x[:, end + 128 :]) @ w["ff_out.1.weight"].T
        picture = picture + torch.cat(heads, -1) @ w["attn_out.weight"].T + wide
    return picture


@torch.no_grad()
def published(tensors: dict[str, Tensor], processor: Path, prompts: list[str], threshold: float) -> list[list[float]]:
    """(score, share of the prompt's tokens that are read), one pair at a time (eval_overall_mps_on_hpdv2.py)."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil

    wide = {name: tensor.double() for name, tensor in tensors.items()}
    clip, tokenizer = small_clip().double(), AutoTokenizer.from_pretrained(processor)
    pixels_of = CLIPImageProcessorPil.from_pretrained(processor)

    def hidden(text: str) -> tuple[Tensor, Tensor]:
        ids = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = clip.text_model(input_ids=ids).last_hidden_state[0] @ clip.text_projection.weight.T
        return states, states[ids[0].tolist().index(1313)]

    condition, found = hidden(CONDITION)[0], []
    for image, prompt in zip(pictures(), prompts, strict=True):
        flat = image.convert("RGB")
        flat.info.clear()
        pixels = pixels_of(flat, return_tensors="pt")["pixel_values"].double()
        states, end = hidden(prompt)
        picture = clip.vision_model(pixel_values=pixels).last_hidden_state[0] @ clip.visual_projection.weight.T
        likeness = torch.tensor([max((state @ c).item() for c in condition) for state in states])
        read = likeness / likeness.max() > threshold
        first = cross(wide, picture, states[read])[0]
        score = np.exp(LOG_100) * (first @ end) / first.norm() / end.norm()
        found.append([score.item(), read.double().mean().item()])
    return found


@pytest.mark.parametrize("threshold", [0.3, 0.6, -1e9])
def test_scores_are_the_formulas(tensors: dict[str, Tensor], processor: Path, file: Path, threshold: float) -> None:
    """Float32 against float64 through six layers."""
    expected, share = torch.tensor(published(tensors, processor, PROMPTS, threshold)).T
    assert expected.std() > 1, "the pictures must differ for this to say anything"
    assert (share == 1).all() if threshold < 0 else share.min() < 1
    reward = load(file, threshold=threshold, batch_size=4)
    scores = reward.score(pictures(), PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(reward.pair_logit(scores[:3], scores[3:]), scores[:3] - scores[3:])


def test_a_score_does_not_hang_on_its_batch(file: Path) -> None:
    """The published mask is of the whole batch's largest likeness, so that it does there."""
    reward = find_reward("mps", settings={"checkpoint": str(file), "processor": str(file.parent), "batch_size": 3})
    images = pictures()
    scores = reward(images, PROMPTS)
    one_by_one = torch.cat([reward([i], [p]) for i, p in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(scores, one_by_one, atol=1e-3, rtol=0)
    torch.testing.assert_close(reward(images[::-1], PROMPTS[::-1]).flip(0), scores, atol=1e-3, rtol=0)
    assert reward([], []).shape == (0,)
    with pytest.raises(ValueError, match="got 1 for 6 images"):
        load(file).score(images, PROMPTS[:1])


def test_each_prompt_is_encoded_once(file: Path) -> None:
    reward, seen = load(file, batch_size=2), []
    reward.clip.text_model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    reward.score(pictures(), ["a", "b", "a", "c", "b", "a"])
    assert sum(seen) == 3


def test_only_the_towers_are_in_half_precision(file: Path) -> None:
    """exp(logit_scale) is float32's, and a bfloat16 score is near the float32 one but on no bfloat16 grid."""
    reward = load(file, dtype="bfloat16")
    assert reward.logit_scale == pytest.approx(np.exp(LOG_100), rel=1e-6)
    scores = reward.score(pictures(), PROMPTS)
    assert scores.dtype == torch.float32 and not torch.equal(scores, scores.bfloat16().float())
    assert (scores - load(file).score(pictures(), PROMPTS)).abs().max() < 8
    assert next(reward.cross.parameters()).dtype == torch.bfloat16


def test_rotary_angles_are_rounded_as_the_file_is() -> None:
    """In float16, as published, the last of 257 positions times 0.75 is rounded to 0.125 of a radian."""
    frequencies = 1 / 10000 ** (torch.arange(0, 64, 2) / 64)
    half = rotary_angles(frequencies.half(), 257)
    by_numpy = np.arange(257, dtype=np.float16)[:, None] * frequencies.numpy().astype(np.float16)
    assert np.array_equal(half[:, :32].numpy(), by_numpy.astype(np.float32)) and torch.equal(half[:, :32], half[:, 32:])
    whole = rotary_angles(frequencies, 257)
    assert 0.03 < (half - whole).abs().max() < 0.2
    x = torch.randn(3, 257, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(x, whole)[1], turn(x[1].double()).float(), atol=2e-4, rtol=0)


def test_the_republished_and_the_old_layout(tensors: dict[str, Tensor], file: Path, tmp_path: Path) -> None:
    """Behind "mps.", and with position_ids, which transformers once saved."""
    shutil.copytree(file.parent, tmp_path / "copy")
    other = {f"mps.{name}": tensor for name, tensor in tensors.items()}
    other |= {"mps.model.text_model.embeddings.position_ids": torch.arange(24)[None]}
    torch.save(other, tmp_path / "copy" / "mps.pth")
    expected = load(file).score(pictures(), PROMPTS)
    assert torch.equal(load(tmp_path / "copy" / "mps.pth").score(pictures(), PROMPTS), expected)


def test_what_does_not_fit_is_named(file: Path, tmp_path: Path) -> None:
    shutil.copytree(file.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "mps.safetensors"
    for change, message in [
        (
            {"cross_model.layers.2.1.fn.rotary_emb.inv_freq": None},
            "missing 'cross_model.layers.2.1.rotary_emb.inv_freq'",
        ),
        ({"model.logit_scale": None}, "missing 'model.logit_scale'"),
        ({"cross_model.layers.4.0.fn.to_q.weight": torch.ones(1)}, "unexpected 'cross_model.layers.4.0.to_q.weight'"),
    ]:
        given = {k: v for k, v in {**load_file(file), **change}.items() if v is not None}
        save_file(given, path)
        with pytest.raises(ValueError, match=f"mps.safetensors holds other weights: {message}.*Kwai-Kolors/MPS"):
            load(path)
    torch.save(torch.nn.Linear(1, 1), tmp_path / "copy" / "module.pth")
    with pytest.raises(ValueError, match="module.pth is no file of tensors alone.*is refused.*save_file"):
        load(tmp_path / "copy" / "module.pth")
    with pytest.raises(ValueError, match="there is no such file; name a state dict of MPS, or 'RE-N-Y/mpsv1'"):
        load(tmp_path / "copy" / "absent.pth")
    with pytest.raises(ValueError, match="threshold must be below 1"):
        load(file, threshold=1.0)
    with pytest.raises(ValueError, match="absent': no config.json of a CLIPModel"):
        load(file, processor=str(tmp_path / "absent"))
    small_config(projection=100).save_pretrained(tmp_path / "copy")
    with pytest.raises(ValueError, match="projection_dim is a multiple of 64, got 100"):
        load(path)


def test_the_published_condition() -> None:
    assert MPSSettings().condition == OVERALL and MPSSettings().threshold == 0.3
    assert len(set(OVERALL.removesuffix(".").split(", "))) == 22
