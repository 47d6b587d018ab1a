"""The groups of a training run's settings that belong to no choice; their fields are flat keys.

Flag names are those of the diffusers scripts. Bounds stand at the fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt


@dataclass(frozen=True)
class Model:
    """The base model; it is also the reference."""

    pretrained_model_name_or_path: str = ""
    """A folder with a diffusers pipeline, the name of one on the hub, or a whole checkpoint in one safetensors file."""
    single_file_config: str | None = None
    """Of a base model in one file: the folder or name on the hub of the pipeline that it was made from, which has its
    configuration, tokenizers and scheduler; by default the one that diffusers knows for its layers."""
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder, for instance madebyollin/sdxl-vae-fp16-fix."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    variant: str | None = None
    """Variant of the weight files, for instance fp16."""
    network_weights: Path | None = None
    """Other weights of the trained network (unet or transformer): a run's output folder, a safetensors file, or a name
    on the hub."""
    base_adapters: tuple[str, ...] = ()
    """LoRA files that are merged into the base model, as FILE or FILE=WEIGHT, so that policy and reference both start
    from them. The run's LoRA file then holds them too."""
    max_sequence_length: int = 256
    """SD3: tokens of the T5 prompt, or of the zeros in its place where T5 is missing."""


@dataclass(frozen=True)
class Data:
    """Preferences: a file, a folder or a data set on the hub, in any schema that `diffpref data` reads.

    On-policy chains take prompts from it, self-play its best images as the real ones."""

    dataset_name: str = ""
    """A parquet, JSON, CSV or tar file, a folder of those, a folder with w/ and l/, or a name on the hub."""
    dataset_split: str = "train"
    """The split of a saved or hub data set."""
    max_train_samples: Annotated[int, Ge(1)] | None = None
    """Use the first rows only."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row, or leave it out, count it and say so."""
    resolution: Annotated[int, Ge(1)] = 1024
    """Side of the training images, in pixels; images are resized on the shorter side and cropped."""
    crop: Literal["center", "random"] = "center"
    """Where to crop; a random crop is drawn once for a group and shared by its images."""
    random_flip: bool = False
    """Mirror half of the groups; all images of a group are mirrored together."""
    proportion_empty_prompts: Annotated[float, Ge(0), Le(1)] = 0.2
    """Share of groups trained with the empty prompt, in [0, 1]; Diffusion-DPO uses 0.2."""
    encode_empty_prompt: bool = False
    """SDXL: what stands for no prompt in the training is "" through the text encoders, as in the official Diffusion-DPO
    code, and not the zeros that its pipeline uses; of dropped captions, and of guidance in the loss."""
    cache_dir: Path | None = None
    """Where latents and text embeddings are kept; by default `cache` in the output directory."""
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision of the kept latents and text embeddings."""


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

    alternatives: ClassVar = (("max_train_steps", "num_train_epochs"),)
    learning_rate: Annotated[float, Gt(0)] = 1e-5
    scale_lr: bool = False
    """Multiply the learning rate by the effective batch, as the published launchers do."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "constant_with_warmup"
    lr_warmup_steps: Annotated[int, Ge(0)] = 0
    max_train_steps: Annotated[int, Gt(0)] | None = 2000
    """Training steps; empty where num_train_epochs says how long the run is."""
    num_train_epochs: Annotated[float, Gt(0)] | None = None
    """Passes over the training groups, in place of max_train_steps."""
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
    checkpointing_steps: Annotated[int, Ge(1)] = 500
    checkpoints_total_limit: Annotated[int, Ge(1)] | None = None
    resume_from_checkpoint: str | None = None
    """`latest`, or the name of a checkpoint in the output directory."""
    logging_steps: Annotated[int, Ge(1)] = 10
    """Training steps between two lines of metrics.jsonl."""
    report_to: str = "none"
    """Trackers, comma separated: tensorboard, wandb, trackio. metrics.jsonl and report.html are always written."""
    tracker_name: str = "diffpref"


@dataclass(frozen=True)
class Hub:
    """Where a finished run is put on the Hugging Face hub. The token comes from `hf auth login` or HF_TOKEN."""

    push_to_hub: bool = False
    """Put the output directory on the hub when the run is done, without checkpoints and caches."""
    hub_model_id: str | None = None
    """The name of its page, OWNER/NAME or NAME; by default that of the output directory."""
    hub_private_repo: bool = False
    """A page that is made for it is private."""


@dataclass(frozen=True)
class LossEngine:
    """What a step's gradient may take, and where the reference's errors come from."""

    memory_budget_gib: Annotated[float, Ge(0)] = 0.0
    """GiB that a step may use beside weights, gradients and optimizer; 0 takes what is free."""
    reference_batch: Annotated[int, Ge(0)] = 0
    """Images of one forward pass of the reference. 0 takes the policy's, with which an untrained policy equals the
    reference to the last bit; 8 or 16 fill a GPU better, at a rounding of their own."""
    stored_reference: Annotated[int, Ge(0)] = 0
    """Keep the reference's errors of this many draws of t and noise for each group, and use the draws in turn; an epoch
    after these runs the reference no more, nor does another run with the same cache_dir. 0 draws anew at every step."""


@dataclass(frozen=True)
class Validation:
    """Images of fixed prompts and seeds while training."""

    validation_prompts: tuple[str, ...] = ()
    validation_steps: Annotated[int, Ge(1)] = 500
    num_inference_steps: Annotated[int, Ge(1)] = 25
    guidance_scale: float = 5.0
    negative_prompt: str | None = None
    """What guidance of these images leads away from; by default the pipeline's own, which is zeros for SDXL base."""
    validation_batch_size: Annotated[int, Ge(1)] = 4
    """Images that are sampled at once."""
    drift_samples: Annotated[int, Ge(0)] = 8
    """The base model's own samples, drawn once before the first step, on which drift is measured; 0 leaves it out."""
