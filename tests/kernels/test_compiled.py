"""The Triton code compiles for GPUs where there is none: how it reads, and that nothing is left to chance."""

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", minversion="3.3", reason="needs Triton, whose compiler changed its interface before 3.3")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted code is not compiled")

ERROR = {"SUMS": "*fp32", "W": "*fp32", "ERROR": "*fp32", "DIFFERENCE": "*fp32", "TO_ERROR": "*fp32"}
NOISING = dict.fromkeys(("ALPHA", "SIGMA", "A", "B"), "*fp32")
SIZES = {"elements": "i32", "blocks": "i32", "group": "i32", "k": "i32", "share": "fp32", "TO_DIFFERENCE": "*fp32"}
LATENTS = ("F", "R", "Y", "GRADIENT", "X0", "EPS", "X_T", "TARGET")


def compiled(kernel: Any, dtype: str, capability: int, ones: set[str], **constants: bool | int) -> str:
    """The kernel's PTX, with the sizes in `ones` being 1, which Triton makes constants of."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    constants = {"BLOCK": 1024, **constants, **dict.fromkeys(ones & set(kernel.arg_names), 1)}
    types = ERROR | NOISING | SIZES | dict.fromkeys(LATENTS, f"*{dtype}") | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    # As at a launch: tensors start at multiples of 16 bytes, and most latents have a multiple of 16 elements.
    aligned = [i for i, (name, type_) in enumerate(signature.items()) if "*" in type_ or name in {"elements"} - ones]
    constexprs = {(i,): constants[name] for i, name in enumerate(signature) if name in constants}
    source = ASTSource(kernel, signature, constexprs, {(i,): [["tt.divisibility", 16]] for i in aligned})
    made = compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(made.asm["cubin"]) > 1000
    return made.asm["ptx"]


SIZES_OF_ONE = {"elements", "blocks", "group", "k"}


@pytest.mark.parametrize(
    ("dtype", "capability", "ones"), [("fp32", 80, set()), ("bf16", 90, set()), ("fp16", 90, SIZES_OF_ONE)]
)
def test_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, capability: int, ones: set[str]) -> None:
    from diffpref.kernels import triton_error, triton_noising

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sums = compiled(triton_error._sums, dtype, capability, ones, HAS_REFERENCE=True)
    means = compiled(triton_error._means, dtype, capability, ones, HAS_REFERENCE=True)
    gradient = compiled(triton_error._gradient, dtype, capability, ones)
    shared = compiled(triton_noising._noising, dtype, capability, ones, SHARED=True)
    for ptx in (sums, means, gradient, shared):
        assert "atom.global" not in ptx and "red.global" not in ptx  # or sums would depend on which program comes first
        assert "div.full" not in ptx and "f64" not in ptx
    if not ones:
        wide = {name: ptx.count("ld.global.v4.b32") for name, ptx in (("sums", sums), ("gradient", gradient))}
        loads = 1 if "16" in dtype else 2  # 8 elements of a thread, 16 bytes each time
        assert wide == {"sums": 3 * loads, "gradient": 2 * loads}
        # One load of the noise, before the loop over candidates.
        assert shared.count("ld.global.v4.b32") == 2 * loads
