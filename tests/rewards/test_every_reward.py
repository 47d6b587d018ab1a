"""What every reward keeps: documented settings, a whole provenance, and one finite score for each image on its own."""

import ast
import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from diffpref.rewards import REWARDS, CheckedReward, RewardSettings, find_reward
from tests.rewards.small_rewards import FILES, settings_of
from tests.small_qwen import picture

IMAGES = [picture(64, 48, phase=0), picture(90, 70, phase=1), picture(56, 56, phase=2), picture(48, 80, phase=3)]
PROMPTS = ["a red cat", "a red cat", "the blue dog", "the blue dog"]
PROVENANCE = {"scorer", "checkpoint", "preprocessing", "dtype", "unit"}
RELATIVE = {"ensemble"}
"""Rewards whose score of an image is its place among the others of its prompt."""


def settings_class(name: str) -> type:
    module, _, attribute = REWARDS[name].rpartition(":")
    return getattr(importlib.import_module(module), attribute)


def documented(kind: type) -> set[str]:
    """The fields of a class and its bases that have a docstring below them."""
    names: set[str] = set()
    for base in kind.__mro__[:-1]:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for line, below in zip(body.body, body.body[1:], strict=False):
            text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and text:
                names.add(line.target.id)
    return names


@pytest.fixture(scope="module", params=sorted(REWARDS))
def reward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckedReward]:
    with settings_of(request.param, tmp_path_factory.mktemp("reward")) as settings:
        yield find_reward(request.param, settings=settings)


def test_every_reward_is_here() -> None:
    assert {*FILES, "vlm_judge"} == set(REWARDS)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_settings_are_frozen_and_documented(name: str) -> None:
    kind = settings_class(name)
    assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen and issubclass(kind, RewardSettings)  # type: ignore[attr-defined]
    assert {f.name for f in dataclasses.fields(kind)} - documented(kind) == set()
    assert kind.__doc__ and "Args:" not in kind.__doc__


def test_the_provenance_is_whole(reward: CheckedReward) -> None:
    """The same keys in every reward, each a text; a reward made of rewards has those of each."""
    told = dict(reward.provenance)
    assert all(isinstance(value, str) and value for value in told.values())
    if reward.name in RELATIVE:
        told = {key.removeprefix("0."): value for key, value in told.items()}
    assert PROVENANCE <= told.keys()


def test_one_finite_number_for_each_image(reward: CheckedReward) -> None:
    scores = reward(IMAGES, PROMPTS)
    assert scores.shape == (4,) and scores.dtype == torch.float32 and scores.device.type == "cpu"
    assert scores.isfinite().all() and len(scores.unique()) > 1
    torch.testing.assert_close(reward(IMAGES, PROMPTS), scores, atol=0, rtol=0)
    assert reward([], []).shape == (0,)


def test_an_image_is_scored_on_its_own(reward: CheckedReward) -> None:
    """Alone, or its prompt's images alone where a score is a place among them; float32 in another order of sums."""
    scores = reward(IMAGES, PROMPTS)
    size = 2 if reward.name in RELATIVE else 1
    alone = [reward(IMAGES[i : i + size], PROMPTS[i : i + size]) for i in range(0, 4, size)]
    torch.testing.assert_close(torch.cat(alone), scores, atol=1e-5, rtol=1e-5)
    backwards = reward(IMAGES[::-1], PROMPTS[::-1]).flip(0)
    torch.testing.assert_close(backwards, scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_prompts_is_refused(reward: CheckedReward, count: int) -> None:
    images: list[Image.Image] = list(IMAGES)
    with pytest.raises(ValueError, match=rf"one prompt per image, got {count} for 4 images"):
        reward(images, (PROMPTS * 2)[:count])
