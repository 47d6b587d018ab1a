"""The attention kernels by name, all called alike: queries, keys and values as (batch, tokens, heads, channels)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from diffpref.backbones.attention.xformers_wheel import load_xformers

Backend: TypeAlias = Literal["fa3", "cudnn", "flash", "xformers", "efficient", "math"]
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

_SWITCHES = {
    "cudnn": (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    "flash": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "efficient": (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    "math": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
}
_TORCH = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@contextmanager
def only(name: str) -> Iterator[None]:
    """torch's attention restricted to one of its kernels.

    What torch.nn.attention.sdpa_kernel does, in half its time: it is called 140 times in a forward of SDXL."""
    before = [(switch, enabled()) for enabled, switch in _SWITCHES.values()]
    for other, (_, switch) in _SWITCHES.items():
        switch(other == name)
    try:
        yield
    finally:
        for switch, was in before:
            switch(was)


def _torch_kernel(name: str) -> Attend:
    def attend(
        q: Float[Tensor, "b s h d"], k: Float[Tensor, "b z h d"], v: Float[Tensor, "b z h d"]
    ) -> Float[Tensor, "b s h d"]:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        # torch.compile knows sdpa_kernel, and pays for it once.
        with sdpa_kernel(_TORCH[name]) if torch.compiler.is_compiling() else only(name):
            return scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return attend


def flash_shapes(
    q: Float[Tensor, "b s h d"], k: Float[Tensor, "b z h d"], v: Float[Tensor, "b z h d"]
) -> Float[Tensor, "b s h d"]:
    """What flash attention gives on a GPU, by its shape alone: for meta tensors, on which torch would choose its math.

    Counts of memory and operations on the meta device are then those of a GPU."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))[0].transpose(1, 2)


def _xformers(
    q: Float[Tensor, "b s h d"], k: Float[Tensor, "b z h d"], v: Float[Tensor, "b z h d"]
) -> Float[Tensor, "b s h d"]:
    # Four axes: with (batch * heads) as one, 65,536 of them do not launch (xformers issue 845).
    return _loaded_xformers()(q, k, v)


def _fa3(
    q: Float[Tensor, "b s h d"], k: Float[Tensor, "b z h d"], v: Float[Tensor, "b z h d"]
) -> Float[Tensor, "b s h d"]:
    found = _loaded_fa3()(q, k, v)
    # Earlier releases return the log-sum-exp as well.
    return found[0] if isinstance(found, tuple) else found


_LOADED: dict[str, Attend] = {}


def _loaded_xformers() -> Attend:
    if "xformers" not in _LOADED:
        _LOADED["xformers"] = load_xformers().memory_efficient_attention
    return _LOADED["xformers"]


def _loaded_fa3() -> Attend:
    if "fa3" not in _LOADED:
        try:
            from flash_attn_interface import flash_attn_func  # type: ignore[import-not-found]
        except ModuleNotFoundError as missing:
            if missing.name != "flash_attn_interface":
                raise
            raise ImportError(
                "flash-attention 3 is not installed: the package registry has no wheel of it, PyTorch's index has "
                "flash-attn-3"
            ) from None
        _LOADED["fa3"] = flash_attn_func
    return _LOADED["fa3"]


KERNELS: Mapping[Backend, Attend] = {
    "fa3": _fa3,
    "cudnn": _torch_kernel("cudnn"),
    "flash": _torch_kernel("flash"),
    "xformers": _xformers,
    "efficient": _torch_kernel("efficient"),
    "math": _torch_kernel("math"),
}
