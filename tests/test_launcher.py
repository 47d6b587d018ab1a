"""What `accelerate config` says reaches a run or is refused."""

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
