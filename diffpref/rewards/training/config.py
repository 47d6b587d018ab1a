"""The settings of a reward's training run, as typed groups; every field name is unique, so that keys are flat.

Names that the trainer of diffusion models also has (diffpref/training/config.py) mean the same here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from diffpref.rewards.training.labels import LABELS, Labels, OrderLabels
from diffpref.rewards.training.losses import LOSSES, Loss, PickScoreLoss
from diffpref.rewards.training.tunings import TUNINGS, FullTuning, Tuning
from diffpref.settings.axis import Axis
from diffpref.training.groups import Optimization
from diffpref.training.optimizers import OPTIMIZERS, AdamW, Optimizer


@dataclass(frozen=True)
class Base:
    """The CLIP that the run starts from."""

    pretrained_model_name_or_path: str = ""
    """A folder that CLIPModel.save_pretrained wrote, or a hub name, such as laion/CLIP-ViT-H-14-laion2B-s32B-b79K."""
    processor: str = ""
    """A folder or hub name of the tokenizer and preprocessor_config.json; "" for the base model's own."""


@dataclass(frozen=True)
class Pairs:
    """Preferences: a file, a folder or a data set on the hub, in any schema that `diffpref data` reads."""

    dataset_name: str = ""
    dataset_split: str = "train"
    columns: tuple[str, ...] = ()
    """Column names that differ from the schema's, as prompt=my_caption chosen=better; of the validation data too."""
    max_train_samples: Annotated[int, Ge(1)] | None = None
    """Use the first rows only."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row, or leave it out and count it. An image that cannot be decoded always stops the run."""
    lists: Literal["all", "best_worst"] = "all"
    """Which pairs a ranked list gives."""
    ties: Literal["keep", "drop"] = "keep"
    """Rows whose images are equally good: learn that (PickScore), or leave them out (HPSv2's data has none)."""
    dataloader_num_workers: Annotated[int, Ge(0)] = 0
    """Processes that decode images, for each process of the run; the pairs and their order do not depend on it."""


@dataclass(frozen=True)
class Towers:
    """How the CLIP is trained, whatever of its towers is."""

    train_logit_scale: bool = True
    """Learn the factor of the cosine, too. With loss hps it is kept in [1, 100] after each step, as published."""
    decay_vectors: bool = False
    """Apply weight decay to biases, norms and logit_scale too, as PickScore's code does and HPSv2's does not."""
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Run:
    """Where and how the run happens."""

    output_dir: Path = Path("diffpref-reward")
    """The reward is written to `model` in it, in PickScore's format."""
    overwrite_output_dir: bool = False
    """Delete what another run left in the output directory."""
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the two towers; scores and loss are float32 always."""
    allow_tf32: bool = False
    checkpointing_steps: Annotated[int, Ge(1)] = 500
    checkpoints_total_limit: Annotated[int, Ge(1)] | None = None
    resume_from_checkpoint: str | None = None
    """`latest`, or the name of a checkpoint in the output directory."""
    logging_steps: Annotated[int, Ge(1)] = 10
    """Training steps between two lines of metrics.jsonl."""
    report_to: str = "none"
    """Trackers, comma separated: tensorboard, wandb, trackio. metrics.jsonl and report.html are always written."""
    tracker_name: str = "diffpref-reward"


@dataclass(frozen=True)
class Validation:
    """Held-out pairs, on which the weights that are kept are chosen."""

    validation_dataset_name: str = ""
    """As dataset_name; without it the last weights are kept."""
    validation_split: str = "train"
    max_validation_samples: Annotated[int, Ge(1)] | None = None
    validation_steps: Annotated[int, Ge(1)] = 100
    validation_batch_size: Annotated[int, Ge(1)] = 16
    """Pairs that pass through the towers at once, for each process."""


@dataclass(frozen=True)
class RewardConfig:
    """A training run of a reward."""

    base: Base = field(default_factory=Base)
    pairs: Pairs = field(default_factory=Pairs)
    labels: Annotated[Labels, Axis("labels", LABELS)] = field(default_factory=OrderLabels)
    loss: Annotated[Loss, Axis("loss", LOSSES)] = field(default_factory=PickScoreLoss)
    tuning: Annotated[Tuning, Axis("adapter", TUNINGS)] = field(default_factory=FullTuning)
    towers: Towers = field(default_factory=Towers)
    optimizer: Annotated[Optimizer, Axis("optimizer", OPTIMIZERS)] = field(default_factory=AdamW)
    optimization: Optimization = field(default_factory=Optimization)
    run: Run = field(default_factory=Run)
    validation: Validation = field(default_factory=Validation)
