"""A small CLIP of random weights learns which image is brighter, and keeps the best weights."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from diffpref.rewards import find_reward
from diffpref.rewards.clip_hf import load_model, load_processor
from diffpref.rewards.training.data import order
from diffpref.rewards.training.model import PairScorer
from diffpref.rewards.training.settings import READER
from tests.rewards.training.reward_run import metrics, png, read, weights

ROOT = Path(__file__).parents[3]


def test_it_learns_and_leaves_a_reward(run, pairs: Path) -> None:
    folder = run(
        max_train_steps=30, logging_steps=5, validation_dataset_name=str(pairs), validation_steps=10, decay_vectors=True
    )
    lines = metrics(folder)
    losses = [line["loss_per_pair"] for line in lines if "loss_per_pair" in line]
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]
    held_out = {line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line}
    assert list(held_out) == [0, 10, 20, 30] and held_out[30] == 1.0
    reward = find_reward(str(folder / "reward.yaml"))
    bright, dark = (Image.open(io.BytesIO(png(level))) for level in (190, 50))
    scores = reward([bright, dark], ["thing 5", "thing 5"])
    assert scores[0] > scores[1] and reward.pair_logit(scores[:1], scores[1:]).item() > 0
    assert READER.from_yaml(folder / "config.yaml") == READER.from_mapping(
        READER.to_mapping(READER.from_yaml(folder / "config.yaml")), "again"
    )
    assert "versions" in json.loads((folder / "environment.json").read_text())
    page = (folder / "report.html").read_text()
    assert "100.0%" in page and "Accuracy without ties" in page and "learning_rate: 0.003" in page


def test_the_loss_of_a_step_is_the_published_one(run, small_clip: Path, pairs: Path) -> None:
    """The first logged loss, from the base model's own scores."""
    clip, _ = load_model(str(small_clip))
    data = read(pairs)
    rows = order(0, 12, range(1), size=4, accumulation=1, share=(0, 1))[0]
    batch = data.batch(rows, load_processor(str(small_clip), clip.config))
    with torch.no_grad():
        scores = PairScorer(clip)(batch.pixels, batch.ids).double()
    p = scores.softmax(1)
    nats = -(batch.labels * p.log()).sum(1) + torch.where(batch.labels[:, 0] == 0.5, torch.tensor(0.5).log(), 0.0)
    w = batch.weights.double()
    assert metrics(run("a"))[0]["loss"] == pytest.approx((w / w.sum() * nats).sum().item(), rel=1e-4)
    summed = -(batch.labels * p.log()).sum().item()
    assert metrics(run("b", loss="hps"))[0]["loss"] == pytest.approx(summed, rel=1e-4)


def test_accumulation_is_a_larger_batch(run) -> None:
    """The weights of a step are normalised over all its batches; float32 adds in another order, hence 1e-5."""
    # The large epsilon keeps Adam from blowing up gradients that are nothing but rounding.
    common = {"learning_rate": 1e-3, "adam_epsilon": 1e-3}
    one = weights(run("one", train_batch_size=4, **common))
    four = weights(run("four", train_batch_size=1, gradient_accumulation_steps=4, **common))
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=1e-5, rtol=1e-4)


def test_the_best_weights_are_kept(run, pairs: Path, tmp_path: Path) -> None:
    """Validated against the opposite labels, training makes it worse: the first validated weights stay."""
    table = datasets.Dataset.from_parquet(str(pairs))
    swapped = table.rename_columns({"label_0": "label_1", "label_1": "label_0"})
    swapped.to_parquet(tmp_path / "opposite.parquet")
    opposite, right = str(tmp_path / "opposite.parquet"), str(pairs)
    first = run("first", max_train_steps=1, validation_steps=1, validation_dataset_name=opposite)
    start = next(line["validation/accuracy"] for line in metrics(first) if "validation/accuracy" in line)
    # Where the random base has all of the opposite wrong already, it learns the opposite and gets worse at the others.
    learned, judged = (right, opposite) if start else (opposite, right)
    for rate in (1e-3, 3e-4, 1e-4, 3e-5):
        options = {"dataset_name": learned, "learning_rate": rate}
        long = run(f"long-{rate}", max_train_steps=12, validation_steps=2, validation_dataset_name=judged, **options)
        seen = {line["step"]: line["validation/accuracy"] for line in metrics(long) if "validation/accuracy" in line}
        best = max((step for step in seen if step), key=lambda step: (seen[step], step))
        if seen[best] > seen[12]:
            break
    assert best < 12 and seen[best] > seen[12], seen
    short = weights(run("short", max_train_steps=best, **options))
    assert all(torch.equal(value, short[name]) for name, value in weights(long).items())


@pytest.mark.parametrize(("loss", "largest"), [("hps", 100.0), ("pickscore", float("inf"))])
def test_the_scale_is_clamped_for_hps(run, small_clip: Path, tmp_path: Path, loss: str, largest: float) -> None:
    model = CLIPModel.from_pretrained(small_clip)
    model.logit_scale.data.fill_(5.0)
    model.save_pretrained(tmp_path / "sharp")
    CLIPTokenizer.from_pretrained(small_clip).save_pretrained(tmp_path / "sharp")
    folder = run(pretrained_model_name_or_path=str(tmp_path / "sharp"), loss=loss, max_train_steps=1)
    scale = weights(folder)["logit_scale"].exp().item()
    assert scale == pytest.approx(100.0, rel=1e-6) if largest == 100 else scale > 140


def test_half_precision_towers(run) -> None:
    folder = run(mixed_precision="bf16", gradient_checkpointing=True, dataloader_num_workers=1, max_train_steps=2)
    assert all(value.dtype == torch.float32 for value in weights(folder).values())
    assert len(metrics(folder)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["pickscore", "hps"])
def test_two_processes(run, small_clip: Path, pairs: Path, tmp_path: Path, loss: str) -> None:
    """Two gloo processes of 2 pairs learn what one of 4 does (PickScore), or of half the rate's loss (HPSv2)."""
    common = {"max_train_steps": 3, "learning_rate": 1e-3, "loss": loss, "adam_epsilon": 1e-3, "logging_steps": 1}
    common |= {"validation_dataset_name": str(pairs), "validation_steps": 3}
    flags = {"pretrained_model_name_or_path": str(small_clip), "dataset_name": str(pairs), "train_batch_size": 2}
    flags |= {**common, "output_dir": str(tmp_path / "two")}
    line = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29531", "-m"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, "diffpref.rewards.training", *line], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one = run("one", train_batch_size=4, **common)
    ours, theirs = metrics(tmp_path / "two"), metrics(one)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    if loss == "pickscore":
        for name, value in weights(one).items():
            torch.testing.assert_close(weights(tmp_path / "two")[name], value, atol=1e-5, rtol=1e-3)
    first = [line["loss"] for line in (ours[1], theirs[1])]
    assert first[0] == pytest.approx(first[1] / (2 if loss == "hps" else 1), rel=1e-4)
