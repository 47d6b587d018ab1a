"""Before the first update policy and reference are one model: else a run would learn from how they differ."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from diffpref.engine.step import Compared
from diffpref.run.precision import PRECISIONS


def check_equal(compared: Sequence[Compared], accelerator: Accelerator, *, beta: float) -> str | None:
    """A line where the errors of both models differ by rounding, None where they are equal or not finite.

    The batches are those of the first step, before its update: no forward is made for this. What is rounding is half of
    the precision's digits, sqrt(eps): 0.09 in bfloat16, 0.03 in float16 and on a GPU, whose float32 convolutions have
    its digits, 0.0003 in float32.

    Args:
        beta: nats of a reward for each unit of the log-ratio.

    Raises:
        ValueError: they differ by more; in all processes alike.
    """
    pairs = [(batch.errors.difference.abs().double(), batch.errors.reference.double()) for batch in compared]
    sums = torch.stack([torch.stack([apart.sum(), error.sum(), apart.max()]) for apart, error in pairs]).float()
    everyone = accelerator.gather(sums).cpu()  # type: ignore[union-attr]
    share = float(everyone[:, 0].sum() / everyone[:, 1].sum())
    if share == 0 or not share < float("inf"):
        return None
    kind = PRECISIONS[accelerator.mixed_precision]
    coarse = torch.float16 if kind == torch.float32 and accelerator.device.type == "cuda" else kind
    nats = beta * float(everyone[:, 2].max()) / 2
    found = (
        f"before the first update the errors of policy and reference differ by {share:.1g} of themselves in "
        f"{str(kind).removeprefix('torch.')}, up to {nats:.2g} nats of a reward"
    )
    if share > torch.finfo(coarse).eps ** 0.5:
        raise ValueError(
            f"{found}: they are not one model, and a run would learn from that. Look for a layer of the network that "
            "draws at random, an adapter that does not start at the base model, or stored errors of other weights "
            "(stored_reference: false)."
        )
    return f"{found}: a kernel rounds them apart; see Exactly zero at the start in docs/troubleshooting.md"
