"""The quickstart on the embedded model: what the README promises, and the collapse that plain DPO runs into."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpref.cli import main
from diffpref.demo import quickstart
from diffpref.objectives.alarms import COLLAPSE
from diffpref.training.alarms import DRIFT
from diffpref.training.loop import train
from diffpref.training.settings import from_mapping
from tests.drawn_pairs import save_drawn_pairs


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_quickstart_keeps_its_promises(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["quickstart", "--output_dir", str(run)]) == 0
    evaluation = json.loads((run / "evaluation.json").read_text())
    result = evaluation["comparison"]
    assert result["win_rate"]["rate"] >= 0.75
    assert result["tuned"]["top1"] >= result["base"]["top1"] - 0.02
    assert result["tuned"]["frechet"] < result["base"]["frechet"]
    assert result["tuned"]["spread"]["inside"]
    last = records(run)[-5:]
    assert sum(line["error/chosen/ratio"] for line in last) / len(last) <= 1.1
    assert not any("alarm" in line for line in records(run))
    assert 1 < records(run)[-1]["drift"] < DRIFT - 0.1
    assert evaluation["peak_memory_gib"] <= 4
    assert (run / "report.html").stat().st_size > 100_000
    # A second quickstart does not write over the first.
    assert main(["quickstart", "--output_dir", str(run)]) == 1


@pytest.mark.slow
def test_hard_plain_dpo_on_all_weights_collapses_and_the_alarm_says_so(tmp_path: Path) -> None:
    base = quickstart.settings(quickstart.Quickstart(output_dir=tmp_path / "run", adapter="full"))
    harsh = {"beta": 2000, "sft": 0.0, "learning_rate": 3e-4, "max_train_steps": 100, "validation_prompts": []}
    run = train(from_mapping(harsh, "the test", base))
    alarms = [line["alarm"] for line in records(run) if "Collapse" in line.get("alarm", "")]
    assert alarms, f"no alarm; the last chosen ratio is {records(run)[-1]['error/chosen/ratio']:.2f}"
    assert "anchor" in str(alarms[0]) and "learning_rate" in str(alarms[0])
    assert records(run)[-1]["error/chosen/ratio"] > COLLAPSE


@pytest.mark.slow
def test_few_pairs_trained_as_the_quickstart_are_ruin_and_a_mild_run_is_not(tmp_path: Path) -> None:
    pairs = save_drawn_pairs(tmp_path / "mine")
    base = quickstart.settings(quickstart.Quickstart(output_dir=tmp_path / "ruined"))
    own = {"dataset_name": str(pairs), "validation_steps": 40, "cache_dir": str(tmp_path / "cache")}
    lines: list[str] = []
    ruined = records(train(from_mapping(own, "the test", base), say=lines.append))
    # Every figure of the training pairs is well: sft hides what is lost.
    assert max(ruined[-1][f"error/{side}/ratio"] for side in ("chosen", "rejected")) < 1 < DRIFT < ruined[-1]["drift"]
    said = "".join(line.get("alarm", "") for line in ruined)
    assert "Drift:" in said and "Spent:" in said and "Repetition:" in said
    assert any("warning: fewer than 500 pairs" in line for line in lines)
    assert any("times that on its own samples" in line for line in lines)
    assert "No alarm" not in (tmp_path / "ruined/report.html").read_text(encoding="utf-8")
    mild = own | {"output_dir": str(tmp_path / "mild"), "max_train_steps": 30, "learning_rate": 1e-4}
    found = records(train(from_mapping(mild, "the test", base), say=lambda line: None))
    assert found[-1]["drift"] < 1.1 and not any("alarm" in line for line in found)


@pytest.mark.slow
def test_an_anchor_holds_the_chosen_error_where_plain_dpo_lets_it_go(tmp_path: Path) -> None:
    ratios = {}
    for anchor in (0.0, 2.0):
        options = quickstart.Quickstart(output_dir=tmp_path / f"anchor-{anchor}", adapter="full")
        harsh = {"beta": 2000, "sft": 0.0, "anchor": anchor, "learning_rate": 1e-4, "max_train_steps": 80}
        harsh |= {"validation_prompts": [], "cache_dir": str(tmp_path / "cache")}
        run = train(from_mapping(harsh, "the test", quickstart.settings(options)))
        ratios[anchor] = records(run)[-1]["error/chosen/ratio"]
    # Plain DPO ends near 3.8 and the anchored run near 1.17.
    assert ratios[2.0] < 1.4 < 2 < ratios[0.0]


@pytest.mark.slow
def test_the_pictures_come_from_a_stock_pipeline_for_full_fine_tuning_too(tmp_path: Path) -> None:
    options = quickstart.Quickstart(output_dir=tmp_path / "run", adapter="full", captions=4)
    config = quickstart.settings(options)
    config = dataclasses.replace(
        config, optimization=dataclasses.replace(config.optimization, max_train_steps=10, learning_rate=1e-4)
    )
    run = train(config)
    model = Path(config.model.pretrained_model_name_or_path)
    before, after = (quickstart.draw(model, tuned, ["fox", "anchor"], config) for tuned in (None, run))
    assert before[0].size == (64, 64)
    assert any(a.tobytes() != b.tobytes() for a, b in zip(before, after, strict=True))
    assert (run / "unet" / "config.json").is_file() and torch.get_default_dtype() == torch.float32
