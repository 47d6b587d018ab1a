"""`diffpref doctor`: an answer for every config, figures that add up, and the plan that training makes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffpref.backbones.adapters import LoRA, trainable
from diffpref.cli import main
from diffpref.counting import kept
from diffpref.counting.kept import facts
from diffpref.counting.steps import Setup, count_step, make_ready
from diffpref.doctor.architecture import read_architecture
from diffpref.doctor.needs import Asked, plan_for
from diffpref.doctor.run import ask
from diffpref.engine.modes import MODES, Auto, Joint
from diffpref.training.settings import from_mapping, from_yaml
from tests import small_sdxl

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("configs/*/*.yaml"))
TINY = ROOT / "configs/tiny-sdxl/dpo.yaml"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts of these tests, kept for all of them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(ROOT)


def small(folder: Path, **changes: object):
    """A config on the small SDXL."""
    values = {"pretrained_model_name_or_path": str(small_sdxl.save_pipeline(folder)), "resolution": 32}
    values |= {"rank": 4} if changes.get("adapter", "lora") == "lora" else {}
    return from_mapping({**values, "dataset_name": "none", **changes}, "the test")


def answer(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    file = tmp_path / "found.json"
    assert main(["doctor", "--config", config, "--gpu_memory_gib", "80", "--json", str(file)]) == 0
    assert "This machine:" in capsys.readouterr().out
    return json.loads(file.read_text())


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.startswith("configs/tiny")])
@pytest.mark.slow
def test_it_answers_for_a_tiny_config(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(config, tmp_path, capsys)["run"]["choice"].startswith("loss_mode ")


CHECKPOINTED = ("configs/sd3/rankdpo-paper.yaml", "configs/sdxl/rankdpo-paper.yaml")
"""Published runs that train all weights on lists of four, which an 80 GiB card holds with gradient checkpointing."""


@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.startswith("configs/tiny")])
def test_it_answers_at_once_for_every_other_config(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the counts that come with the package; the mode that it names is not one that the config forces."""
    monkeypatch.setattr(kept, "count", lambda *_: pytest.fail("not shipped: run python -m benchmarks.ship"))
    found = answer(config, tmp_path, capsys)["run"]
    if found["kind"] == "train":
        graph = "a batch in one graph" + ", with gradient checkpointing" * (config in CHECKPOINTED)
        assert found["choice"].startswith(f"loss_mode joint: {graph}; about")
        settings = from_yaml(ROOT / config)
        assert settings.mode == Auto() and not settings.run.gradient_checkpointing
    else:
        assert found["kind"] in ("label", "reward")


@pytest.mark.slow
def test_the_sizes_of_a_run(tmp_path: Path) -> None:
    config = small(tmp_path, optimizer="adamw", use_ema=True)
    needs = ask(config)[0]
    unet = small_sdxl.small_unet()
    parameters = sum(p.numel() for p in unet.parameters())
    # Rank 4 on the four projections of each attention: 4 * (inputs + outputs) weights.
    layers = [m for name, m in unet.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    trained = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    assert (needs.parameters, needs.trained) == (parameters, trained)
    assert needs.weights == 4 * parameters and needs.reference == 0
    assert needs.adapter == needs.gradients == needs.ema == 4 * trained and needs.optimizer == 8 * trained
    assert needs.resident == 4 * parameters + 5 * 4 * trained


@pytest.mark.slow
def test_full_fine_tuning_holds_a_reference(tmp_path: Path) -> None:
    needs = ask(small(tmp_path, adapter="full", mixed_precision="bf16", optimizer="adafactor"))[0]
    n = needs.parameters
    assert needs.trained == n and (needs.weights, needs.reference, needs.gradients) == (4 * n, 2 * n, 4 * n)
    assert needs.adapter == needs.optimizer == 0
    streamed = ask(small(tmp_path, adapter="full", mixed_precision="bf16", reference_memory="streamed"))[0]
    assert streamed.reference == 0


def test_a_mode_holds_what_a_real_step_holds(tmp_path: Path) -> None:
    """The graph that the doctor counts on meta tensors, against the same step's saved tensors on the CPU."""
    config = small(tmp_path, train_batch_size=1)
    needs = ask(config)[0]
    from diffpref.backbones.adapters.lora import attach_lora
    from diffpref.backbones.attention.processors import install_attention
    from diffpref.backbones.sdxl import SDXL
    from diffpref.engine.memory import candidate_bytes
    from diffpref.types import Probe

    network = small_sdxl.small_unet()
    attach_lora(network, 4, SDXL.lora_targets, seed=0)
    install_attention(network, "auto", torch.float32)
    model = SDXL.meta_backbone(network)
    x = torch.randn(1, 1, 4, 4, 4)
    cond = {"prompt_embeds": torch.randn(1, 8, 32), "pooled": torch.randn(1, 16), "time_ids": torch.ones(1, 6)}
    real = candidate_bytes(model, network, Probe(x, x, torch.ones(1), torch.ones(1), cond))
    # A GPU's attention keeps the same but for the sums of a few queries, which it rounds up.
    assert needs.work.candidate == pytest.approx(real, rel=0.1)
    assert sum(p.numel() for p in trainable(network)) == needs.trained


@pytest.mark.slow
def test_a_long_list_is_a_pair_and_scratches(tmp_path: Path) -> None:
    """What is scaled from a pair's count, against a count of the whole list."""
    setup = Setup(read_architecture(small_sdxl.save_pipeline(tmp_path), "small"), 32, LoRA(rank=4), precision="no")
    found = facts(setup, 1, 5)
    ready = make_ready(setup)
    for name, mode in MODES.items():
        whole, scaled = count_step(ready, mode(), groups=1, k=5), found.step(name, 1, 5)
        assert scaled.flops == whole.flops
        assert scaled.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.02)


