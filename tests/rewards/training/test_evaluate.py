"""How a reward's predictions are counted: accuracy and its interval, log-loss, PickScore's ties, and the command."""

import io
import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from diffpref.data.preferences import read_preferences
from diffpref.rewards import CheckedReward, find_reward
from diffpref.rewards.training.command import main
from diffpref.rewards.training.evaluate import (
    THRESHOLDS,
    Predictions,
    accuracy,
    best_threshold,
    halves,
    log_loss,
    predict,
    report,
    tie_accuracy,
)


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    datasets.disable_progress_bars()


def predictions(logits: list[float], firsts: list[float]) -> Predictions:
    y = torch.tensor(firsts, dtype=torch.float64)
    prompts = tuple(f"prompt {i}" for i in range(len(logits)))
    return Predictions(torch.tensor(logits, dtype=torch.float64), torch.stack([y, 1 - y], 1), prompts)


def test_accuracy_and_log_loss() -> None:
    """Four decided pairs: right, wrong, right, no opinion; the tie counts in neither figure."""
    found = predictions([2.0, 1.0, -3.0, 0.0, 9.0], [1, 0, 0, 1, 0.5])
    right = accuracy(found)
    assert right.rate == 0.625 and right.n == 4
    # Wilson's interval solves (p - rate)^2 = z^2 p (1 - p) / n.
    for end in (right.low, right.high):
        assert (end - 0.625) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / 4, rel=1e-5)
    p = [1 / (1 + math.exp(-2)), 1 - 1 / (1 + math.exp(-1)), 1 - 1 / (1 + math.exp(3)), 0.5]
    assert log_loss(found) == pytest.approx(-sum(map(math.log, p)) / 4)
    with pytest.raises(ValueError, match="every pair is a tie"):
        accuracy(predictions([1.0], [0.5]))


def published(logits: list[float], firsts: list[float], threshold: float) -> float:
    """The rule of PickScore's evaluation in words: labels and predictions are "0", "1" or "tie"."""
    points = 0.0
    for logit, first in zip(logits, firsts, strict=True):
        p0 = math.exp(logit) / (math.exp(logit) + 1)
        said = "tie" if first == 0.5 else "0" if first == 1 else "1"
        predicted = "tie" if abs((1 - p0) - p0) <= threshold else "0" if p0 > 1 - p0 else "1"
        points += 1 if said == predicted else 0.5 if "tie" in (said, predicted) else 0
    return points / len(logits)


def test_the_rule_for_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(60, generator=generator)).tolist()
    firsts = [(0.0, 0.5, 1.0)[i % 3] for i in range(60)]
    found = predictions(logits, firsts)
    by_hand = [published(logits, firsts, t) for t in THRESHOLDS]
    assert THRESHOLDS == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert [tie_accuracy(found, t) for t in THRESHOLDS] == pytest.approx(by_hand)
    assert best_threshold(found) == THRESHOLDS[by_hand.index(max(by_hand))]
    assert best_threshold(predictions([0.01, -0.02, 3.0], [0.5, 0.5, 1])) == 0.1
    assert best_threshold(predictions([5.0, -5.0], [1, 0])) == 0.0, "the lowest of equal ones"
    assert tie_accuracy(predictions([1e4, -1e4], [1, 0.5]), 0.9) == 0.75
    assert tie_accuracy(predictions([1e4], [0.5]), 1.0) == 1.0, "a difference of 1 is at most 1"


def test_the_threshold_is_chosen_on_other_pairs() -> None:
    found = predictions([0.3, -0.3, 4.0, -4.0] * 10, [0.5, 0.5, 1, 0] * 10)
    figures = report(found)
    side = halves(found.prompts)
    assert 8 < int(side.sum()) < 32 and torch.equal(halves(found.prompts[:7]), side[:7])
    assert figures["pairs"] == 40 and figures["ties"] == 20
    assert figures["accuracy_with_ties"] == {
        "rate": 1.0,
        "pairs": int((~side).sum()),
        "threshold": 0.2,
        "threshold_chosen_on": "the other half of the prompts",
    }
    strict = report(found, predictions([0.3, 0.3], [1, 1]))["accuracy_with_ties"]
    assert isinstance(strict, dict) and strict["threshold"] == 0.0 and strict["rate"] == 0.75 and strict["pairs"] == 40
    assert "accuracy_with_ties" not in report(predictions([1.0], [1]))


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Three pictures a prompt, the second and third of the same score; the first is brightest, but not in row 1."""
    rows = [
        {"prompt": "a", "images": [png(200), png(90), png(60)], "scores": [3.0, 1.0, 1.0]},
        {"prompt": "b", "images": [png(20), png(90), png(60)], "scores": [3.0, 1.0, 1.0]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "lists.parquet")
    return tmp_path / "lists.parquet"


BRIGHTNESS = """
import numpy as np

def brightness(images, prompts):
    return [np.asarray(image).mean() / 10 for image in images]
"""


def test_predictions_of_lists(lists: Path) -> None:
    """All pairs of each list in order, each picture scored once."""
    calls: list[int] = []

    def level(images: list, prompts: list[str]) -> list[float]:
        calls.append(len(images))
        return [image.getpixel((0, 0))[0] for image in images]

    rows = read_preferences(lists, ties="keep")
    for size in (1, 2):
        found = predict(CheckedReward("level", level), rows, batch_size=size)
        assert found.logits.tolist() == [110, 140, 30, -70, -40, 30]
        assert found.labels[:, 0].tolist() == [1, 1, 0.5] * 2 and found.prompts == ("a",) * 3 + ("b",) * 3
    assert calls == [3, 3, 6]


def test_the_command(lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(BRIGHTNESS)
    line = ["evaluate", "--reward", f"{tmp_path}/mine.py:brightness", "--dataset_name", str(lists), "--device", "cpu"]
    assert main([*line, "--output", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    assert "accuracy without ties  0.500, 95 % interval [0.150, 0.850] (n = 4)" in printed and "2 are ties" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["accuracy_without_ties"]["rate"] == 0.5 and figures["pairs"] == 6 and figures["ties"] == 2
    assert main([*line, "--validation_split", "train"]) == 0
    assert "chosen on the validation pairs" in capsys.readouterr().out
    with pytest.raises(ValueError, match="settings must be given as name=value, got 'dtype'"):
        main([*line, "--settings", "dtype"])


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    columns = {"prompt": ["a"], "chosen": [png(9)], "rejected": [b"none"]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "pairs.parquet")
    rows = read_preferences(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="pairs.parquet row 0: .*not an image"):
        predict(find_reward("emoji_hand"), rows, batch_size=4)


@pytest.mark.parametrize("arguments", [[], ["score"]])
def test_no_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2 and "say train or evaluate" in capsys.readouterr().err
