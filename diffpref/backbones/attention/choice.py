"""The choice of an attention kernel: the best that runs on this device, or the one that is asked for."""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones.attention.kernels import KERNELS, Backend, flash_shapes
from diffpref.backbones.attention.probing import SHORT, TOKENS, why_not

Setting: TypeAlias = Literal["auto", "fa3", "cudnn", "flash", "xformers", "efficient", "math"]

LONG = 1024
"""Queries from which cuDNN's kernel is faster than flash attention."""


def order(device: torch.device) -> tuple[Backend, ...]:
    """The backends from the fastest, by published measurements of training shapes at 64 channels a head.

    Hopper: FlashAttention-3 (Shah et al. 2024, fig. 5 and 6) before cuDNN, both 1.3 to 1.5 times flash attention 2.
    cuDNN is ahead on sm90 and sm100, and behind on A100, A10G and RTX PRO 6000 (transformers pull request 48163).
    xformers' own kernels are torch's flash and efficient ones, so it comes after them."""
    if device.type != "cuda":
        return ("flash", "math")
    if torch.version.hip is not None:
        return ("flash", "efficient", "xformers", "math")
    major = torch.cuda.get_device_capability(device)[0]
    if major == 9:
        return ("fa3", "cudnn", "flash", "efficient", "xformers", "math")
    if major == 10:
        return ("cudnn", "flash", "efficient", "xformers", "math")
    return ("flash", "efficient", "cudnn", "xformers", "math")


def require(setting: Setting, device: torch.device, dtype: torch.dtype, *, head_dim: int = 64) -> None:
    """Raise ValueError, with the reason, where the backend that is asked for cannot run."""
    if setting != "auto" and (reason := why_not(setting, device, dtype, head_dim=head_dim)):
        raise ValueError(
            f"attention: {setting} cannot run on {device} in {str(dtype).removeprefix('torch.')} with {head_dim} "
            f"channels a head: {reason}. Choose another backend, or attention: auto."
        )


class Attention:
    """Attention by the kernel of the setting; equal sizes always get the same kernel, in policy and reference.

    Where the setting's own kernel cannot take other numbers than those of the training, such as float32 samples, the
    others stand in. `prepared` holds the kernels for code that torch compiles, which must not try any."""

    def __init__(self, setting: Setting) -> None:
        self.setting: Setting = setting
        self.chosen: dict[tuple[torch.device, torch.dtype, int, int, int], Backend] = {}
        self.prepared: tuple[Backend, ...] = ("math",)

    def __call__(
        self, q: Float[Tensor, "b s h d"], k: Float[Tensor, "b z h d"], v: Float[Tensor, "b z h d"]
    ) -> Float[Tensor, "b s h d"]:
        # A norm of queries and keys may leave them in float32 beside half precision values (diffusers issue 11486).
        q, k = q.to(v.dtype), k.to(v.dtype)
        if q.device.type == "meta":
            return flash_shapes(q, k, v)
        return KERNELS[self._choose(q, k)](q, k, v)

    def prepare(self, device: torch.device, dtype: torch.dtype, head_dims: list[int]) -> tuple[Backend, ...]:
        """The kernels that will be used at these sizes, the first for long sequences; raises as `require`."""
        if device.type == "meta":
            return ("flash",)
        for head_dim in head_dims:
            require(self.setting, device, dtype, head_dim=head_dim)
        usable: list[Backend] = []
        for backend in self._order(device):
            if not any(why_not(backend, device, dtype, head_dim=head_dim) for head_dim in head_dims):
                usable.append(backend)
                if self._suits(backend, 1):
                    break
        self.prepared = tuple(usable)
        return self.prepared

    def _order(self, device: torch.device) -> tuple[Backend, ...]:
        best = order(device)
        return best if self.setting == "auto" else (self.setting, *(one for one in best if one != self.setting))

    def _suits(self, backend: Backend, queries: int) -> bool:
        return backend != "cudnn" or self.setting == "cudnn" or queries >= LONG

    def _choose(self, q: Tensor, k: Tensor) -> Backend:
        queries, keys, head_dim = q.shape[1], k.shape[1], q.shape[3]
        if torch.compiler.is_compiling():
            return next(backend for backend in self.prepared if self._suits(backend, queries))
        key = (q.device, q.dtype, head_dim, queries, keys)
        if key not in self.chosen:
            self.chosen[key] = next(
                backend for backend in self._order(q.device) if self._runs(backend, q.device, q.dtype, key[2:])
            )
        return self.chosen[key]

    def _runs(self, backend: Backend, device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int]) -> bool:
        head_dim, queries, keys = sizes
        if not self._suits(backend, queries) or why_not(backend, device, dtype, head_dim=head_dim):
            return False
        # The first trial is small and looks at the numbers; this one is as large as the call.
        longer = queries * keys > SHORT * TOKENS and device.type == "cuda" and backend != "math"
        return not longer or not why_not(backend, device, dtype, head_dim=head_dim, queries=queries, keys=keys)
