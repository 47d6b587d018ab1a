"""The example of a new objective: its gradient vanishes at its own target margin, and the loop trains with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffpref.types import Errors
from examples.add_an_objective import IPO


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
def test_the_loop_trains_with_it(tmp_path: Path) -> None:
    # In a process of its own: the settings are typed for our objectives, and the tests check types at run time.
    code = "import sys; from pathlib import Path; from examples.add_an_objective import settings, train; "
    code += "train(settings(Path(sys.argv[1]), 20))"
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, cwd=Path(__file__).parents[1])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # Before the first step every margin is 0 and the loss is (1 / (2 tau))^2 = 1; the first summary is near that.
    assert lines[0]["loss"] == pytest.approx(1.0, abs=0.3)
    assert lines[-1]["rewards/margins"] > 0
    assert (run / "pytorch_lora_weights.safetensors").is_file()
