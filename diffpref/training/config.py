"""The settings of a training run, as a record of typed values; `settings.py` reads and writes them.

Flag names are those of the diffusers scripts. Every field name is unique over all groups, so that keys are flat
in YAML and on the command line. The loop sees these frozen dataclasses and nothing else of how they were given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from diffpref.backbones import Times
from diffpref.backbones.adapters import ADAPTERS, Adapter, LoRA
from diffpref.engine.modes import LOSS_MODES, Auto, Mode
from diffpref.objectives import DPO, OBJECTIVES
from diffpref.probes import PROBES, Forward, ProbeChoice
from diffpref.settings.axis import Axis
from diffpref.training.optimizers import OPTIMIZERS, AdamW, Optimizer
from diffpref.types import Objective


@dataclass(frozen=True)
class Model:
    """The base model; it is also the reference."""

    pretrained_model_name_or_path: str = ""
    """A folder with a diffusers pipeline, or the name of one on the hub."""
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder, for instance madebyollin/sdxl-vae-fp16-fix."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    variant: str | None = None
    """Variant of the weight files, for instance fp16."""
    network_weights: Path | None = None
    """A folder with other weights of the trained network (unet or transformer), such as a run's output."""
    max_sequence_length: int = 256
    """SD3: tokens of the T5 prompt, or of the zeros in its place where T5 is missing."""


@dataclass(frozen=True)
class Data:
    """Preferences: a file, a folder or a data set on the hub, in any schema that `diffpref data` reads.

    D3PO takes prompts from it, DDO its best pictures as the real ones."""

    dataset_name: str = ""
    """A parquet, JSON, CSV or tar file, a folder of those, a folder with w/ and l/, or a name on the hub."""
    dataset_split: str = "train"
    """The split of a saved or hub data set."""
    columns: tuple[str, ...] = ()
    """Column names that differ from the schema's, as prompt=my_caption chosen=better."""
    max_train_samples: int | None = None
    """Use the first rows only."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row, or leave it out, count it and say so."""
    size_mismatch: Literal["error", "crop"] = "error"
    """Pictures of different sizes in one row: stop, or resize and crop each to the resolution."""
    lists: Literal["all", "best_worst"] = "all"
    """Which pairs a ranked list gives, where the objective compares pairs."""
    given_scores: Literal["rewards", "scores"] = "rewards"
    """Rewards are scaled as the objective asks (SmPO, RankDPO); scores in [0, 1] are taken as they are."""
    resolution: int = 1024
    """Side of the training pictures, in pixels; pictures are resized on the shorter side and cropped."""
    crop: Literal["center", "random"] = "center"
    """Where to crop; a random crop is drawn once for a group and shared by its pictures."""
    random_flip: bool = False
    """Mirror half of the groups; all pictures of a group are mirrored together."""
    proportion_empty_prompts: float = 0.2
    """Share of groups trained with the empty prompt, in [0, 1]; Diffusion-DPO uses 0.2."""
    cache_dir: Path | None = None
    """Where latents and text embeddings are kept; by default `cache` in the output directory."""
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision of the kept latents and text embeddings."""


@dataclass(frozen=True)
class Rounds:
    """The loop around the loop, for objectives that learn from the model's own samples."""

    rounds: int = 1
    """D3PO: sample, label, train, this many times. DDO: rounds of self-play, each from the best of the last."""
    labels: str = ""
    """D3PO: who labels: `person`, or a reward: emoji_hand, or module:function of (pictures, prompts)."""
    prompts_per_round: int = 64
    """D3PO: prompts that are sampled in a round; each gives pairs of chains from one start."""
    chains_per_prompt: int = 2
    """D3PO: chains of each prompt; all their pairs are labelled. The paper's people saw 7."""
    chain_steps: int = 20
    """D3PO: noisy steps of a chain."""
    samples_per_round: int = 0
    """DDO: the reference's own samples in a round; 0 means one for each real picture."""
    measure: str = ""
    """DDO: what chooses the best step of a round: fashion_frechet, or module:function of (pictures, prompts), where
    lower is better. Without it the last step is taken."""
    measure_samples: int = 2000
    """DDO: samples for each measurement, taken every `validation_steps`."""


@dataclass(frozen=True)
class Average:
    """The average of the trained weights over the steps."""

    use_ema: bool = False
    """Keep an exponential moving average of the trained weights; samples and the output are the average's."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Share of the old average that each training step keeps, in [0, 1)."""


