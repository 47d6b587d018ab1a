"""Rewards asked together: real rewards and users' functions, against numbers worked by hand."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffpref.rewards import Scorer, find_reward
from diffpref.rewards.ensemble import EnsembleSettings

CODE = """
def red(images, prompts):
    return [image.getpixel((0, 0))[0] for image in images]

def green(images, prompts):
    return [image.getpixel((0, 0))[1] for image in images]

def same(images, prompts):
    return [1.0 for _ in images]

def broken(images, prompts):
    return [float("nan") for _ in images]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    return path


def rewards(mine: Path, *names: str) -> list[dict[str, str]]:
    return [{"reward": f"{mine}:{name}"} for name in names]


def pictures(*colours: tuple[int, int]) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (red, green, 0)) for red, green in colours]


# Two prompts, their pictures mixed. By red: a 10 30 20, b 5 5; by green: a 0 1 2, b 9 8.
PICTURES = pictures((10, 0), (5, 9), (30, 1), (5, 8), (20, 2))
PROMPTS = ["a", "b", "a", "b", "a"]


def test_win_count_within_prompts(mine: Path) -> None:
    """a: red gives 0 2 1 wins, green 0 1 2, of 4; b: red ties, green 1 0, of 2."""
    ensemble = find_reward("ensemble", settings={"rewards": rewards(mine, "red", "green")})
    scores = ensemble(PICTURES, PROMPTS)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [0.0, 0.5, 0.75, 0.0, 0.75]
    assert ensemble([], []).shape == (0,)


def test_weights(mine: Path) -> None:
    """Red three times, green once: a has (0, 6 + 1, 3 + 2) of 8, b (1, 0) of 4."""
    named = {"rewards": rewards(mine, "red", "green"), "weights": [3, 1]}
    assert find_reward("ensemble", settings=named)(PICTURES, PROMPTS).tolist() == [0, 1 / 4, 7 / 8, 0, 5 / 8]


def test_win_prob(mine: Path) -> None:
    """In b red ties (1/2 each) and green's 1 over a temperature of 1/ln 3 are odds of 3 to 1."""
    named = {"rewards": rewards(mine, "red", "green"), "aggregator": "win_prob", "temperatures": [1.0, 0.910239227]}
    scores = find_reward("ensemble", settings=named)(PICTURES, PROMPTS)
    torch.testing.assert_close(scores[[1, 3]], torch.tensor([5 / 8, 3 / 8]))
    torch.testing.assert_close(scores[[0, 2, 4]].sum(), torch.tensor(1.5))


def test_mean_z_of_the_batch(mine: Path) -> None:
    """Red has mean 14 and variance 94 over all five, green 4 and 14; the reward that is always the same adds zeros."""
    named = {"rewards": rewards(mine, "red", "green", "same"), "aggregator": "mean_z"}
    scores = find_reward("ensemble", settings=named)(PICTURES, PROMPTS)
    z = [(r - 14) / 94**0.5 / 3 + (g - 4) / 14**0.5 / 3 for r, g in ((10, 0), (5, 9), (30, 1), (5, 8), (20, 2))]
    torch.testing.assert_close(scores, torch.tensor(z))


def test_pareto(mine: Path) -> None:
    """In a the last two beat each other in one reward and the first in both; in b the second is beaten."""
    named = {"rewards": rewards(mine, "red", "green"), "aggregator": "pareto"}
    assert find_reward("ensemble", settings=named)(PICTURES, PROMPTS).tolist() == [0.5, 1.0, 1.0, 0.0, 1.0]


def test_a_file_of_settings_with_the_packages_rewards(mine: Path, tmp_path: Path) -> None:
    """Settings of each reward reach it: one wants small files, the other large ones, so that they cancel."""
    file = tmp_path / "my-ensemble.yaml"
    file.write_text(
        "reward: ensemble\nrewards:\n  - reward: jpeg_compressibility\n"
        "  - reward: jpeg_compressibility\n    incompressible: true\n    quality: 80\nweights: [1, 3]\n"
    )
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    ensemble = find_reward(str(file))
    assert ensemble([noise, *pictures((1, 1))], ["x", "x"]).tolist() == [0.75, 0.25]
    told = ensemble.provenance
    assert told["aggregator"] == "win_count" and told["weights"] == "[1.0, 3.0]"
    assert told["0.reward"] == told["1.reward"] == "jpeg_compressibility" and "quality 80" in told["1.preprocessing"]


def test_a_prompt_with_one_picture_is_refused_before_anything_is_scored(mine: Path) -> None:
    ensemble = find_reward("ensemble", settings={"rewards": rewards(mine, "broken")})
    with pytest.raises(ValueError, match="'lonely' has only one: score two or more"):
        ensemble(pictures((1, 1), (2, 2), (3, 3)), ["a", "lonely", "a"])
    with pytest.raises(ValueError, match="broken.* returned nan for image 0"):
        ensemble(pictures((1, 1), (2, 2)), ["a", "a"])


def test_no_odds(mine: Path) -> None:
    scorer = EnsembleSettings(tuple(rewards(mine, "red"))).load(torch.device("cpu"))
    assert isinstance(scorer, Scorer)
    with pytest.raises(ValueError, match="'ensemble' has no pair_logit: .*pair_logit of a single reward"):
        scorer.pair_logit(torch.ones(1), torch.zeros(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "reward 'ensemble': rewards is missing"),
        ({"rewards": []}, "rewards must name one reward or more"),
        ({"rewards": ["pickscore"]}, "rewards must be a list of names with values"),
        ({"rewards": [{"name": "red"}]}, r"rewards\[0\] must have a line `reward: NAME`"),
        ({"rewards": [{"reward": "jpeg"}]}, r"rewards\[0\]: reward 'jpeg': reward must be one of"),
        ({"rewards": [{"reward": "jpeg_compressibility", "qualty": 3}]}, r"rewards\[0\]: .*unknown key 'qualty'"),
        ({"rewards": [{"reward": "emoji_hand"}], "aggregator": "median"}, "aggregator must be one of win_count"),
        ({"rewards": [{"reward": "emoji_hand"}], "weights": [1, 2]}, r"one number a reward \(1\), 0 or above"),
        ({"rewards": [{"reward": "emoji_hand"}], "weights": [0]}, "one of them above 0"),
        ({"rewards": [{"reward": "emoji_hand"}], "weights": [-1]}, "0 or above"),
        ({"rewards": [{"reward": "emoji_hand"}], "aggregator": "win_prob"}, "temperatures must be 1 numbers above 0"),
        (
            {"rewards": [{"reward": "emoji_hand"}], "temperatures": [1]},
            "temperatures belongs to aggregator: win_prob, and this is aggregator: win_count",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_reward("ensemble", settings=settings)
