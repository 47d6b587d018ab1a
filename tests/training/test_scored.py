"""SmPO trains on what `diffpref data score` wrote of pairs that have labels alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffpref import cli
from diffpref.training.config import TrainConfig
from diffpref.training.report import read_metrics

BRIGHT = """def bright(images, prompts):
    return [image.convert("L").resize((1, 1)).getpixel((0, 0)) / 10 for image in images]
"""


def test_smpo_trains_on_scored_pairs(
    settings: Callable[..., TrainConfig], run: Callable[..., Path], pairs: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.parquet"
    assert cli.main(["data", "convert", str(pairs), "--output", str(labels), "--to", "pickapic"]) == 0
    smpo: dict[str, Any] = {"objective": "smpo", "probe": "forward", "max_train_steps": 2}
    with pytest.raises(ValueError, match="needs a reward for each image.*diffpref data score"):
        run(dataset_name=str(labels), **smpo)
    (tmp_path / "mine.py").write_text(BRIGHT)
    scored = tmp_path / "scored.parquet"
    flags = ["--reward", f"{tmp_path / 'mine.py'}:bright", "--output", str(scored)]
    assert cli.main(["data", "score", str(labels), *flags]) == 0
    metrics, _ = read_metrics(run(dataset_name=str(scored), **smpo) / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2] and metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