@dataclass(frozen=True)
class Optimization:
    """The rate, its schedule and the batch, whatever the optimizer."""

    learning_rate: Annotated[float, Gt(0)] = 1e-5
    scale_lr: bool = False
    """Multiply the learning rate by the effective batch, as the published launchers do."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "constant_with_warmup"
    lr_warmup_steps: Annotated[int, Ge(0)] = 0
    max_train_steps: Annotated[int, Gt(0)] = 2000
    train_batch_size: Annotated[int, Gt(0)] = 1
    """Groups of one forward pass, for each process."""
    gradient_accumulation_steps: Annotated[int, Gt(0)] = 1


@dataclass(frozen=True)
class Run:
    """Where and how the run happens."""

    output_dir: Path = Path("diffpref-run")
    overwrite_output_dir: bool = False
    """Delete what another run left in the output directory (the cache stays)."""
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    """Keep it on. Without this, loss_mode: auto turns it on where nothing faster fits the memory."""
    allow_tf32: bool = False
    attention: Literal["auto", "fa3", "cudnn", "flash", "xformers", "efficient", "math"] = "auto"
    """The attention kernel; auto takes the fastest that runs on this device, and the log names it."""
    enable_xformers_memory_efficient_attention: bool = False
    """The diffusers scripts' name for attention: xformers."""
    compile_blocks: bool = False
    """Compile the network's blocks at their first call: a minute or two, then less memory and faster steps."""
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    """`latest`, or the name of a checkpoint in the output directory."""
    logging_steps: int = 10
    """Training steps between two lines of metrics.jsonl."""
    report_to: str = "none"
    """Trackers, comma separated: tensorboard, wandb, trackio. metrics.jsonl and report.html are always written."""
    tracker_name: str = "diffpref"


@dataclass(frozen=True)
class LossEngine:
    """What a step's gradient may take, and where the reference's errors come from."""

    memory_budget_gib: Annotated[float, Ge(0)] = 0.0
    """GiB that a step may use beside weights, gradients and optimizer; 0 takes what is free."""
    reference_batch: Annotated[int, Ge(0)] = 0
    """Pictures of one forward pass of the reference. 0 takes the policy's, with which an untrained policy equals the
    reference to the last bit; 8 or 16 fill a GPU better, at a rounding of their own."""
    stored_reference: Annotated[int, Ge(0)] = 0
    """Keep the reference's errors of this many draws of t and noise for each group, and use the draws in turn; an epoch
    after these runs the reference no more, nor does another run with the same cache_dir. 0 draws anew at every step."""


@dataclass(frozen=True)
class Validation:
    """Pictures of fixed prompts and seeds while training."""

    validation_prompts: tuple[str, ...] = ()
    validation_steps: int = 500
    num_inference_steps: int = 25
    guidance_scale: float = 5.0
    validation_batch_size: int = 4
    """Pictures that are sampled at once."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The objective's own fields (beta and what else it has) are flags too."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    objective: Annotated[Objective, Axis("objective", OBJECTIVES)] = field(default_factory=DPO)
    probe: Annotated[ProbeChoice, Axis("probe", PROBES)] = field(default_factory=Forward)
    times: Times = field(default_factory=Times)
    rounds: Rounds = field(default_factory=Rounds)
    adapter: Annotated[Adapter, Axis("adapter", ADAPTERS)] = field(default_factory=LoRA)
    average: Average = field(default_factory=Average)
    optimizer: Annotated[Optimizer, Axis("optimizer", OPTIMIZERS)] = field(default_factory=AdamW)
    optimization: Optimization = field(default_factory=Optimization)
    run: Run = field(default_factory=Run)
    mode: Annotated[Mode | Auto, Axis("loss_mode", LOSS_MODES)] = field(default_factory=Auto)
    engine: LossEngine = field(default_factory=LossEngine)
    validation: Validation = field(default_factory=Validation)


ALIASES: Mapping[str, str] = {
    "beta_dpo": "beta",
    "train_data_dir": "dataset_name",
    "validation_prompt": "validation_prompts",
}
"""Other scripts' names for our keys."""
METHODS: Mapping[tuple[str, str], Mapping[str, object]] = {
    ("objective", "inpo"): {"objective": "dpo", "probe": "inversion"},
    ("method", "dpo"): {"objective": "dpo", "probe": "forward"},
    ("method", "inpo"): {"objective": "dpo", "probe": "inversion"},
    ("method", "smpo"): {"objective": "smpo", "probe": "inversion", "renoise": 1, "average_estimates": True},
    ("method", "rankdpo"): {"objective": "rankdpo", "probe": "forward"},
    ("method", "d3po"): {"objective": "d3po", "probe": "transition"},
    ("method", "ddo"): {"objective": "ddo", "probe": "forward"},
}
"""Names of the papers' methods, and the choices that they stand for; a key that is given itself stays as it is."""
