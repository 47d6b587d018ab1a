"""What `accelerate config` says reaches a run or is refused."""

import subprocess
import sys

import pytest

from diffpref.run.launcher import check_launcher


@pytest.mark.parametrize("own", ["no", "fp16", "bf16"])
def test_a_launcher_that_says_nothing_or_the_same_is_silent(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_launcher(own)
    for asked in ("no", own):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
        check_launcher(own)


@pytest.mark.parametrize(
    ("variable", "value", "own", "message"),
    [
        (
            "MIXED_PRECISION",
            "bf16",
            "no",
            "for mixed_precision bf16, and this run's is no: give --mixed",
        ),
        ("MIXED_PRECISION", "fp16", "bf16", "for mixed_precision fp16, and this run's is bf16: give"),
        ("MIXED_PRECISION", "fp8", "bf16", "for mixed_precision fp8, and this run's is bf16: launch with"),
        ("USE_FSDP", "true", "no", "configured for FSDP, which is not supported"),
        ("USE_DEEPSPEED", "true", "no", "configured for DeepSpeed"),
        ("DYNAMO_BACKEND", "INDUCTOR", "no", r"torch dynamo \(inductor\): use compile_blocks: true"),
    ],
)
def test_what_it_asks_for_is_never_ignored(
    variable: str, value: str, own: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    with pytest.raises(ValueError, match=message):
        check_launcher(own)


def test_a_launched_run_itself_prints_no_traceback() -> None:
    """The launcher prints one of its own unless it is told to be quiet; what is left then is ours."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1"]
    done = subprocess.run(
        [*launch, "-m", "diffpref.train", "--config", "tiny-sdxl/dbo"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("diffpref: error: ")]
    assert "Perhaps you meant 'tiny-sdxl/ddo'" in line or "tiny-sdxl/dpo" in line
