"""A finished run as policy and reference: the implicit reward tells what was learned, and nothing before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffpref import compare, forward_probe, load_policy
from diffpref.training.policy import Policy

Run = Callable[..., Path]
QUICK = {
    "lora": {"adapter": "lora", "rank": 8, "learning_rate": 3e-2},
    "full": {"adapter": "full", "learning_rate": 3e-3},
}


def log_ratios(loaded: Policy, pairs: Path) -> torch.Tensor:
    """Of chosen and rejected of each training pair, "b 2"."""
    policy, reference, path, encode = loaded
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    images = [[Image.open(pairs.parent / row[side]) for side in ("chosen", "rejected")] for row in rows]
    x0, cond = encode(images, [row["prompt"] for row in rows])
    t = torch.full((len(x0),), int(0.7 * path.last))
    noise = torch.randn(x0.shape[0], 1, *x0.shape[2:], generator=torch.Generator().manual_seed(0)).expand_as(x0)
    return compare(policy, reference, forward_probe(path, x0, t, noise, cond)).log_ratio


def accuracy(log_ratio: torch.Tensor) -> float:
    margin = log_ratio[:, 0] - log_ratio[:, 1]
    return float(((margin > 0).double() + 0.5 * (margin == 0).double()).mean())


@pytest.mark.parametrize("adapter", QUICK)
def test_the_implicit_reward_of_a_trained_policy(run: Run, v_base: Path, pairs: Path, adapter: str) -> None:
    shared = {"pretrained_model_name_or_path": str(v_base), "train_batch_size": 4, "beta": 500.0, **QUICK[adapter]}
    loaded = load_policy(run(max_train_steps=12, **shared), device="cpu")
    found = log_ratios(loaded, pairs)
    assert accuracy(found) > 0.9
    assert not found.requires_grad


@pytest.mark.parametrize("adapter", QUICK)
def test_an_untrained_policy_is_its_reference(run: Run, pairs: Path, adapter: str) -> None:
    quick = {**QUICK[adapter], "learning_rate": 1e-30}
    found = log_ratios(load_policy(run(max_train_steps=1, **quick), device="cpu"), pairs)
    assert not found.any() and accuracy(found) == 0.5


def test_what_is_no_finished_run_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ValueError, match="is no run: name an output directory"):
        load_policy(tmp_path)
    folder = run(max_train_steps=1)
    (folder / "done.json").unlink()
    with pytest.raises(ValueError, match="holds no finished run"):
        load_policy(folder)


def test_images_and_prompts_belong_together(run: Run) -> None:
    encode = load_policy(run(max_train_steps=1), device="cpu").encode
    image = Image.new("RGB", (40, 30))
    x0, cond = encode([[image, image]], ["a fox"])
    assert x0.shape[:2] == (1, 2) and torch.equal(x0[0, 0], x0[0, 1])
    assert all(len(value) == 1 for value in cond.values())
    with pytest.raises(ValueError, match="one row of images for each of the 1 prompts"):
        encode([[image], [image]], ["a fox"])
    with pytest.raises(ValueError, match="all of one length"):
        encode([[image], [image, image]], ["a fox", "a cat"])
