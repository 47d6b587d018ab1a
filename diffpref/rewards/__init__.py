"""Rewards: how good is each image for its prompt? Found by name, by a YAML file of settings, or the user's own.

One reward is one module with a frozen dataclass of its settings; `load(device)` makes the `Scorer`.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from diffpref.rewards.checked import CheckedReward, Reward, Scorer, WrongAnswer
from diffpref.settings.dotted import FORMS, is_address, load_callable
from diffpref.settings.entries import read_entry
from diffpref.settings.typed import nearest, read_yaml

__all__ = [
    "REWARDS",
    "CheckedReward",
    "Reward",
    "RewardSettings",
    "Scorer",
    "WrongAnswer",
    "find_reward",
    "reward_settings",
]

REWARDS: Mapping[str, str] = {
    "aesthetic": "diffpref.rewards.aesthetic:AestheticSettings",
    "clipscore": "diffpref.rewards.clipscore:CLIPScoreSettings",
    "hpsv2": "diffpref.rewards.hps:HPSSettings",
    "hpsv2.1": "diffpref.rewards.hps:HPS21Settings",
    "mps": "diffpref.rewards.mps:MPSSettings",
    "pickscore": "diffpref.rewards.pickscore:PickScoreSettings",
    "emoji_hand": "diffpref.demo.emoji_hand:EmojiHandSettings",
    "hpsv3": "diffpref.rewards.hpsv3:Hpsv3Settings",
    "vlm_judge": "diffpref.rewards.vlm_judge:VlmJudgeSettings",
    "vqascore": "diffpref.rewards.vqascore:VqaScoreSettings",
    "cyclereward": "diffpref.rewards.cyclereward:CycleRewardSettings",
    "ensemble": "diffpref.rewards.ensemble:EnsembleSettings",
    "implicit": "diffpref.rewards.implicit:ImplicitSettings",
    "imagereward": "diffpref.rewards.imagereward:ImageRewardSettings",
    "jpeg_compressibility": "diffpref.rewards.jpeg:JpegSettings",
}
"""The package's own rewards: the name -> the dataclass of its settings."""


@runtime_checkable
class RewardSettings(Protocol):
    """What a reward needs to be loaded; a frozen dataclass."""

    def load(self, device: torch.device) -> Scorer: ...


def reward_settings(name: str, values: Mapping[str, Any], where: str) -> RewardSettings:
    """The settings of one of the package's rewards.

    Raises:
        ValueError: no such reward, an unknown key or a wrong type.
    """
    if name not in REWARDS:
        known = f"reward must be one of {sorted(REWARDS)}, or your own function as {FORMS}"
        raise ValueError(f"{where}: {known}; got {name!r}.{nearest(name, list(REWARDS))}")
    module, _, kind = REWARDS[name].rpartition(":")
    return read_entry(getattr(importlib.import_module(module), kind), values, where)


def find_reward(
    name: str, device: str | torch.device = "cpu", *, settings: Mapping[str, Any] | None = None
) -> CheckedReward:
    """The reward of that name, whose every answer is checked.

    Args:
        name: one of `REWARDS` like "pickscore"; a YAML file of `reward: NAME` and its settings; or your own function
            like "my_package.rewards:brightness" or "rewards/mine.py:brightness", which takes (list of PIL images,
            list of prompts) and returns one number per image.
        device: where the package's own rewards compute; a user's function chooses its own.
        settings: fields of the reward's settings, such as {"checkpoint": "my/pickscore", "dtype": "bfloat16"}.

    Raises:
        ValueError: no such name or setting, files that are missing or hold other weights, a module that cannot be
            imported, or something in it that is no function.
    """
    given = dict(settings or {})
    if name not in REWARDS and Path(name).suffix in (".yaml", ".yml"):
        given = {**read_yaml(Path(name)), **given}
        if not isinstance(given.get("reward"), str):
            raise ValueError(f"{name} must have a line `reward: NAME`, where NAME is one of {sorted(REWARDS)}.")
        return find_reward(given.pop("reward"), device, settings=given)
    if name not in REWARDS and is_address(name):
        if given:
            raise ValueError(f"reward {name!r} is your own function and takes no settings, got {sorted(given)}.")
        return CheckedReward(name, load_callable("reward", name), provenance={"function": name})
    scorer = reward_settings(name, given, f"reward {name!r}").load(torch.device(device))
    return CheckedReward(name, scorer.score, scorer.pair_logit, scorer.provenance)
