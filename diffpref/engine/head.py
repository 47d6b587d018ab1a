"""The loss head: from the errors of candidates to the loss and dL / d err_i, without any access to a model."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.types import Errors, Loss


def coefficients(
    objective: Loss, errors: Errors, scores: Float[Tensor, "b k"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b k"]]:
    """The loss of each group, and the derivative of their sum by each candidate's policy error.

    The difference to the reference moves with the policy's error one to one, so both derivatives add up."""
    policy, difference = (each.detach().requires_grad_() for each in (errors.policy, errors.difference))
    with torch.enable_grad():
        loss = objective(Errors(policy, errors.reference.detach(), difference), scores)
        if not loss.requires_grad:
            return loss, torch.zeros_like(policy)
        found = torch.autograd.grad(loss.sum(), [policy, difference], allow_unused=True)
    total = torch.zeros_like(policy)
    for gradient in found:
        if gradient is not None:
            total = total + gradient
    return loss.detach(), total


def separable(objective: Loss, scores: Float[Tensor, "b k"]) -> bool:
    """Whether each group's loss depends on its own errors alone, tried with these scores on drawn errors.

    All objectives here are; one that normalizes over the batch is not, and its groups must not be cut apart."""
    b, k = scores.shape
    draws = torch.Generator().manual_seed(0)
    # Differences that leave a sigmoid at beta 5000 in its middle, and some that do at beta 1.
    for scale in (1e-3, 1.0):
        policy, reference = (torch.rand(b, k, generator=draws).to(scores.device) * scale + 1 for _ in range(2))
        loss, slopes = coefficients(objective, Errors(policy, reference), scores)
        for group in range(b):
            one = slice(group, group + 1)
            alone, slope = coefficients(objective, Errors(policy[one], reference[one]), scores[one])
            if not (torch.allclose(alone, loss[one], 1e-4) and torch.allclose(slope, slopes[one], 1e-4)):
                return False
    return True
