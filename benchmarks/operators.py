"""How long the error and noising operators take, beside separate torch calls and what the memory allows.

On CUDA each figure is one replay of a graph of many calls on inputs that together exceed the GPU's cache, so neither
launches nor cache hits are in it. Elsewhere the same code is timed call by call, which says little about a GPU.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diffpref.kernels.error import fused_error
from diffpref.kernels.noising import noise_and_target

CACHE = 128 * 2**20
"""Bytes of inputs to go round, on CUDA: twice the cache of the largest GPUs."""
SIZES = {"SDXL 1024": 4 * 128 * 128, "SD3 1024": 16 * 128 * 128, "EDM CIFAR-10": 3 * 32 * 32}
"""Elements of an image's latent."""
ROWS = (2, 8, 64)


@dataclass(frozen=True)
class Timing:
    """One operation on `rows` latents of `elements` each; the times are medians in microseconds a call."""

    operation: str
    rows: int
    elements: int
    dtype: str
    ours_us: float
    separate_us: float
    bytes_moved: int
    """What has to be read and written once."""

    @property
    def gigabytes_per_second(self) -> float:
        """Bytes that have to be moved over our time: at most the memory's bandwidth, where the caches hold none."""
        return self.bytes_moved / self.ours_us / 1e3


@dataclass(frozen=True)
class _Inputs:
    """Two candidates of each group: predictions, what they are compared with, and what came back for their errors."""

    prediction: Tensor
    reference: Tensor
    target: Tensor
    weight: Tensor
    to_error: Tensor
    x0: Tensor
    eps: Tensor
    coefficients: tuple[Tensor, Tensor, Tensor, Tensor]


def _draw(rows: int, elements: int, dtype: torch.dtype, device: torch.device) -> _Inputs:
    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    groups = rows // 2
    x0, eps = normal(groups, 2, elements), normal(groups, 1, elements)
    weight, to_error = normal(groups, dtype=torch.float32).abs(), normal(rows, dtype=torch.float32)
    alpha, sigma, a, b = (normal(groups, dtype=torch.float32) for _ in range(4))
    prediction, reference, target = (normal(rows, elements) for _ in range(3))
    return _Inputs(prediction, reference, target, weight, to_error, x0, eps, (alpha, sigma, a, b))


def _ours_forward(i: _Inputs) -> object:
    return fused_error(i.prediction, i.reference, i.target, i.weight)


def _separate_forward(i: _Inputs) -> object:
    """As the peers' scripts, but in float32: an error for each model, then their difference."""
    of_policy, of_reference = (
        (x.float() - i.target.float()).square().mean(1) * i.weight.repeat_interleave(2)
        for x in (i.prediction, i.reference)
    )
    return of_policy, of_policy - of_reference


def _ours_backward(i: _Inputs) -> object:
    return torch.ops.diffpref.fused_error_backward(i.prediction, i.target, i.weight, i.to_error, i.to_error)


def _separate_backward(i: _Inputs) -> object:
    """The operations that autograd would run, one by one."""
    factor = i.to_error * i.weight.repeat_interleave(2)
    square = (factor / i.prediction.shape[1])[:, None].expand_as(i.prediction)
    return (square * (2 * (i.prediction.float() - i.target.float()))).to(i.prediction.dtype)


def _ours_noising(i: _Inputs) -> object:
    alpha, sigma, a, b = i.coefficients
    return noise_and_target(i.x0, i.eps, alpha=alpha, sigma=sigma, a=a, b=b)


def _separate_noising(i: _Inputs) -> object:
    alpha, sigma, a, b = (each[:, None, None] for each in i.coefficients)
    x0, eps = i.x0.float(), i.eps.float()
    return (alpha * x0 + sigma * eps).to(i.x0.dtype), (a * x0 + b * eps).to(i.x0.dtype)


# operation: ours, the separate calls, and the latents that a row reads and writes
_OPERATIONS: dict[str, tuple[Callable[[_Inputs], object], Callable[[_Inputs], object], float]] = {
    "error forward": (_ours_forward, _separate_forward, 3),
    "error backward": (_ours_backward, _separate_backward, 3),
    "noising": (_ours_noising, _separate_noising, 3.5),
}


def timed() -> tuple[list[dict[str, Any]], str]:
    """Rows and a Markdown table, on a CUDA GPU in bfloat16."""
    device = torch.device("cuda")
    found = [
        {"latent": name, **asdict(timing)}
        for name, elements in SIZES.items()
        for rows in ROWS
        for timing in benchmark(device, rows=rows, elements=elements, dtype=torch.bfloat16)
    ]
    lines = ["| operator | latents | ours µs | separate calls µs |", "| --- | --- | --- | --- |"]
    for row in found:
        size = f"{row['rows']} of {row['latent']}"
        lines.append(f"| {row['operation']} | {size} | {row['ours_us']:.1f} | {row['separate_us']:.1f} |")
    return found, "\n".join(lines)


def benchmark(device: torch.device, *, rows: int, elements: int, dtype: torch.dtype, repeats: int = 20) -> list[Timing]:
    """The time of each operation on this device, in this dtype, for an even number of rows.

    Args:
        repeats: replays of the graph (on CUDA) or calls, of which the median is taken.
    """
    size = rows * elements * dtype.itemsize
    sets = [_draw(rows, elements, dtype, device) for _ in range(max(2, CACHE // (6 * size)) if _on_cuda(device) else 1)]
    found = []
    for name, (ours, separate, latents) in _OPERATIONS.items():
        ours_us, separate_us = (_median_us(run, sets, device, repeats) for run in (ours, separate))
        kind = str(dtype).removeprefix("torch.")
        found.append(Timing(name, rows, elements, kind, ours_us, separate_us, round(latents * size)))
    return found


def _on_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def _median_us(run: Callable[[_Inputs], object], sets: list[_Inputs], device: torch.device, repeats: int) -> float:
    """Microseconds a call."""
    with torch.no_grad():
        if _on_cuda(device):
            return _graph_us(run, sets, device, repeats)
        run(sets[0])
        times = []
        for inputs in itertools.islice(itertools.cycle(sets), repeats):
            start = time.perf_counter()
            run(inputs)
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def _graph_us(run: Callable[[_Inputs], object], sets: list[_Inputs], device: torch.device, repeats: int) -> float:
    calls = sets * max(1, 20 // len(sets))  # one replay has to last longer than its own start
    with torch.cuda.device(device):
        run(sets[0])  # compiles the kernels, which a capture must not
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for inputs in calls:
                run(inputs)
        times = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return statistics.median(times) * 1e3 / len(calls)
