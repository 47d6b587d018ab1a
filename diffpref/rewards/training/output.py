"""What a reward's training run writes beside its checkpoints: provenance, the reward, metrics, a report."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from diffpref.files import atomic
from diffpref.report.curves import read_metrics, series
from diffpref.report.page import Page
from diffpref.rewards.clip_hf import Processor
from diffpref.rewards.training.config import RewardConfig, Run
from diffpref.rewards.training.model import save_adapter, save_reward
from diffpref.rewards.training.settings import to_mapping
from diffpref.run.checkpoint import find_checkpoint
from diffpref.run.environment import describe

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


def check_output(run: Run) -> Path | None:
    """The checkpoint to go on from, if any; raises ValueError where the folder holds another run."""
    if run.resume_from_checkpoint is not None:
        return find_checkpoint(run.output_dir, run.resume_from_checkpoint)
    if (run.output_dir / "config.yaml").exists() and not run.overwrite_output_dir:
        raise ValueError(
            f"{run.output_dir} holds another run. Continue it with --resume_from_checkpoint latest, choose another "
            "--output_dir, or delete what it wrote with --overwrite_output_dir."
        )
    return None


def claim_output(config: RewardConfig, *, fresh: bool) -> None:
    """Make the output directory this run's, and write config.yaml and environment.json.

    Args:
        fresh: whether what another run wrote there goes; not so where a checkpoint of it is continued."""
    import yaml

    folder = config.run.output_dir
    if fresh and (folder / "config.yaml").exists():
        for path in [path for pattern in OUTPUTS for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))
    atomic.write_json(folder / "environment.json", describe())


def save_output(config: RewardConfig, clip: "CLIPModel", processor: Processor) -> None:
    """Write `model`, the reward in PickScore's format; `reward.yaml`, by which it is found; and LoRA's `adapter`."""
    import yaml

    folder = config.run.output_dir
    save_reward(clip, processor, folder / "model")
    if config.tuning.adapter == "lora":
        save_adapter(clip, folder / "adapter")
    found = {"reward": "pickscore", "checkpoint": str(folder / "model"), "processor": ""}
    atomic.write_text(folder / "reward.yaml", yaml.safe_dump(found, sort_keys=False, allow_unicode=True))


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
