"""Blocks that are compiled in place: the same numbers, a form for each switch, and none anew at every step."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffpref.backbones.compiled import check_compiler


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-5), ("bf16", 0.02)])
def test_numbers_are_the_same_and_nothing_is_compiled_twice(
    base, tmp_path: Path, precision: str, tolerance: float
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs.compiled_steps", base.source, precision],
        cwd=Path(__file__).parents[2],
        # The common cache may hold what an interrupted compilation left.
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["line"].startswith("compiled: ") and "BasicTransformerBlock" in found["line"]
    assert 0 < found["graphs"][0] == found["graphs"][2]
    assert found["worst"] < tolerance


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="compile_blocks needs a C\\+\\+ compiler"):
        check_compiler(torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="compile_blocks needs triton"):
        check_compiler(torch.device("cuda"))
