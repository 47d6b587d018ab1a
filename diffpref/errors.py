"""Weighted squared prediction errors: all that an objective ever sees of a model."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.types import Backbone, Errors, Probe


def prediction_error(
    prediction: Float[Tensor, "b k *chw"], target: Float[Tensor, "b k *chw"], weight: Float[Tensor, " b"]
) -> Float[Tensor, "b k"]:
    """weight * mean((prediction - target)^2) over the elements of each candidate, in float32 or better.

    The subtraction happens in float32 too: in half precision the rounding of the error alone moves a logit at
    beta 5000 by 0.2 to 0.4."""
    wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    squared = (prediction.to(wide) - target.to(wide)).square()
    return squared.flatten(2).mean(2) * weight.to(wide)[:, None]


def model_error(model: Backbone, probe: Probe) -> Float[Tensor, "b k"]:
    """The error of one model at the probe; the only place where (b, k) is flattened to n for the network."""
    b, k = probe.x_t.shape[:2]
    cond = {name: value.repeat_interleave(k, 0) for name, value in probe.cond.items()}
    prediction = model(probe.x_t.flatten(0, 1), probe.t.repeat_interleave(k, 0), cond)
    return prediction_error(prediction.unflatten(0, (b, k)), probe.target, probe.weight)


def compare(policy: Backbone, reference: Backbone, probe: Probe) -> Errors:
    """Both models' errors at the same probe, the reference first and without a graph."""
    with torch.no_grad():
        reference_error = model_error(reference, probe)
    return Errors(policy=model_error(policy, probe), reference=reference_error)
