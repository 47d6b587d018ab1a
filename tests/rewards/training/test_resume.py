"""A run that goes on from a checkpoint is the straight run; another run is left alone."""

from pathlib import Path

import pytest
import torch

from tests.rewards.training.reward_run import metrics, weights


@pytest.mark.parametrize(
    "changes", [{}, {"adapter": "lora", "rank": 2, "lr_scheduler": "cosine"}], ids=["full", "lora"]
)
def test_a_resumed_run_is_the_straight_run(run, pairs: Path, changes: dict) -> None:
    """Bit for bit, though the checkpoint lies between two log lines and the best weights before it."""
    common = {"max_train_steps": 6, "logging_steps": 2, "validation_dataset_name": str(pairs), "validation_steps": 2}
    common |= {"checkpointing_steps": 3, **changes}
    straight = run("straight", **common)
    again = run("again", **common)
    (again / "metrics.jsonl").write_text("\n".join((again / "metrics.jsonl").read_text().splitlines()[:4]) + "\n")
    for left in ("checkpoint-6/weights.safetensors", "report.html", "model/model.safetensors"):
        (again / left).unlink()
    assert run("again", resume_from_checkpoint="checkpoint-3", **common) == again
    assert metrics(again) == metrics(straight)
    ours, theirs = weights(again), weights(straight)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_run_is_neither_overwritten_nor_continued(run) -> None:
    run(max_train_steps=1, checkpointing_steps=1)
    with pytest.raises(ValueError, match="holds another run.*--overwrite_output_dir"):
        run(max_train_steps=1)
    with pytest.raises(ValueError, match="belongs to another run: loss was 'pickscore', is 'hps'"):
        run(max_train_steps=1, loss="hps", resume_from_checkpoint="latest")
    folder = run(max_train_steps=1, overwrite_output_dir=True)
    assert not list(folder.glob("checkpoint-*"))
