"""Settings from the command line: over the file, aliases, choices and presets, messages."""

import re
from pathlib import Path

import pytest

from diffpref.objectives import OBJECTIVES
from diffpref.training.config import ALIASES, TrainConfig
from diffpref.training.elsewhere import ELSEWHERE
from diffpref.training.optimizers import Adafactor
from diffpref.training.settings import READER, from_mapping, from_yaml, parse, to_mapping

ROOT = Path(__file__).parent.parent


def test_the_command_line_goes_over_the_file_wherever_config_stands(written) -> None:
    path = written("beta: 100\nsft: 1\nrank: 8\nvalidation_prompts: [x]\noptimizer: adafactor")
    for line in (
        ["--config", str(path), "--beta", "200", "--rank", "16"],
        ["--beta", "200", f"--config={path}", "--rank=16"],
        ["--beta_dpo", "200", "--rank", "16", "--config", str(path)],
    ):
        config = parse(line)
        assert (config.objective.beta, config.objective.sft, config.adapter.rank) == (200.0, 1.0, 16)
        assert config.optimizer == Adafactor() and config.validation.validation_prompts == ("x",)
    assert parse(["--config", str(path)]) == from_yaml(path)
    assert parse([]) == TrainConfig()


def test_flags_of_every_kind() -> None:
    config = parse(
        "--anchor 1.5 --learning_rate 1e-6 --random_flip True --mixed_precision no --cache_dir c --output-dir o"
        " --train_data_dir d --max_train_samples 5 --validation_prompts a b --resume_from_checkpoint None".split()
    )
    assert config.objective.anchor == 1.5 and config.optimization.learning_rate == 1e-6
    assert config.data.random_flip and config.run.mixed_precision == "no" and config.data.dataset_name == "d"
    assert (config.data.cache_dir, config.run.output_dir) == (Path("c"), Path("o"))
    assert config.data.max_train_samples == 5 and config.run.resume_from_checkpoint is None
    assert config.validation.validation_prompts == ("a", "b")


