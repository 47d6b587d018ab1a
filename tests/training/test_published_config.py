"""The configs as they are published: each is valid and says where it comes from; one trains a random small SDXL."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from diffpref.backbones.adapters.full import Full
from diffpref.files.embedded import embedded
from diffpref.objectives import D3PO, DDO, DPO, RankDPO, SmPO
from diffpref.training.loop import check_settings, train
from diffpref.training.optimizers import Adafactor
from diffpref.training.settings import from_mapping, from_yaml, to_mapping
from tests.small_sdxl import SIZE, read_metrics, read_weights

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "sdxl" / "dpo.yaml"
BACKBONES = ("tiny-sdxl", "tiny-sd3", "tiny-edm", "sdxl", "sd15", "sd3", "edm")
CONFIGS = sorted(file for folder in BACKBONES for file in (ROOT / "configs" / folder).glob("*.yaml"))
METHODS = {
    "dpo": (DPO, "forward"),
    "dpo-full": (DPO, "forward"),
    "dpo-small": (DPO, "forward"),
    "dpo-turbo": (DPO, "forward"),
    "inpo": (DPO, "inversion"),
    "smpo": (SmPO, "inversion"),
    "rankdpo": (RankDPO, "forward"),
    "rankdpo-label": (RankDPO, "forward"),
    "rankdpo-syn-pic": (RankDPO, "forward"),
    "d3po": (D3PO, "transition"),
    "ddo": (DDO, "forward"),
}
"""The name of a config, without `-paper` -> its objective and probe."""
PAPER = "-paper"
"""The end of the names of configs that are the published run, and not one for a single GPU."""


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


each_config = pytest.mark.parametrize("file", CONFIGS, ids=_name)


def test_every_config_is_looked_at() -> None:
    """Training's, that is; those of labelling and of rewards have tests of their own."""
    others = ("accelerate", "label", "reward")
    found = {file for file in (ROOT / "configs").rglob("*.yaml") if file.parent.name not in others}
    assert found == set(CONFIGS)
    for backbone in ("tiny-sdxl", "tiny-sd3", "sdxl", "sd3"):
        names = {file.stem for file in CONFIGS if file.parent.name == backbone}
        assert {"dpo", "inpo", "smpo", "rankdpo", "d3po", "ddo"} <= names


