"""Prompts of unequal length: one batch, a mask, and networks that see no padding."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffpref.backbones.guidance import guided
from diffpref.backbones.prompts import collate, concatenate, split
from diffpref.backbones.sd15 import SD15Network
from diffpref.backbones.unet import meta_path
from tests.small_sd15 import WIDTH, small_unet


def prompt(length: int, seed: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(length, WIDTH, generator=draws),
        "pooled": torch.randn(WIDTH, generator=draws),
        "label": torch.tensor(seed),
    }


def test_equal_lengths_are_stacked() -> None:
    prompts = [prompt(3, seed) for seed in range(4)]
    batch = collate(prompts)
    assert set(batch) == set(prompts[0])
    for name, value in batch.items():
        assert torch.equal(value, torch.stack([each[name].float() for each in prompts])), name


def test_unequal_lengths_are_padded_and_masked() -> None:
    prompts = [prompt(length, length) for length in (2, 5, 1)]
    batch = collate(prompts)
    assert batch["prompt_embeds"].shape == (3, 5, WIDTH) and batch["prompt_embeds_mask"].dtype == torch.bool
    assert batch["prompt_embeds_mask"].sum(1).tolist() == [2, 5, 1]
    assert torch.equal(batch["prompt_embeds"][0, :2], prompts[0]["prompt_embeds"])
    assert not batch["prompt_embeds"][0, 2:].any() and batch["prompt_embeds_mask"][0].tolist() == [1, 1, 0, 0, 0]
    for one, other in zip(prompts, split(batch), strict=True):
        assert set(one) == set(other) and all(torch.equal(one[name].float(), other[name]) for name in one)


def test_batches_of_unequal_lengths_are_joined() -> None:
    short, long = collate([prompt(2, 0), prompt(2, 1)]), collate([prompt(4, 2), prompt(3, 3)])
    joined = concatenate([short, long])
    assert joined["prompt_embeds_mask"].sum(1).tolist() == [2, 2, 4, 3]
    assert torch.equal(joined["pooled"], torch.cat([short["pooled"], long["pooled"]]))
    assert torch.equal(collate(split(joined))["prompt_embeds"], joined["prompt_embeds"])


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return small_unet().eval()


def test_a_network_sees_no_padding(network: UNet2DConditionModel) -> None:
    """In a batch with longer prompts each is predicted as alone."""
    model, prompts = SD15Network(network, meta_path()), [prompt(length, length) for length in (2, 5)]
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    with torch.no_grad():
        both = model(x, t, collate(prompts))
        for place in range(2):
            alone = model(x[place : place + 1], t[place : place + 1], collate(prompts[place : place + 1]))
            # float32; diffusers adds -10000 to masked scores.
            torch.testing.assert_close(both[place : place + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("empty_length", [1, 3, 7])
def test_guidance_by_an_empty_prompt_of_another_length(network: UNet2DConditionModel, empty_length: int) -> None:
    model, empty = SD15Network(network, meta_path()), collate([prompt(empty_length, 9)])
    cond = collate([prompt(3, 1), prompt(3, 2)])
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    with torch.no_grad():
        found = guided(model, 3.0, empty)(x, t, cond)
        blank = model(x, t, {name: value.expand(2, *value.shape[1:]) for name, value in empty.items()})
        expected = blank + 3 * (model(x, t, cond) - blank)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
