"""Weighted squared prediction errors: all that an objective ever sees of a model."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.kernels import fused_error
from diffpref.types import Backbone, Errors, Probe


def predict(model: Backbone, probe: Probe) -> Float[Tensor, "b k *chw"]:
    """The model's prediction at the probe; the only place where (b, k) is flattened to n for the network.

    >>> predict(policy, probe).shape
    torch.Size([1, 2, 4])
    """
    b, k = probe.x_t.shape[:2]
    cond = {name: value.repeat_interleave(k, 0) for name, value in probe.cond.items()}
    return torch.unflatten(model(probe.x_t.flatten(0, 1), probe.t.repeat_interleave(k, 0), cond), 0, (b, k))


def prediction_error(
    prediction: Float[Tensor, "b k *chw"], target: Float[Tensor, "b k *chw"], weight: Float[Tensor, " b"]
) -> Float[Tensor, "b k"]:
    """weight * mean((prediction - target)^2) over the elements of each candidate, in float32 or better.

    The subtraction happens in float32 too: in half precision the rounding of the error alone moves a logit at
    beta 5000 by 0.2 to 0.4. The gradient is that of the prediction alone.

    >>> prediction_error(torch.full((1, 2, 4), 3.0), torch.ones(1, 2, 4), weight=torch.ones(1))
    tensor([[4., 4.]])

    Args:
        weight: of each prompt, 0 or above; 1 for the error of the native prediction.

    Raises:
        ValueError: a target or weight that requires a gradient.
    """
    error, _ = fused_error(prediction.flatten(0, 1), None, target.flatten(0, 1), weight)
    return torch.unflatten(error, 0, prediction.shape[:2])


def errors_of(prediction: Float[Tensor, "b k *chw"], reference: Float[Tensor, "b k *chw"], probe: Probe) -> Errors:
    """The errors of two predictions at the probe and their difference, the reference's prediction being a constant.

    >>> errors_of(predict(policy, probe), predict(reference, probe), probe).difference
    tensor([[0., 0.]])

    Raises:
        ValueError: a reference's prediction that requires a gradient.
    """
    rows = prediction.flatten(0, 1), reference.flatten(0, 1), probe.target.flatten(0, 1)
    error, difference = (torch.unflatten(each, 0, prediction.shape[:2]) for each in fused_error(*rows, probe.weight))
    return Errors(error, prediction_error(reference, probe.target, probe.weight), difference)


def model_error(model: Backbone, probe: Probe) -> Float[Tensor, "b k"]:
    """The error of one model at the probe.

    >>> model_error(policy, probe)
    tensor([[1., 1.]])
    """
    return prediction_error(predict(model, probe), probe.target, probe.weight)


def compare(policy: Backbone, reference: Backbone, probe: Probe) -> Errors:
    """Both models' errors at the same probe, the reference first and without a graph.

    The reference's prediction stays until the policy's is there: one more latent, for a difference without
    cancellation.

    >>> compare(policy, reference, probe).log_ratio  # equal models
    tensor([[0., 0.]])
    """
    with torch.no_grad():
        of_reference = predict(reference, probe)
    return errors_of(predict(policy, probe), of_reference, probe)
