"""Which attention runs: each kernel is tried, the order is the GPU's, and what cannot run says why."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from diffpref.backbones import Checkpoint
from diffpref.backbones.adapters import ADAPTERS, Adapter
from diffpref.backbones.attention import BACKENDS, KERNELS, attention_report, choice, order, require, why_not
from diffpref.backbones.attention.processors import install_attention
from diffpref.backbones.attention.xformers_wheel import load_xformers
from diffpref.backbones.sdxl import SDXL
from diffpref.training.config import TrainConfig
from diffpref.training.loop import check_settings
from diffpref.training.models import Computing, attention_setting, build_models, check_machine
from diffpref.training.settings import from_mapping
from tests.backbones.test_attention import sdxl

CPU = torch.device("cpu")


def test_the_report_tells_what_runs_here() -> None:
    report = {one.backend: one for one in attention_report(CPU)}
    assert tuple(report) == BACKENDS
    assert report["flash"].works and report["math"].works and not report["flash"].reason
    for backend in ("fa3", "cudnn", "xformers", "efficient"):
        assert not report[backend].works and "needs a CUDA GPU" in report[backend].reason


def test_what_is_asked_for_and_cannot_run_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="attention: xformers cannot run on cpu in bfloat16 .*needs a CUDA GPU.*auto"):
        require("xformers", CPU, torch.bfloat16)
    require("auto", CPU, torch.bfloat16)
    network, _ = sdxl()
    with pytest.raises(ValueError, match="attention: cudnn cannot run"):
        install_attention(network, "cudnn", torch.float32)
    assert all(type(m.processor) is AttnProcessor2_0 for m in network.modules() if isinstance(m, Attention))


def test_a_kernel_with_wrong_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = KERNELS["flash"]
    monkeypatch.setattr("diffpref.backbones.attention.probing._REASONS", {})
    monkeypatch.setitem(KERNELS, "flash", lambda q, k, v: exact(q, k, v) * 1.2)
    assert "differ from float32 by" in why_not("flash", CPU, torch.float32, head_dim=8)
    with pytest.raises(ValueError, match="attention: flash cannot run .* differ from float32 by"):
        require("flash", CPU, torch.float32, head_dim=8)
    network, _ = sdxl()
    assert "attention: math," in install_attention(network, "auto", torch.float32)


def test_the_reason_is_the_exceptions_and_what_torch_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(q, k, v):
        import warnings

        warnings.warn("heads are too wide", stacklevel=1)
        raise RuntimeError("No available kernel.\n Aborting")

    monkeypatch.setattr("diffpref.backbones.attention.probing._REASONS", {})
    monkeypatch.setitem(KERNELS, "flash", refuse)
    assert why_not("flash", CPU, torch.float32, head_dim=8) == "No available kernel. Aborting (heads are too wide)"


def test_a_trial_does_not_touch_the_run_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may happen within a checkpointed forward under hooks, autocast and no gradient, and draws no random number."""
    monkeypatch.setattr("diffpref.backbones.attention.probing._REASONS", {})
    saved: list[torch.Tensor] = []
    state = torch.get_rng_state()
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        assert why_not("flash", CPU, torch.float32, head_dim=24) == ""
    assert not saved and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [
        ((9, 0), None, ["fa3", "cudnn", "flash"]),
        ((10, 0), None, ["cudnn", "flash"]),
        ((8, 0), None, ["flash", "efficient", "cudnn"]),
        ((12, 0), None, ["flash", "efficient", "cudnn"]),
        ((7, 5), None, ["flash", "efficient", "cudnn"]),
        ((9, 4), "6.4", ["flash", "efficient"]),
    ],
)
def test_the_order_of_each_gpu(
    capability: tuple[int, int], hip: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    found = order(torch.device("cuda"))
    assert list(found[: len(expected)]) == expected and found[-1] == "math"
    assert order(CPU) == ("flash", "math")


@pytest.mark.parametrize(("queries", "expected"), [(1023, "flash"), (1024, "cudnn")])
def test_cudnn_is_for_long_sequences_unless_asked_for(
    queries: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "order", lambda device: ("cudnn", "flash", "math"))
    monkeypatch.setattr(choice, "why_not", lambda *sizes, **named: "")
    q, k = torch.empty(1, queries, 1, 8), torch.empty(1, 77, 1, 8)
    assert choice.Attention("auto")._choose(q, k) == expected
    assert choice.Attention("cudnn")._choose(q, k) == "cudnn"
    kernel = choice.Attention("auto")
    assert kernel.prepare(CPU, torch.float32, [8]) == ("cudnn", "flash")


WHEEL = """
import json, sys
sys.path.insert(0, {runtime!r}) if {runtime!r} else None
from diffpref.backbones.adapters import ADAPTERS, Adapter
from diffpref.backbones.attention.xformers_wheel import load_xformers
try:
    ops, said = load_xformers(), ""
except ImportError as problem:
    ops, said = None, str(problem)
print(json.dumps([ops is not None, said]))
"""


def load_apart(runtime: str = "") -> tuple[bool, str]:
    done = subprocess.run(
        [sys.executable, "-c", WHEEL.format(runtime=runtime)], capture_output=True, text=True, check=True, timeout=600
    )
    loaded, said = json.loads(done.stdout.splitlines()[-1])
    return loaded, said


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not installed("xformers"), reason="xformers is not installed")
def test_the_wheel_of_xformers_loads_or_says_what_it_lacks() -> None:
    loaded, said = load_apart()
    lacks = not (torch.version.cuda or "").startswith("12.") and not installed("nvidia-cuda-runtime-cu12")
    assert loaded or ("xformers" in said and "torch" in said)
    if lacks and torch.version.cuda is not None:
        assert not loaded and "libcudart.so.12" in said and "pip install nvidia-cuda-runtime-cu12" in said


