"""Attention: diffusers' own results and gradients, kernels that are tried first, reasons that are kept."""

import copy
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch.nn.functional import scaled_dot_product_attention

from diffpref.backbones import Checkpoint, find_family
from diffpref.backbones.attention import BACKENDS, KERNELS, attention_report, choice, order, require, why_not
from diffpref.backbones.attention import kernels as kernels_module
from diffpref.backbones.attention.processors import JointAttention, UNetAttention, install_attention
from diffpref.backbones.attention.xformers_wheel import load_xformers
from diffpref.config import TrainConfig
from diffpref.settings import from_mapping
from diffpref.training.models import attention_setting, build_models, check_machine
from diffpref.training.prepare import check_settings
from tests import small_edm, small_sd3, small_sd15, small_sdxl

CPU = torch.device("cpu")


def sdxl() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    added = {"text_embeds": torch.randn(2, 16), "time_ids": torch.ones(2, 6)}
    inputs = {"encoder_hidden_states": torch.randn(2, 8, 32), "added_cond_kwargs": added}
    return small_sdxl.small_unet(), {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([10, 900]), **inputs}


def sd15() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    inputs = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([10, 900])}
    return small_sd15.small_unet(), {**inputs, "encoder_hidden_states": torch.randn(2, 8, 16)}


def sd3(**changes: object) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    network = SD3Transformer2DModel.from_config({**small_sd3.small_transformer().config, **changes})
    inputs = {"hidden_states": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 5, 32)}
    return network, {**inputs, "pooled_projections": torch.randn(2, 32), "timestep": torch.tensor([10.0, 900.0])}


def edm() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    labels = torch.tensor([0, 2])
    return small_edm.small_unet(), {"sample": torch.randn(2, 4, 8, 8), "timestep": labels, "class_labels": labels}


MODELS: dict[str, Callable[[], tuple[torch.nn.Module, dict[str, torch.Tensor]]]] = {
    "sdxl": sdxl,
    "sd15": sd15,
    "edm": edm,
    "sd3": sd3,
    "sd3 without norms": lambda: sd3(qk_norm=None),
    "sd35": lambda: sd3(dual_attention_layers=(0,)),
}