@pytest.mark.parametrize("alias", sorted(ALIASES))
@pytest.mark.parametrize("dashes", [False, True])
def test_aliases_are_flags_too(alias: str, dashes: bool) -> None:
    flag = alias.replace("_", "-") if dashes else alias
    assert parse([f"--{flag}", "3"]) == parse([f"--{flag}=3"]) == parse([f"--{ALIASES[alias]}", "3"]) != TrainConfig()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--betta", "1"], "the command line: unknown key 'betta'. Perhaps you meant 'beta'"),
        (["--gamma", "1"], "gamma belongs to objective: smpo"),
        (["--adapter", "dora"], "adapter must be one of lora, full, .*Perhaps you meant 'lora'"),
        (["--optimizer", "adafactor", "--adam_beta1", "0.5"], "adam_beta1 belongs to optimizer: adamw"),
        (["--rank", "x"], "rank must be a whole number, got 'x'"),
        (["--objective", "smpo", "--gamma", "-5"], "gamma must be above 0, got -5.0"),
        (["--rank"], "--rank needs a value"),
        (["--rank", "3", "4"], "--rank needs one value, got 3 4"),
        (["--random_flip", "maybe"], "--random_flip needs|random_flip must be true or false, got 'maybe'"),
        (["rank", "3"], "'rank' stands behind no flag: write --key value"),
        (["--mixed_precision", "bf17"], "mixed_precision must be one of no, fp16, bf16, got 'bf17'"),
        (["--lora_dropout", "0.1"], "unknown key 'lora_dropout': a policy and a reference with dropout"),
        (["--use_8bit_adam"], "unknown key 'use_8bit_adam': set optimizer: adamw_8bit"),
        (["--is-turbo"], "unknown key 'is_turbo': "),
    ],
)
def test_flags_have_the_messages_of_the_keys(line: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(line)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_can_be_chosen_and_has_its_own_flags(name: str, written) -> None:
    assert parse(["--objective", name]) == from_yaml(written(f"objective: {name}"))
    config = parse(["--config", str(written(f"objective: {name}")), "--beta", "7"])
    assert type(config.objective) is OBJECTIVES[name] and config.objective.beta == 7
    assert from_mapping(to_mapping(config), "again") == config


@pytest.mark.parametrize(
    ("line", "objective", "probe"),
    [
        (["--objective", "inpo"], "dpo", "inversion"),
        (["--method", "inpo"], "dpo", "inversion"),
        (["--method", "smpo"], "smpo", "inversion"),
        (["--method", "d3po"], "d3po", "transition"),
    ],
)
def test_the_names_of_the_papers_methods_stand_for_their_choices(line: list[str], objective: str, probe: str) -> None:
    flat = to_mapping(parse(line))
    assert (flat["objective"], flat["probe"]) == (objective, probe)
    assert parse([*line, "--beta", "3"]).objective.beta == 3.0
    if "smpo" in line:
        assert (flat["renoise"], flat["average_estimates"]) == (1, True)


def test_an_objective_of_a_file_is_written_so_that_it_is_found_again(tmp_path: Path) -> None:
    address = "examples/add_an_objective.py:IPO"
    config = from_mapping({"objective": str(ROOT / address), "beta": 9}, "here")
    assert type(config.objective).__name__ == "IPO" and config.objective.beta == 9
    assert to_mapping(config)["objective"] == str(ROOT / address)
    assert from_mapping(to_mapping(config), "again") == config
    with pytest.raises(ValueError, match="here: objective .*must be a frozen dataclass"):
        from_mapping({"objective": "os.path:join"}, "here")


def test_config_without_a_file() -> None:
    with pytest.raises(ValueError, match="--config needs a YAML file"):
        parse(["--rank", "3", "--config"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--random_flip"], True),
        (["--random_flip", "--rank", "4"], True),
        (["--random-flip", "False"], False),
        (["--random_flip=true"], True),
    ],
)
def test_a_flag_may_stand_alone_as_in_the_diffusers_scripts(arguments: list[str], expected: bool) -> None:
    assert parse(arguments).data.random_flip is expected


def test_the_objective_is_a_flag_and_keeps_the_configs_fields(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("objective: dpo\nbeta: 123\n")
    assert parse(["--config", str(file), "--objective", "dpo"]).objective.beta == 123
    with pytest.raises(ValueError, match="objective must be one of"):
        parse(["--objective", "ppo"])


def test_the_meaning_of_beta_dpo_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """diffusers' SD1.5 script has no factor of one half in its logit; its SDXL script and the official code have."""
    parse(["--beta_dpo", "2500"])
    assert "beta_dpo of diffusers' train_diffusion_dpo.py (SD1.5) is half of it" in capsys.readouterr().out
    parse(["--beta", "2500"])
    assert not capsys.readouterr().out


SCRIPTS = """adam_weight_decay_text_encoder cache_latents caption_column center_crop choice_model class_data_dir
    class_labels_conditioning class_prompt dataloader_num_workers dataset_config_name dataset_split_name debug_loss
    do_edm_style_training dreamlike_pairs_only enable_npu_flash_attention hard_skip_resume image_column
    image_interpolation_mode instance_data_dir instance_prompt is_turbo local_rank logging_dir lora_blocks lora_dropout
    lora_layers loss_type lr_num_cycles lr_power mode_scale no_hflip num_class_images num_validation_images
    output_kohya_format pre_compute_text_embeddings precondition_outputs prediction_type prior_generation_precision
    prior_loss_weight prodigy_beta3 prodigy_decouple prodigy_safeguard_warmup prodigy_use_bias_correction random_crop
    repeats run_validation sample_batch_size sdxl snr_gamma split text_encoder_lr text_encoder_use_attention_mask
    timestep_bias_begin timestep_bias_end timestep_bias_multiplier timestep_bias_portion timestep_bias_strategy
    tokenizer_max_length tokenizer_name tracker_project_name train_text_encoder unet_init upcast_before_saving
    use_8bit_adam use_adafactor use_dora vae_encode_batch_size validation_epochs validation_images weighting_scheme
    with_prior_preservation""".split()
"""Flags of diffusers' DPO, DreamBooth LoRA and text-to-image scripts (0.38) and of Diffusion-DPO's that we lack."""


@pytest.mark.parametrize("flag", SCRIPTS)
def test_a_flag_of_the_other_scripts_names_ours_or_says_why_there_is_none(flag: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key {flag!r}: ") as refusal:
        parse([f"--{flag}", "1"])
    assert "\n" not in str(refusal.value) and "Perhaps" not in str(refusal.value)


def test_the_keys_that_other_scripts_flags_point_at_exist() -> None:
    for text in ELSEWHERE.values():
        for key in re.findall(r"(?:set|give|is) ([a-z_]+):", text):
            assert key in READER.all_keys(), (key, text)
