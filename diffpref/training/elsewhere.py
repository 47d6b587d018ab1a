"""Flags of other training scripts that are none of ours, and what they are here.

The scripts: Diffusion-DPO's train.py, and diffusers' train_diffusion_dpo*.py, train_dreambooth_lora*.py and
train_text_to_image*.py.
"""

from collections.abc import Mapping

_NO_CLASS = "preferences take the place of a subject and its class; leave it out."
_NO_PROMPTS = "every picture has its own caption in the data set; leave it out."
_NO_TEXT = "the text encoders are not trained here; leave it out."
_NO_PRODIGY = "there is no Prodigy here: set optimizer: adamw, adamw_8bit or adafactor."
_TIMES = "times are drawn as the backbone was trained; set timestep_shift: or timestep_density: where it has them."
_COLUMNS = "give columns: with the names of yours, as --columns prompt=my_caption chosen=better rejected=worse."
_CACHED = "latents and prompts are encoded once, ahead of training, and kept in cache_dir; leave it out."

ELSEWHERE: Mapping[str, str] = {
    "use_8bit_adam": "set optimizer: adamw_8bit.",
    "use_adafactor": "set optimizer: adafactor.",
    "prodigy_beta3": _NO_PRODIGY,
    "prodigy_decouple": _NO_PRODIGY,
    "prodigy_safeguard_warmup": _NO_PRODIGY,
    "prodigy_use_bias_correction": _NO_PRODIGY,
    "lr_num_cycles": "set lr_scheduler: cosine; its restarts and cycles cannot be chosen here.",
    "lr_power": "set lr_scheduler: polynomial; its power is 1 here.",
    "dataset_split_name": "set dataset_split: in its place.",
    "split": "set dataset_split: in its place.",
    "dataset_config_name": "give dataset_name: as a folder or files of that configuration.",
    "caption_column": _COLUMNS,
    "image_column": _COLUMNS,
    "choice_model": "set objective: and a data set with rewards or scores; `diffpref label` scores pictures.",
    "dreamlike_pairs_only": "filter the data set before; `diffpref data convert` writes what it reads as parquet.",
    "center_crop": "set crop: center, which is the default.",
    "random_crop": "set crop: random.",
    "no_hflip": "set random_flip: false, which is the default.",
    "image_interpolation_mode": "pictures are resized with Lanczos; leave it out.",
    "cache_latents": _CACHED,
    "pre_compute_text_embeddings": _CACHED,
    "vae_encode_batch_size": _CACHED,
    "dataloader_num_workers": _CACHED,
    "instance_data_dir": "give dataset_name: a folder with w/ and l/, or pairs in a table.",
    "instance_prompt": _NO_PROMPTS,
    "repeats": "max_train_steps says how long a run is; leave it out.",
    "class_data_dir": _NO_CLASS,
    "class_prompt": _NO_CLASS,
    "class_labels_conditioning": _NO_CLASS,
    "num_class_images": _NO_CLASS,
    "with_prior_preservation": _NO_CLASS,
    "prior_loss_weight": _NO_CLASS,
    "prior_generation_precision": _NO_CLASS,
    "sample_batch_size": _NO_CLASS,
    "num_validation_images": "set validation_prompts: one picture is drawn for each of them.",
    "validation_epochs": "set validation_steps: in its place.",
    "validation_images": "set validation_prompts: in its place.",
    "run_validation": "set validation_prompts: and pictures are drawn every validation_steps.",
    "tracker_project_name": "set tracker_name: in its place.",
    "logging_dir": "logs lie in the logs folder of output_dir; leave it out.",
    "local_rank": "the launcher says it to each process; leave it out.",
    "hard_skip_resume": "resuming reads no data twice; leave it out.",
    "sdxl": "the pipeline itself says what it is; leave it out.",
    "is_turbo": "SDXL-Turbo is read as SDXL, with times of all levels; leave it out.",
    "unet_init": "set network_weights: a folder with the network's weights.",
    "prediction_type": "the pipeline's scheduler says it; leave it out.",
    "loss_type": "set objective: dpo, smpo, rankdpo, d3po or ddo; examples/add_an_objective.py is IPO.",
    "snr_gamma": "the loss compares two models at each time, at weight 1; leave it out.",
    "debug_loss": "metrics.jsonl has the loss of every logging_steps; leave it out.",
    "do_edm_style_training": "the backbone's path follows from its scheduler; leave it out.",
    "precondition_outputs": "errors are those of the network's own prediction; leave it out.",
    "weighting_scheme": _TIMES,
    "mode_scale": _TIMES,
    "timestep_bias_begin": _TIMES,
    "timestep_bias_end": _TIMES,
    "timestep_bias_multiplier": _TIMES,
    "timestep_bias_portion": _TIMES,
    "timestep_bias_strategy": _TIMES,
    "enable_npu_flash_attention": "set attention: auto, or the name of a kernel.",
    "lora_layers": "set lora_target_modules: with the ends of the layers' names.",
    "lora_blocks": "set lora_target_modules: with the ends of the layers' names.",
    "lora_dropout": "a policy and a reference with dropout would differ by chance; leave it out.",
    "use_dora": "set adapter: lora; there is no DoRA here.",
    "output_kohya_format": "leave it out: the file that a run writes is read by diffusers.",
    "upcast_before_saving": "trained weights are kept and saved in float32; leave it out.",
    "train_text_encoder": _NO_TEXT,
    "text_encoder_lr": _NO_TEXT,
    "adam_weight_decay_text_encoder": _NO_TEXT,
    "text_encoder_use_attention_mask": _NO_TEXT,
    "tokenizer_name": "the pipeline's own tokenizer is used; leave it out.",
    "tokenizer_max_length": "set max_sequence_length: (SD3), or leave it out.",
}
"""A flag -> the key that does it here, or why there is none."""

MEANS: Mapping[str, str] = {
    "beta_dpo": (
        "beta_dpo is beta, as in Diffusion-DPO's code and diffusers' SDXL script; the beta_dpo of diffusers' "
        "train_diffusion_dpo.py (SD1.5) is half of it, for that script lacks a factor of 1/2: 2500 there is 5000 here"
    ),
}
"""A flag that means something else in one of the scripts -> what a run says when it is given."""
