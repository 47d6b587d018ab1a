"""Which attention kernels really run here: each is tried once, forward and backward, and why it fails is kept."""

import math
import threading
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from diffpref.backbones.attention.kernels import KERNELS, Backend

BACKENDS: tuple[Backend, ...] = get_args(Backend)
SHORT, TOKENS = 16, 77
"""Queries and keys of the first trial; 77 is the length of CLIP's text, a multiple of no tile."""
TOLERANCE = 0.05
"""Largest difference to float32, forward and backward, as a share of the largest value: bfloat16 rounds to 0.004."""

Result = TypeVar("Result")
_REASONS: dict[tuple[Backend, torch.device, torch.dtype, int, int, int], str] = {}


class Report(NamedTuple):
    """One backend: whether it runs, and if not, why."""

    backend: Backend
    works: bool
    reason: str


def why_not(
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int,
    queries: int = SHORT,
    keys: int = TOKENS,
) -> str:
    """Why the backend cannot run at these sizes, tried on the device; empty if it runs. Each question is tried once."""
    key = (backend, device, dtype, head_dim, queries, keys)
    if key not in _REASONS:
        _REASONS[key] = _apart(lambda: _try(*key))
    return _REASONS[key]


def attention_report(
    device: torch.device | None = None, dtype: torch.dtype | None = None, *, head_dim: int = 64
) -> list[Report]:
    """Every backend, tried on the device: by default the GPU in bfloat16, or the CPU in float32."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    reasons = [why_not(backend, device, dtype, head_dim=head_dim) for backend in BACKENDS]
    return [Report(backend, not reason, reason) for backend, reason in zip(BACKENDS, reasons, strict=True)]


def _apart(work: Callable[[], Result]) -> Result:
    """The result of work in a thread of its own, where no autocast, gradient mode or hook of the caller applies.

    A trial may come in the middle of a forward that counts or recomputes what autograd saves."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def _try(backend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int, queries: int, keys: int) -> str:
    # torch says in warnings why it refuses a kernel, and in the exception only that it does.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            inputs = [_wave(n, head_dim, device, dtype, phase) for phase, n in enumerate((queries, keys, keys))]
            found = _results(backend, inputs)
            if queries * keys > SHORT * TOKENS:
                return ""
            exact = _results("math", [x.detach().float() for x in inputs])
        except Exception as problem:  # noqa: BLE001  whatever a kernel raises is the reason that is asked for
            return _text(backend, device, problem, [str(warning.message) for warning in said])
    worst = max(((a.float() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True))
    if not worst < TOLERANCE:
        return f"its results differ from float32 by {worst:.0%} of the largest"
    return ""


def _wave(tokens: int, head_dim: int, device: torch.device, dtype: torch.dtype, phase: int) -> Tensor:
    """Numbers around 1 without a random generator, whose state belongs to the run."""
    values = torch.arange(tokens * head_dim, device=device).square().mul(0.7 + 0.1 * phase).sin() * 2
    return values.to(dtype).view(1, tokens, 1, head_dim)


def _results(backend: Backend, inputs: list[Tensor]) -> list[Tensor]:
    """The output and the three gradients."""
    leaves = [x.requires_grad_() for x in inputs]
    output = KERNELS[backend](*leaves)
    output.float().square().sum().div(2 * math.sqrt(output.numel())).backward()
    gradients = [leaf.grad for leaf in leaves]
    if output.device.type == "cuda":
        torch.cuda.synchronize(output.device)
    return [output.detach(), *(g for g in gradients if g is not None)]


def _text(backend: Backend, device: torch.device, problem: Exception, said: list[str]) -> str:
    if device.type != "cuda" and backend in ("fa3", "cudnn", "xformers", "efficient"):
        return f"needs a CUDA GPU, and this is {device.type}"
    reason = " ".join(str(problem).split()) or type(problem).__name__
    details = "; ".join(dict.fromkeys(" ".join(text.split()) for text in said))
    return f"{reason} ({details})" if details else reason