def test_without_xformers_the_reason_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.delitem(sys.modules, "xformers._cpp_lib", raising=False)
    with pytest.raises(ImportError, match="xformers"):
        load_xformers()


def test_flash_attention_3_is_named_where_it_is_missing() -> None:
    if importlib.util.find_spec("flash_attn_interface") is not None:
        pytest.skip("it is installed")
    q = torch.zeros(1, 2, 1, 8)
    with pytest.raises(ImportError, match="flash-attention 3 is not installed"):
        KERNELS["fa3"](q, q, q)


def settings(base: Checkpoint, **changes: object) -> TrainConfig:
    return from_mapping({"pretrained_model_name_or_path": base.source, "rank": 2, **changes}, "the test")


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_policy_and_reference_get_the_setting(base: Checkpoint, adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    value: Adapter = ADAPTERS[adapter]()
    models = build_models(SDXL(base), value, Accelerator(), computing=Computing(attention="math"), seed=0)
    assert models.lines[0].startswith("attention: math, ")
    networks = {models.network, getattr(models.reference, "network", models.network)}
    assert len(networks) == (1 if adapter == "lora" else 2)
    for network in networks:
        layers = [module for module in network.modules() if isinstance(module, Attention)]
        assert {layer.processor.kernel.setting for layer in layers} == {"math"}


def test_the_diffusers_scripts_flag_means_xformers(base: Checkpoint) -> None:
    flag = {"enable_xformers_memory_efficient_attention": True}
    assert (
        attention_setting(settings(base).run) == "auto" and attention_setting(settings(base, **flag).run) == "xformers"
    )
    assert attention_setting(settings(base, attention="flash").run) == "flash"
    assert attention_setting(settings(base, attention="xformers", **flag).run) == "xformers"
    with pytest.raises(ValueError, match="attention: flash and enable_xformers_.* two backends"):
        attention_setting(settings(base, attention="flash", **flag).run)


def test_what_cannot_run_is_refused_before_anything_is_read(base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    check_machine(settings(base, attention="math").run)
    with pytest.raises(ValueError, match="attention: efficient cannot run on cpu in bfloat16"):
        check_settings(settings(base, attention="efficient", mixed_precision="bf16", dataset_name="somewhere"))
