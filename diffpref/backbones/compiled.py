"""torch.compile of the blocks that a network repeats, each by itself: minutes less to wait than for the whole."""

import importlib.util
import os
import shutil
from collections import Counter

import torch

VARIANTS = 128
"""Compiled forms that one kind of block may have: its widths and sizes, with the adapter on and off, with and without
gradients. SDXL's residual blocks have about 20. Beyond torch's own limit of 8 a block would silently run uncompiled."""


def check_compiler(device: torch.device) -> None:
    """Raise ValueError where torch.compile has nothing to compile with."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ValueError("compile_blocks needs triton on a GPU: pip install triton, or leave compile_blocks out.")
    elif shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise ValueError("compile_blocks needs a C++ compiler on the CPU: install g++, or leave compile_blocks out.")


def compile_blocks(network: torch.nn.Module) -> str:
    """Compile the network's blocks in place, at their first call; returns a line that says which.

    Names of modules and weights stay. A block is compiled anew for each size, and once for each of: adapter on, adapter
    off, gradients wanted or not."""
    # A run that compiles nothing need not wait for their imports.
    from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D
    from torch._dynamo import config as settings

    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(settings, name):
            setattr(settings, name, max(VARIANTS, getattr(settings, name)))
    kinds = (BasicTransformerBlock, JointTransformerBlock, ResnetBlock2D)
    blocks = [module for module in network.modules() if isinstance(module, kinds)]
    for block in blocks:
        # Sizes are constant within a run: kernels for exactly these are the fastest.
        block.compile(dynamic=False)
    count = Counter(type(block).__name__ for block in blocks)
    return "compiled: " + (
        ", ".join(f"{number} {name}" for name, number in count.items()) or "no block of a known kind"
    )
