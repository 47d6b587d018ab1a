"""Best of n and a comparison: the same seeds, an order by the reward, and statistics that are worked out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffpref.pipelines import BestOf, compare, load
from diffpref.rewards import CheckedReward

SHORT = {"num_inference_steps": 2, "height": 32, "width": 32}


def warmth(images: list[Image.Image], prompts: list[str]) -> list[float]:
    """Red minus blue."""
    return [
        float(np.asarray(image, float)[..., 0].mean() - np.asarray(image, float)[..., 2].mean()) for image in images
    ]


WARM = CheckedReward("warmth", warmth)


def test_images_come_sorted_and_a_seed_draws_its_image_again(stock: Callable[..., Any]) -> None:
    pipe = stock()
    best = BestOf(pipe, WARM, n=3)
    out = best(["red cat", "a dog"], generator=torch.Generator().manual_seed(3), negative_prompt=["a", "b"], **SHORT)
    assert len(out.images) == 2 and [len(rows) for rows in out.ranked] == [3, 3]
    for rows, image in zip(out.ranked, out.images, strict=True):
        assert image is rows[0].image and rows == sorted(rows, key=lambda row: -row.score)
        assert len({row.seed for row in rows}) == 3
    row = out.ranked[1][2]
    seed = torch.Generator().manual_seed(row.seed)
    again = pipe("a dog", negative_prompt="b", generator=seed, **SHORT).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(row.image))


def test_it_stands_in_a_pipelines_place(stock: Callable[..., Any], runs: Callable[..., Path]) -> None:
    from diffusers import DiffusionPipeline

    best = BestOf(stock(), WARM, n=2, batch_size=2)
    assert isinstance(best, DiffusionPipeline) and best.unet is best.pipe.unet and best.to("cpu") is best
    best.set_progress_bar_config(disable=False)
    assert best.pipe._progress_bar_config == {"disable": False}
    best.scheduler = type(best.scheduler).from_config(best.scheduler.config)
    assert best.pipe.scheduler is best.scheduler and best.device.type == "cpu"
    best.load_lora_weights(runs())
    assert best.get_active_adapters() and best("red cat", seeds=[1, 2], **SHORT).images
    with pytest.raises(ValueError, match="leave latents out"):
        best("red cat", latents=None)
    with pytest.raises(ValueError, match="seeds must be 2 numbers"):
        best("red cat", seeds=[1])
    with pytest.raises(ValueError, match="reward must be one of"):
        BestOf(stock(), "pickscor")


def test_the_implicit_reward_is_that_of_the_run_in_the_pipeline(
    stock: Callable[..., Any], runs: Callable[..., Path]
) -> None:
    """Images that look like the chosen ones of training score above those like the rejected; order and batch do not
    matter, because times and noises are common to all."""
    best = BestOf(load(stock(), runs()), "implicit", n=2, settings={"draws": 4})
    bright, dark = Image.new("RGB", (32, 32), (220, 160, 60)), Image.new("RGB", (32, 32), (30, 60, 120))
    scores = best.reward([bright, dark, bright], ["red cat"] * 3)
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-4, atol=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-3
    alone = best.reward([dark], ["red cat"])
    torch.testing.assert_close(alone, scores[1:2], rtol=1e-3, atol=1e-4)
    first, second = best("red cat", **SHORT).ranked[0]
    assert first.score >= second.score


def test_compare_counts_wins_over_prompts(stock: Callable[..., Any], runs: Callable[..., Path]) -> None:
    prompts = ["red cat", "a dog", "two cats"]
    warm, cold = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    found = compare([warm, cold, warm], [cold, cold, warm], prompts, WARM)
    rate = found.win_rates["warmth"]
    assert (rate.rate, rate.n) == (pytest.approx(2 / 3), 3) and rate.low < rate.rate < rate.high
    assert found.worst("warmth")[-1] == 0 and "warmth: a wins 0.667" in str(found) and found.sheet().width > 8
    pipe = stock()
    same = compare(load(stock(), runs(), scale=0.0), pipe, prompts[:2], WARM, **SHORT)
    assert same.win_rates["warmth"].rate == 0.5
    with pytest.raises(ValueError, match="are one pipeline"):
        compare(pipe, pipe, prompts, WARM)
    with pytest.raises(ValueError, match="one image for each of the 3 prompts, got 1"):
        compare([warm], [cold], prompts, WARM)
