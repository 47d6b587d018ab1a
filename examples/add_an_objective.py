"""A seventh method in one file: IPO (Azar et al. 2023, arXiv 2310.12036), on the embedded emoji model.

    python examples/add_an_objective.py

DPO's sigmoid never has enough of a margin; IPO asks for one of 1 / (2 tau) and no more. An objective sees one number
for each candidate and model, so this is all there is to write.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from diffpref.demo.embedded import embedded
from diffpref.training.config import TrainConfig
from diffpref.training.loop import train
from diffpref.training.settings import from_mapping, from_yaml
from diffpref.types import Errors


@dataclass(frozen=True)
class IPO:
    """(beta (r_chosen - r_rejected) - 1 / (2 tau))^2 (eq. 17, with the log-ratios scaled by beta)."""

    beta: float = 2000.0
    tau: float = 0.5

    def __call__(self, errors: Errors, scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        preference = (scores[:, 0] - scores[:, 1]).sign()
        r = errors.log_ratio
        return (self.beta * (preference * (r[:, 0] - r[:, 1])) - 1 / (2 * self.tau)).square() * preference.abs()


def settings(output: Path, steps: int) -> TrainConfig:
    """The quickstart's settings with another objective."""
    base = from_yaml(embedded("configs/tiny-sdxl/dpo.yaml"))
    changes = {
        "pretrained_model_name_or_path": str(embedded("assets/tiny-sdxl")),
        "dataset_name": str(embedded("assets/emoji-pairs/train.parquet")),
        "output_dir": str(output),
        "max_train_steps": steps,
        "learning_rate": 2e-4,
        "validation_steps": steps,
    }
    config = from_mapping(changes, "the example", base)
    return dataclasses.replace(config, objective=IPO())  # type: ignore[arg-type]


if __name__ == "__main__":
    print(train(settings(Path("runs/tiny-sdxl-ipo"), 50)) / "report.html")