def test_the_choice_is_training_s_own(tmp_path: Path) -> None:
    config = small(tmp_path, train_batch_size=4)
    needs = ask(config)[0]
    one, gib = needs.work.candidate, 2**30
    fixed = needs.resident - needs.gradients - needs.optimizer
    modes = []
    for candidates in (10, 5, 1.2):
        budget = candidates * one + needs.gradients
        gpu = (fixed + (budget + needs.gradients + needs.optimizer) / 0.9) / gib
        plan = plan_for(needs, gpu, Asked(Auto(), checkpointing=False))
        assert plan.budget == pytest.approx(budget, rel=1e-3) and plan.fits
        modes.append((plan.name, plan.micro_batch))
    assert (modes[0] == ("joint", 8) and modes[1] == ("deferred", 4) and modes[2][0] == "joint") or modes[2][1] < 4
    with pytest.raises(ValueError, match="loss_mode joint needs about"):
        plan_for(needs, fixed / gib + 1e-6, Asked(Joint(), checkpointing=False))


def test_counts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path)
    first = ask(config)[0]
    monkeypatch.setattr(kept, "count", lambda *_: pytest.fail("counted again"))
    assert ask(config)[0] == first


@pytest.mark.slow
def test_keys_of_the_command_line_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    model = str(small_sdxl.save_pipeline(tmp_path / "model"))
    changes = ["--pretrained_model_name_or_path", model, "--resolution", "32", "--rank", "8", f"--json={file}"]
    assert main(["doctor", "--config", str(TINY), *changes]) == 0
    out = capsys.readouterr().out
    assert "No GPU is here" in out or torch.cuda.is_available()
    found = json.loads(file.read_text())["run"]
    half = ask(from_mapping({"pretrained_model_name_or_path": model, "resolution": 32, "rank": 4}, "the test"))[0]
    assert found["trained"] == 2 * half.trained


def test_without_a_config_it_describes_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in out and "attention that runs: " in out and "GiB free" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--config"], "--config needs a YAML file"),
        (["--gpu_memory_gib", "none"], "--gpu_memory_gib must be a number above 0, got 'none'"),
        (["--gpu_memory_gib"], "--gpu_memory_gib needs a value"),
        (["--gpu"], "unknown argument '--gpu'"),
        (["--config", str(TINY), "--pretrained_model_name_or_path", "some/model"], "some/model: unknown architecture"),
        (["--config", str(TINY), "--pretrained_model_name_or_path", "tests"], "tests is no diffusers pipeline"),
    ],
)
def test_bad_input(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 1
    assert text in capsys.readouterr().err


def test_lora_of_edm_is_refused(tmp_path: Path) -> None:
    config = from_yaml(ROOT / "configs/tiny-edm/ddo.yaml")
    with pytest.raises(ValueError, match="trained as a whole"):
        ask(replace(config, adapter=LoRA()))[0]
