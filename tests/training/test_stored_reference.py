"""The reference's errors kept over epochs and runs: found, equal, and refused where they were computed otherwise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpref.engine.reference import ReferencePass
from tests import small_edm, small_sd3
from tests.engine.test_runs import SHARED, agree
from tests.small_sdxl import SIZE, read_metrics, save_pairs
from tests.training.test_resume import assert_same

Run = Callable[..., Path]


class Forwards:
    """Counts the candidates that the reference was run on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        predict = ReferencePass._predict

        def counting(this: ReferencePass, block: Any, rows: Any) -> torch.Tensor:
            self.count += len(rows)
            return predict(this, block, rows)

        monkeypatch.setattr(ReferencePass, "_predict", counting)

    def since(self) -> int:
        found, self.count = self.count, 0
        return found


@pytest.mark.slow
def test_stored_errors_are_found_in_later_epochs_and_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 pairs, 4 a step: two steps are an epoch; with two draws a group, the third epoch repeats the first.
    shared = {
        **SHARED,
        "max_train_steps": 6,
        "stored_reference": 2,
        "random_flip": True,
        "cache_dir": str(tmp_path / "c"),
    }
    forwards = Forwards(monkeypatch)
    first = run(output_dir=str(tmp_path / "first"), **shared)
    assert forwards.since() == 4 * 8  # two epochs of 16 pictures
    second = run(output_dir=str(tmp_path / "second"), **shared)
    assert forwards.since() == 0
    assert_same(first, second)
    run(output_dir=str(tmp_path / "beta"), **{**shared, "beta": 100.0, "loss_mode": "deferred"})
    assert forwards.since() == 0
    online = run(output_dir=str(tmp_path / "full"), **{**shared, "resolution": 16})
    assert forwards.since() == 4 * 8 and online != first


def test_stored_errors_are_the_errors(run: Run, tmp_path: Path) -> None:
    """The draws of one epoch are the same, stored or not, where both draw one a group."""
    shared = {**SHARED, "max_train_steps": 2, "probe": "inversion", "inversion_steps": 2, "stored_inversions": 1}
    online = run(output_dir=str(tmp_path / "online"), **shared)
    stored = run(output_dir=str(tmp_path / "stored"), stored_reference=1, **shared)
    # Two errors subtracted, not their factorised difference: 1e-7 of an error near 1, times beta.
    agree(stored, online, tolerance=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd3", "edm"])
def test_on_other_paths(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Times that are no indices, and a weight that depends on sigma."""
    if family == "sd3":
        changes = {"pretrained_model_name_or_path": str(small_sd3.save_pipeline(tmp_path / "base"))}
    else:
        data = save_pairs(tmp_path / "data", size=(small_edm.SIZE, small_edm.SIZE))
        rows = [json.loads(line) for line in data.read_text().splitlines()]
        named = [{**row, "prompt": small_edm.CLASSES[place % 3]} for place, row in enumerate(rows)]
        data.write_text("\n".join(map(json.dumps, named)))
        base = small_edm.save_pipeline(tmp_path / "base")
        changes = {"pretrained_model_name_or_path": str(base), "dataset_name": str(data), "adapter": "full"}
        changes |= {"resolution": small_edm.SIZE}
    shared = {**SHARED, **changes, "max_train_steps": 4, "stored_reference": 1, "cache_dir": str(tmp_path / "cache")}
    forwards = Forwards(monkeypatch)
    first = run(output_dir=str(tmp_path / "first"), **shared)
    assert forwards.since() == 2 * 8, "one epoch of 16 pictures"
    metrics = read_metrics(first)
    assert abs(metrics[0]["rewards/margins"]) < 1e-4 < abs(metrics[-1]["rewards/margins"])
    second = run(output_dir=str(tmp_path / "second"), **shared)
    assert forwards.since() == 0
    for line, other in zip(metrics, read_metrics(second), strict=True):
        assert line["loss"] == other["loss"]


@pytest.mark.slow
def test_errors_of_another_precision_are_refused(run: Run, tmp_path: Path) -> None:
    shared = {**SHARED, "max_train_steps": 1, "stored_reference": 1, "cache_dir": str(tmp_path / "cache")}
    run(output_dir=str(tmp_path / "first"), **shared)
    with pytest.raises(ValueError, match="computed in another way .*mixed_precision 'no' then, 'bf16' now.*delete"):
        run(output_dir=str(tmp_path / "second"), mixed_precision="bf16", **shared)
    assert not (tmp_path / "second" / "config.yaml").exists(), "refused before the output is claimed"
    # Another resolution is other errors, not the same ones in another way.
    run(output_dir=str(tmp_path / "third"), resolution=SIZE // 2, **shared)
