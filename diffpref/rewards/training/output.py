"""What a reward's training run writes besides its checkpoints: the reward and a report."""

from pathlib import Path
from typing import TYPE_CHECKING

from diffpref.files import atomic
from diffpref.report.curves import read_metrics, series
from diffpref.report.page import Page
from diffpref.rewards.clip_hf import Processor
from diffpref.rewards.training.model import save_reward
from diffpref.rewards.training.tunings import Tuning

if TYPE_CHECKING:
    from transformers import CLIPModel

OUTPUTS = ("checkpoint-*", "model", "adapter", "metrics.jsonl", "report.html", "reward.yaml")
CURVES = {
    "Loss": ("loss", "validation/loss"),
    "Accuracy without ties": ("accuracy", "validation/accuracy"),
    "exp(logit_scale)": ("scale",),
    "Learning rate": ("learning_rate",),
    "Gradient's norm before clipping": ("grad_norm",),
}


def save_output(folder: Path, clip: "CLIPModel", tuning: Tuning, processor: Processor) -> None:
    """Write `model`, the reward in PickScore's format; `reward.yaml`, by which it is found; and LoRA's `adapter`."""
    import yaml

    save_reward(clip, tuning, processor, folder / "model")
    tuning.save(clip, folder)
    entry = {"reward": "pickscore", "checkpoint": str(folder / "model"), "processor": ""}
    atomic.write_text(folder / "reward.yaml", yaml.safe_dump(entry, sort_keys=False, allow_unicode=True))


def write_report(folder: Path, best: tuple[int, float] | None) -> None:
    """report.html from metrics.jsonl and config.yaml.

    Args:
        best: the step of the weights that were kept, and their accuracy on the validation pairs in [0, 1]."""
    metrics, _ = read_metrics(folder / "metrics.jsonl")
    page = Page(folder.resolve().name, "diffpref reward training")
    figures: list[tuple[str, str, str]] = []
    held_out = series(metrics, "validation/accuracy")
    if best is not None:
        before = f", {held_out[0][1]:.1%} before training" if held_out and held_out[0][0] == 0 else ""
        figures.append((f"{best[1]:.1%}", f"of validation pairs right at step {best[0]}, which was kept{before}", ""))
    for key, label in (("accuracy", "of the last training pairs right"), ("loss", "last training loss")):
        if values := series(metrics, key):
            text = f"{values[-1][1]:.1%}" if key == "accuracy" else f"{values[-1][1]:.4g}"
            figures.append((text, label, ""))
    if figures:
        page.figures(figures)
    for title, keys in CURVES.items():
        lines = {key: [(float(x), y) for x, y in series(metrics, key)] for key in keys}
        if any(len(line) > 1 for line in lines.values()):
            page.curves(title, {key: line for key, line in lines.items() if line})
    page.heading("config.yaml")
    page.code((folder / "config.yaml").read_text(encoding="utf-8"))
    page.write(folder / "report.html")
