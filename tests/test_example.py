"""The example of a new objective: its gradient vanishes at its own target margin, and the loop trains with it."""

import json
from pathlib import Path

import pytest
import torch

from diffpref.cli import main
from diffpref.training.settings import from_mapping, from_yaml
from diffpref.types import Errors
from examples.add_an_objective import IPO

ROOT = Path(__file__).parents[1]
ADDRESS = "examples/add_an_objective.py:IPO"


def test_the_gradient_vanishes_at_the_target_margin_and_points_to_it_elsewhere() -> None:
    objective, scores = IPO(beta=2000.0, tau=0.5), torch.tensor([[1.0, 0.0]])

    def slope(margin: float) -> float:
        # beta (r_chosen - r_rejected) = margin, all of it from the chosen error.
        policy = torch.tensor([[0.1 - 2 * margin / 2000, 0.1]], dtype=torch.float64, requires_grad=True)
        errors = Errors(policy, torch.full((1, 2), 0.1, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(objective(errors, scores).sum(), policy)
        return float(gradient[0, 0])

    assert slope(1.0) == pytest.approx(0, abs=1e-6)
    assert slope(0.5) > 0 > slope(1.5)


@pytest.mark.slow
def test_a_run_trains_with_it_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = {
        "config": "configs/tiny-sdxl/dpo.yaml",
        "objective": ADDRESS,
        "output_dir": str(tmp_path / "run"),
        "max_train_samples": "4",
        "train_batch_size": "2",
        "lr_warmup_steps": "0",
        "max_train_steps": "2",
        "logging_steps": "1",
        "validation_steps": "2",
        "num_inference_steps": "2",
    }
    assert main(["train", *(word for key, value in settings.items() for word in (f"--{key}", value))]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # Before the first step every margin is 0 and the loss is (1 / (2 tau))^2 = 1.
    assert lines[0]["loss"] == 1.0 and lines[1]["loss"] != 1.0
    # The run's own config names it, so that it can be read again.
    again = from_yaml(tmp_path / "run" / "config.yaml")
    assert type(again.objective).__name__ == "IPO" and again.objective.beta == 2000


def test_what_is_no_objective_is_told_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import dataclasses\n\n@dataclasses.dataclass(frozen=True)\nclass Mine:\n    beta: float = 1.0\n")
    lacking = "Mine lacks __call__, alarm, candidates, scaling: add them, as diffpref.types.Objective describes them"
    with pytest.raises(ValueError, match=lacking):
        from_mapping({"objective": f"{file}:Mine"}, "the test")