@each_config
def test_a_config_says_what_it_is(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    head = text[: text.index("\nobjective:")].splitlines()
    assert len(head) >= 1 and all(line.startswith("#") for line in head)
    if not file.parent.name.startswith("tiny-"):
        assert re.search(r"arXiv \d{4}\.\d{5}|Salesforce", "\n".join(head)), "a paper or the official code"


@each_config
def test_a_config_survives_being_written_and_read(file: Path) -> None:
    config = from_yaml(file)
    written = yaml.safe_load(yaml.safe_dump(to_mapping(config)))
    assert from_mapping(written, "the test") == config


@each_config
def test_a_config_can_start(file: Path) -> None:
    # bf16 and none start on every machine, fp16, in which the official runs are, only where there is a GPU.
    config = from_yaml(file)
    if file.stem.endswith(PAPER):
        config = replace(config, run=replace(config.run, mixed_precision="no", allow_tf32=False))
    assert config.run.mixed_precision != "fp16"
    assert check_settings(config) == []


@each_config
def test_a_config_is_the_method_that_its_name_says(file: Path) -> None:
    config = from_yaml(file)
    objective, probe = METHODS[file.stem.removesuffix(PAPER)]
    assert type(config.objective) is objective and to_mapping(config)["probe"] == probe
    # A field that another method reads would be lost on this one without a word.
    lone = {
        "forward": ("noise_offset", "input_perturbation"),
        "inversion": ("inversion_steps", "renoise", "stored_inversions"),
        "transition": ("train_guidance_scale", "chain_eta"),
    }
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert not [key for kind, keys in lone.items() if kind != probe for key in keys if key in given]
    assert ("labels" in given) == (objective is D3PO)


@each_config
def test_what_a_config_names_in_the_repository_is_there(file: Path) -> None:
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert given["output_dir"] == f"runs/{file.parent.name}-{file.stem}", "no two configs write into one folder"
    texts = [value for value in given.values() if isinstance(value, str)]
    for asset in (text for text in texts if text.startswith("assets/")):
        assert embedded(asset).exists()
    for example in (text.partition(":")[0] for text in texts if text.startswith("examples/")):
        assert (ROOT / example).is_file()
    tiny = file.parent.name.startswith("tiny-")
    assert tiny == given["pretrained_model_name_or_path"].startswith("assets/")


@each_config
def test_published_numbers_stay_what_they_are(file: Path) -> None:
    """The papers' and official codes' numbers that the comments name, where the backbone is not a toy."""
    if file.parent.name.startswith("tiny-"):
        return
    config, name = from_yaml(file), file.stem.removesuffix(PAPER)
    side, channels = {"sdxl": (128, 4), "sd15": (64, 4), "sd3": (128, 16), "edm": (32, 3)}[file.parent.name]
    if isinstance(config.objective, DDO):
        # 0.01 to 0.1 on errors that are summed over the elements, up to the rounding of the comment.
        assert 0.0095 <= config.objective.beta / (2 * channels * side**2) <= 0.1
        assert 0.5 <= config.objective.alpha <= 6 and config.run.mixed_precision == "no"
    elif isinstance(config.objective, D3PO):
        assert (config.objective.beta, config.objective.clip) == (0.1, 0.1)
        assert config.source.chain_steps == 20 and config.optimization.learning_rate == 3e-5
        groups = config.source.prompts_per_round * config.source.chain_steps
        batch = config.optimization.train_batch_size * config.optimization.gradient_accumulation_steps
        assert groups == batch * config.optimization.max_train_steps, "a round is one pass over its pairs"
    elif name in ("inpo", "smpo"):
        assert config.objective.beta == 5000 and config.probe.inversion_steps == 10
        assert config.optimization.max_train_steps == {"inpo": 400, "smpo": 200}[name]
        smpo = name == "smpo"
        assert (config.probe.renoise, config.probe.average_estimates) == (int(smpo), smpo)


PAPERS = [file for file in CONFIGS if file.stem.endswith(PAPER)]
RATES = {"dpo": 2.048e-5, "dpo-turbo": 2.048e-5, "inpo": 1.024e-5, "smpo": 1.024e-5, "rankdpo": 1.024e-5}
"""The rate of the launchers' `--scale_lr`, over all pairs of a step."""


@pytest.mark.parametrize("file", PAPERS, ids=_name)
def test_a_published_run_says_where_each_value_is_from(file: Path) -> None:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    sources = r"  # .*(the paper|Syn-Pic|eq\.|algorithm|\.py|\.sh|not printed|this package's|pipeline's|base model's)"
    assert lines and not [line for line in lines if not re.search(sources, line)]
    config, name = from_yaml(file), file.stem.removesuffix(PAPER)
    if name == "d3po":
        assert config.source.rounds * config.source.prompts_per_round == 400 * 20
        assert config.probe.traits.eta == 1 and config.source.ddim_grid and config.source.timestep_fraction == 1
        return
    rates, processes = config.optimization, {2.048e-5: 16, 1.024e-5: 8}[RATES[name]]
    batch = rates.train_batch_size * rates.gradient_accumulation_steps * processes
    assert rates.scale_lr and rates.learning_rate * batch == pytest.approx(RATES[name])
    assert config.source.posterior == "fresh" and isinstance(config.adapter, Full)
    if name != "rankdpo":
        # The official scripts mirror each picture on its own, and encode "" where they drop a caption.
        assert config.data.random_flip and config.source.mirror_alone and not config.source.real_sizes
        assert config.data.encode_empty_prompt or config.data.proportion_empty_prompts == 0
    if name in ("inpo", "smpo"):
        assert config.probe.policy_inverts and config.probe.inverter and not config.probe.stored_inversions
        assert config.probe.inversion_eta == {"inpo": 0.1, "smpo": 0.0}[name]
    assert config.times.timesteps == ((249, 499, 749, 999) if name == "dpo-turbo" else ())
    assert config.times.zero_terminal_snr == (name == "dpo-turbo")


@pytest.mark.parametrize("adapter", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_the_sdxl_config_trains_a_small_sdxl(base: Path, pairs: Path, tmp_path: Path, adapter: str) -> None:
    published = from_yaml(CONFIG)
    small = {
        "pretrained_model_name_or_path": str(base),
        "pretrained_vae_model_name_or_path": None,
        "dataset_name": str(pairs),
        "resolution": SIZE,
        "adapter": adapter,
        **({"rank": 4} if adapter == "lora" else {}),
        "gradient_accumulation_steps": 2,
        "max_train_steps": 3,
        "logging_steps": 1,
        "num_inference_steps": 2,
        "output_dir": str(tmp_path / "run"),
    }
    config = from_mapping(small, "the test", published)
    assert config.objective.beta == 5000 and isinstance(config.optimizer, Adafactor)
    assert config.run.mixed_precision == "bf16"
    run = train(config, say=lambda line: None)
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    # The warm-up of 200 steps: the rate grows by a 200th a step.
    assert lines[-1]["learning_rate"] == pytest.approx(3 / 200 * config.optimization.learning_rate)
    if adapter == "lora":
        weights = read_weights(run)
        assert weights and all(tensor.isfinite().all() for tensor in weights.values())
        # In bfloat16 too, a switched-off adapter is the very network that the policy starts from.
        assert lines[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    else:
        assert (run / "unet" / "diffusion_pytorch_model.safetensors").is_file()
