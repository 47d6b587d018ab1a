"""Attention: diffusers' own results and gradients, kernels that compute what they say, and what a graph keeps."""

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from torch.nn.functional import scaled_dot_product_attention

from diffpref.backbones.attention import BACKENDS, KERNELS, choice
from diffpref.backbones.attention import kernels as kernels_module
from diffpref.backbones.attention.processors import JointAttention, UNetAttention, install_attention
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
