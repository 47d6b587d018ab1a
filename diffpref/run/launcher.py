"""What `accelerate launch` was configured to do, obeyed or refused: a run never ignores it in silence."""

import os

PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What the launcher sets -> what it asks for; none of them is supported."""


def check_launcher(mixed_precision: str) -> None:
    """Raise ValueError where the launcher's configuration asks for something else than the run's settings.

    The launcher's "no" says nothing: it is also what it sets where nobody chose.

    Args:
        mixed_precision: the run's own.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", mixed_precision):
        remedy = f"give --mixed_precision {asked} to the run, or " if asked in ("fp16", "bf16") else ""
        raise ValueError(
            f"accelerate is configured for mixed_precision {asked}, and this run's is {mixed_precision}: {remedy}"
            "launch with accelerate launch --mixed_precision no, and the run's own holds."
        )
    for variable, name in PLUGINS.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise ValueError(
                f"accelerate is configured for {name}, which is not supported: choose plain data parallelism in "
                "accelerate config, and adapter: lora or loss_mode: auto to save memory."
            )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise ValueError(
            f"accelerate is configured for torch dynamo ({backend.lower()}): use compile_blocks: true in its place, "
            "and accelerate launch --dynamo_backend no."
        )
