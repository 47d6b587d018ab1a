"""Pairs as a CLIP is trained on them: pixels, labels, weights and their order."""

from pathlib import Path

import pytest
import torch

from diffpref.data.decode import decode
from diffpref.rewards import find_reward
from diffpref.rewards.clip_hf import load_model, load_processor
from diffpref.rewards.training.data import order, total_weight
from diffpref.rewards.training.model import PairScorer
from tests.rewards.training.reward_run import read


def test_scores_are_those_of_transformers_and_of_the_reward(small_clip: Path, pairs: Path) -> None:
    """The training sees what CLIPModel.forward computes, and what the PickScore reward says of the same pictures."""
    clip, _ = load_model(str(small_clip))
    processor = load_processor(str(small_clip), clip.config)
    data = read(pairs)
    batch = data.batch([3, 0, 7], processor)
    with torch.no_grad():
        scores = PairScorer(clip)(batch.pixels, batch.ids)
        out = clip(input_ids=batch.ids, pixel_values=batch.pixels.flatten(0, 1))
    theirs = torch.stack([out.logits_per_image.view(3, 2, 3)[i, :, i] for i in range(3)])
    torch.testing.assert_close(scores, theirs, atol=1e-4, rtol=1e-4)
    rows = [data.pairs[i] for i in (3, 0, 7)]
    reward = find_reward("pickscore", settings={"checkpoint": str(small_clip), "processor": ""})
    said = reward([decode(p) for row in rows for p in row.images], [row.prompt for row in rows for _ in "ab"])
    torch.testing.assert_close(scores.flatten(), said, atol=1e-4, rtol=1e-4)


def test_labels_weights_and_order(pairs: Path) -> None:
    data = read(pairs)
    assert data.labels[[0, 1, 4, 9]].tolist() == [[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]]
    torch.testing.assert_close(data.weights, torch.tensor([0.2] * 5 + [1.0] * 7, dtype=torch.float64))
    one = order(3, 12, range(3), size=4, accumulation=1, share=(0, 1))
    assert sorted(sum(one, [])) == list(range(12)), "an epoch is a permutation"
    shared = [order(3, 12, range(3), size=1, accumulation=2, share=(rank, 2)) for rank in (0, 1)]
    for step in range(3):
        parts = [shared[rank][2 * step + part] for rank in (0, 1) for part in (0, 1)]
        assert sum(parts, []) == one[step], "the same pairs, however they are shared"
        assert total_weight(data, 3, step, 4) == pytest.approx(sum(data.weights[i].item() for i in one[step]))
    assert order(3, 12, range(2, 3), size=4, accumulation=1, share=(0, 1)) == one[2:]
