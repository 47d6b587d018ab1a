"""xformers from the package registry: load it beside any torch, and say exactly why where it cannot run."""

import contextlib
import ctypes
import importlib.metadata
import logging
from pathlib import Path
from types import ModuleType

import torch

RUNTIME = "nvidia-cuda-runtime-cu12"
LIBRARY = "libcudart.so.12"


def load_xformers() -> ModuleType:
    """xformers.ops, ready for CUDA.

    The registry's wheel is built for CUDA 12 and links to its runtime library, which a torch for CUDA 13 does not
    bring; without it every operator refuses with "xFormers wasn't build with CUDA support". The library is loaded
    first where its package is installed. Both runtimes may be loaded at once: the kernels of attention are torch's own.

    Raises:
        ImportError: xformers is not installed, or its library does not load; names the reason and the remedy.
    """
    _load_runtime()
    log = logging.getLogger("xformers")
    level = log.level
    # Its warning says what the error below says, without the remedy.
    log.setLevel(logging.ERROR)
    try:
        import xformers._cpp_lib as library
        import xformers.ops as ops
    except ModuleNotFoundError as missing:
        if missing.name != "xformers":
            raise
        raise ImportError("xformers is not installed: pip install xformers") from None
    finally:
        log.setLevel(level)
    failure = library._cpp_library_load_exception
    if failure is not None:
        raise ImportError(_explain(failure)) from failure
    return ops


def _load_runtime() -> None:
    if torch.version.cuda is None or torch.version.cuda.startswith("12."):
        return
    for path in _runtime_files():
        # xformers reports what is still missing.
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(path))


def _runtime_files() -> list[Path]:
    try:
        files = importlib.metadata.files(RUNTIME) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == LIBRARY]


def _explain(failure: BaseException) -> str:
    """What failed in loading the library, from the bottom of the chain of causes, and how to mend it."""
    bottom = failure
    while bottom.__cause__ is not None:
        bottom = bottom.__cause__
    version = importlib.metadata.version("xformers")
    what = " ".join(str(bottom).split())
    said = f"xformers {version} does not load its library beside torch {torch.__version__}: {what}"
    if LIBRARY in str(bottom):
        return f"{said}. The wheel is built for CUDA 12: pip install {RUNTIME} (no other package is changed)."
    return f"{said}. Install the xformers that is built for this torch: https://github.com/facebookresearch/xformers"
