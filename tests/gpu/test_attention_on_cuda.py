"""Attention on a CUDA GPU: every backend that runs there against math in float32, at the sizes of SDXL and SD3."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from diffpref.backbones.adapters.fused_lora import lora_linear
from diffpref.backbones.attention import BACKENDS, KERNELS, attention_report, choice, why_not
from diffpref.backbones.attention.xformers_wheel import load_xformers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = torch.device("cuda", 0)
# Queries, keys, heads: self and cross attention of SDXL at 1024 pixels, and SD3's of picture and 333 tokens of text.
SIZES = {
    "sdxl 64": (4096, 4096, 10),
    "sdxl 32": (1024, 1024, 20),
    "sdxl text": (4096, 77, 10),
    "sd3": (4429, 4429, 24),
}


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device=CUDA, dtype=torch.float32).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_that_runs_gives_maths_numbers(backend: str, size: str, dtype: torch.dtype) -> None:
    queries, keys, heads = SIZES[size]
    if reason := why_not(backend, CUDA, dtype, head_dim=64):
        pytest.skip(reason)
    torch.manual_seed(0)
    inputs = [draw(1, n, heads, 64, dtype=dtype) for n in (queries, keys, keys)]
    exact = [x.detach().float().requires_grad_() for x in inputs]
    seen = torch.randn(1, queries, heads, 64, device=CUDA)
    found, wanted = KERNELS[backend](*inputs), KERNELS["math"](*exact)
    pairs = [(found, wanted)]
    pairs += zip(
        torch.autograd.grad(found, inputs, seen.to(dtype)), torch.autograd.grad(wanted, exact, seen), strict=True
    )
    # TF32, if a user of this process allowed it, is no better than bfloat16 in a product.
    tolerance = {torch.bfloat16: 0.02, torch.float16: 0.005, torch.float32: 1e-4}[dtype]
    for one, other in pairs:
        assert (one.float() - other).norm() < tolerance * other.norm()


def test_something_faster_than_math_runs() -> None:
    works = {one.backend for one in attention_report(CUDA) if one.works}
    assert "math" in works and works & {"flash", "efficient", "cudnn"}
    assert all(one.works or one.reason for one in attention_report(CUDA))


def test_xformers_of_the_registry_loads_and_runs() -> None:
    """With nvidia-cuda-runtime-cu12 beside it, which is a dependency of this package."""
    importlib.metadata.version("xformers")
    load_xformers()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        reason = why_not("xformers", CUDA, dtype, head_dim=64)
        newer = torch.cuda.get_device_capability(CUDA) > (9, 0) and dtype == torch.float32
        assert not reason or newer, reason


def test_auto_takes_the_first_that_runs_at_the_calls_size() -> None:
    kernel = choice.Attention("auto")
    short, long = (draw(1, n, 2, 64) for n in (256, 2048))
    for x in (short, long):
        kernel(x, x, x).sum().backward()
    names = {key[3]: backend for key, backend in kernel.chosen.items()}
    assert names[256] != "cudnn"
    for queries, backend in names.items():
        for better in choice.order(CUDA)[: choice.order(CUDA).index(backend)]:
            assert (better == "cudnn" and queries < choice.LONG) or why_not(better, CUDA, torch.bfloat16, head_dim=64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fused_lora_linear_has_float32_gradients_without_a_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = draw(1280, 640, dtype=dtype).detach() / 25, draw(1280, dtype=dtype).detach()
    a, b = (draw(64, 640, dtype=torch.float32), draw(1280, 64, dtype=torch.float32))
    x = draw(2, 1024, 640, dtype=dtype)
    found = lora_linear(x, weight, bias, a, b, scale=0.5)
    exact = [part.detach().double().requires_grad_() for part in (x, a, b)]
    wanted = torch.nn.functional.linear(exact[0], weight.double() + 0.5 * exact[2] @ exact[1], bias.double())
    seen = torch.randn_like(found)
    gradients = torch.autograd.grad(found, (x, a, b), seen)
    assert [g.dtype for g in gradients] == [dtype, torch.float32, torch.float32]
    assert not torch.equal(gradients[1], gradients[1].to(dtype).float()), "sums stay in float32"
    for one, other in zip(
        (found, *gradients), (wanted, *torch.autograd.grad(wanted, exact, seen.double())), strict=True
    ):
        assert (one.double() - other).norm() < 0.01 * other.norm()


def test_a_small_model_trains_with_each_backend(tmp_path: Path) -> None:
    from diffpref.demo import quickstart
    from diffpref.training.loop import train
    from diffpref.training.settings import from_mapping

    losses = {}
    for one in attention_report(CUDA, head_dim=32):
        if not one.works:
            continue
        options = quickstart.Quickstart(output_dir=tmp_path / one.backend)
        changes = {"mixed_precision": "bf16", "attention": one.backend, "max_train_steps": 5, "validation_steps": 5}
        lines: list[str] = []
        train(from_mapping(changes, "the test", quickstart.settings(options)), say=lines.append)
        losses[one.backend] = [line for line in lines if line.startswith("attention: ")]
    assert losses and all(said and said[0].startswith(f"attention: {name}") for name, said in losses.items())