def run(network: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The output, and the gradients of its mean square by every parameter that has one and by the input."""

    def cast(value):
        if isinstance(value, dict):
            return {name: cast(part) for name, part in value.items()}
        return value.to(dtype) if value.is_floating_point() else value

    given = cast(inputs)
    first = next(iter(given))
    given[first].requires_grad_()
    network.to(dtype).zero_grad()
    output = network(**given, return_dict=False)[0]
    output.square().mean().backward()
    return [output.detach(), given[first].grad, *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", MODELS)
def test_output_and_gradients_are_diffusers_own(name: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    network, inputs = MODELS[name]()
    ours = copy.deepcopy(network)
    line = install_attention(ours, "auto", dtype)
    layers = [module for module in ours.modules() if isinstance(module, Attention)]
    assert layers and all(isinstance(layer.processor, UNetAttention | JointAttention) for layer in layers)
    assert f"{len(layers)} layers" in line
    expected, found = run(network, inputs, dtype), run(ours, inputs, dtype)
    assert len(expected) == len(found) > 10
    for exact, value in zip(expected, found, strict=True):
        # Relative to the tensor's largest value: single values may be the rest of a cancellation.
        assert (value - exact).abs().max() <= tolerance * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", ["sdxl", "sd35"])
def test_under_autocast_as_well(name: str) -> None:
    torch.manual_seed(0)
    network, inputs = MODELS[name]()
    ours = copy.deepcopy(network)
    install_attention(ours, "auto", torch.bfloat16)
    results = []
    for each in (network, ours):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(run(each, inputs, torch.float32))
    for exact, value in zip(*results, strict=True):
        # A unit of bfloat16 is 0.008 of the value; sums over a layer's inputs round a few times.
        assert (value - exact).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.parametrize("backend", ["flash", "math"])
@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_forced_backend_is_the_one_that_runs(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = MODELS[name]()
    calls: list[str] = []

    def counted(one: str) -> Callable[..., torch.Tensor]:
        kernel = KERNELS[one]
        return lambda q, k, v: (calls.append(one), kernel(q, k, v))[1]

    install_attention(network, backend, torch.float32)
    monkeypatch.setattr(choice, "KERNELS", {one: counted(one) for one in BACKENDS})
    with torch.no_grad():
        network(**inputs)
    assert set(calls) == {backend}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["flash", "math"])
def test_kernels_are_softmax_of_the_products(backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 3, 8), torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8)
    weights = torch.einsum("bshd,bzhd->bhsz", q, k).div(8**0.5).softmax(-1)
    expected = torch.einsum("bhsz,bzhd->bshd", weights, v)
    found = KERNELS[backend](q.to(dtype), k.to(dtype), v.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.03 if dtype == torch.bfloat16 else 1e-5, rtol=0)


def test_the_switches_of_torch_are_as_before() -> None:
    states = [enabled() for enabled, _ in kernels_module._SWITCHES.values()]
    q = torch.randn(1, 4, 1, 8)
    KERNELS["math"](q, q, q)
    with pytest.raises(RuntimeError):
        KERNELS["efficient"](q, q, q)
    assert [enabled() for enabled, _ in kernels_module._SWITCHES.values()] == states


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


def test_checkpointing_recomputes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = sdxl()
    install_attention(network, "auto", torch.float32)
    monkeypatch.setattr("diffpref.backbones.attention.probing._REASONS", {})
    expected = run(network, inputs, torch.float32)
    network.train()
    network.enable_gradient_checkpointing()
    found = run(network, inputs, torch.float32)
    for exact, value in zip(expected, found, strict=True):
        torch.testing.assert_close(value, exact)


def test_queries_in_float32_beside_half_values(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = choice.Attention("auto")
    q, k, v = torch.randn(1, 4, 1, 8), torch.randn(1, 4, 1, 8), torch.randn(1, 4, 1, 8).bfloat16()
    found = kernel(q, k, v)
    expected = scaled_dot_product_attention(*(x.bfloat16().transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.equal(found, expected)


def test_other_processors_stay_and_are_counted() -> None:
    network, _ = sdxl()
    assert isinstance(network, UNet2DConditionModel)
    processors = dict(network.attn_processors)
    place = next(name for name in processors if "attn2" in name)
    processors[place] = IPAdapterAttnProcessor2_0(hidden_size=32, cross_attention_dim=32)
    network.set_attn_processor(processors)
    line = install_attention(network, "auto", torch.float32)
    assert "1 layers keep diffusers' IPAdapterAttnProcessor2_0" in line
    assert isinstance(network.attn_processors[place], IPAdapterAttnProcessor2_0)


def test_a_mask_is_kept() -> None:
    torch.manual_seed(0)
    network, inputs = sd15()
    ours = copy.deepcopy(network)
    install_attention(ours, "auto", torch.float32)
    mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5])
    expected, found = (each(**inputs, encoder_attention_mask=mask).sample for each in (network, ours))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[1], ours(**inputs).sample[1])


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


def test_on_meta_tensors_what_a_gpu_saves() -> None:
    """Queries, keys, values, the output and one number a query; torch's own choice there would save all products."""
    q, k = (torch.empty(2, n, 3, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (4096, 77))
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = choice.Attention("auto")(q, k, k)
    assert output.shape == q.shape
    # Besides these, a few numbers of the random generator's state.
    exact = 2 * q.numel() * 2 + k.numel() * 2 + 2 * 3 * 4096 * 4
    assert exact <= sum(saved.values()) <= exact + 64
    output.sum().backward()
    assert q.grad is not None and q.grad.shape == q.shape


WHEEL = """
import json, sys
sys.path.insert(0, {runtime!r}) if {runtime!r} else None
from diffpref.backbones.attention.xformers_wheel import load_xformers
try:
    ops, said = load_xformers(), ""
except ImportError as problem:
    ops, said = None, str(problem)
print(json.dumps([ops is not None, said]))
"""


def load_apart(runtime: str = "") -> tuple[bool, str]:
    done = subprocess.run(
        [sys.executable, "-c", WHEEL.format(runtime=runtime)], capture_output=True, text=True, check=True, timeout=120
    )
    loaded, said = json.loads(done.stdout.splitlines()[-1])
    return loaded, said


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not installed("xformers"), reason="xformers is not installed")
def test_the_wheel_of_xformers_loads_or_says_what_it_lacks() -> None:
    loaded, said = load_apart()
    lacks = not (torch.version.cuda or "").startswith("12.") and not installed("nvidia-cuda-runtime-cu12")
    assert loaded or "xformers" in said and "torch" in said
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
    AcceleratorState._reset_state(reset_partial_state=True)
    models = build_models(settings(base, adapter=adapter, attention="math"), find_family(base), Accelerator())
    assert models.lines[0].startswith("attention: math, ")
    networks = {models.network, getattr(models.reference, "network", models.network)}
    assert len(networks) == (1 if adapter == "lora" else 2)
    for network in networks:
        layers = [module for module in network.modules() if isinstance(module, Attention)]
        assert {layer.processor.kernel.setting for layer in layers} == {"math"}
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_diffusers_scripts_flag_means_xformers(base: Checkpoint) -> None:
    flag = {"enable_xformers_memory_efficient_attention": True}
    assert attention_setting(settings(base)) == "auto" and attention_setting(settings(base, **flag)) == "xformers"
    assert attention_setting(settings(base, attention="flash")) == "flash"
    assert attention_setting(settings(base, attention="xformers", **flag)) == "xformers"
    with pytest.raises(ValueError, match="attention: flash and enable_xformers_.* two backends"):
        attention_setting(settings(base, attention="flash", **flag))


def test_what_cannot_run_is_refused_before_anything_is_read(base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    check_machine(settings(base, attention="math"))
    with pytest.raises(ValueError, match="attention: efficient cannot run on cpu in bfloat16"):
        check_settings(settings(base, attention="efficient", mixed_precision="bf16", dataset_name="somewhere"))
