"""JPEG compressibility against files that Pillow writes to disk, and against the example's own function."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffpref.rewards import Scorer, find_reward
from diffpref.rewards.jpeg import JpegSettings
from examples import compressible


def pictures() -> list[Image.Image]:
    noise = np.random.RandomState(0).randint(0, 256, (40, 56, 4)).astype(np.uint8)
    return [Image.fromarray(noise[..., :3]), Image.new("RGB", (40, 56), "red"), Image.new("L", (9, 7), 3)]


def test_minus_the_size_of_the_file(tmp_path: Path) -> None:
    """DDPO's reward: kB are 1000 bytes, quality is 95; a grey picture is written in RGB, as all are."""
    expected = []
    for i, picture in enumerate(pictures()):
        picture.convert("RGB").save(tmp_path / f"{i}.jpg", quality=95)
        expected.append(-(tmp_path / f"{i}.jpg").stat().st_size / 1000)
    reward = find_reward("jpeg_compressibility")
    scores = reward(pictures(), ["", "a", "b"])
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-6, rtol=1e-6)
    assert scores[0] < scores[1] < 0
    assert reward.provenance["unit"] == "minus kB of 1000 bytes" and "quality 95" in reward.provenance["preprocessing"]


def test_the_example_is_the_same() -> None:
    scores = find_reward("jpeg_compressibility")(pictures()[:2], ["", ""])
    torch.testing.assert_close(scores, torch.tensor(compressible.reward(pictures()[:2], ["", ""])))


def test_incompressible_and_another_quality() -> None:
    small, large = (
        find_reward("jpeg_compressibility"),
        find_reward("jpeg_compressibility", settings={"incompressible": True}),
    )
    assert torch.equal(large(pictures(), [""] * 3), -small(pictures(), [""] * 3))
    coarse = find_reward("jpeg_compressibility", settings={"quality": 10})
    assert coarse(pictures()[:1], [""]) > small(pictures()[:1], [""])


def test_transparency_is_dropped() -> None:
    clear = pictures()[0].copy()
    clear.putalpha(10)
    reward = find_reward("jpeg_compressibility")
    assert torch.equal(reward([clear], [""]), reward(pictures()[:1], [""]))


def test_no_odds_and_no_such_quality() -> None:
    scorer = JpegSettings().load(torch.device("cpu"))
    assert isinstance(scorer, Scorer) and scorer.score([], []).shape == (0,)
    with pytest.raises(ValueError, match="'jpeg_compressibility' has no pair_logit: .* Use the order"):
        scorer.pair_logit(torch.ones(1), torch.zeros(1))
    with pytest.raises(ValueError, match=r"quality must be in \[1, 100\], got 0"):
        find_reward("jpeg_compressibility", settings={"quality": 0})
