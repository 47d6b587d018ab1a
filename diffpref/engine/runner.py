"""How the modes run the policy, and the errors that they take from it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.engine.rows import Block, at
from diffpref.errors import errors_of, predict, prediction_error
from diffpref.types import Backbone, Errors, Loss


def _backward(loss: Tensor) -> None:
    loss.backward()


@dataclass(frozen=True, kw_only=True)
class Runner:
    """How the policy is run."""

    model: Backbone
    """Over the network that is not wrapped for several processes: no hook reduces gradients that are not scaled yet."""
    parameters: Sequence[torch.nn.Parameter]
    objective: Loss
    wrapped: Backbone | None = None
    """Over the network as accelerate wraps it, where that is another: for a mode that runs each batch as it is."""
    unsynchronized: Callable[[], AbstractContextManager] = nullcontext
    """Inside, the wrapped network's backwards reduce nothing over the processes."""
    autocast: Callable[[], AbstractContextManager] = nullcontext
    backward: Callable[[Tensor], None] = _backward
    """A backward pass, with the factor of a gradient scaler where there is one."""
    unit: float = 1.0
    """Weight of the backwards whose coefficient is not known yet, a power of two: near the coefficients it keeps
    float16 from underflow where it would not in the joint backward."""


@dataclass(frozen=True)
class References:
    """What is known of the reference at each row of a block: its prediction, or its error alone."""

    prediction: Float[Tensor, " n *chw"] | None = None
    error: Float[Tensor, " n"] | None = None


def errors_at(model: Backbone, block: Block, references: References, rows: Sequence[int]) -> Errors:
    """The errors "n 1" of some rows and their difference, with a graph where gradients are on."""
    probe = block.probe(rows)
    prediction = predict(model, probe)
    if references.prediction is not None:
        return errors_of(prediction, at(references.prediction, rows)[:, None], probe)
    assert references.error is not None
    policy = prediction_error(prediction, probe.target, probe.weight)
    return Errors(policy, at(references.error, rows)[:, None])


def row_errors(runner: Runner, block: Block, references: References, rows: Sequence[int]) -> Errors:
    """As `errors_at`, in a context of its own: autocast keeps the weights that it cast, and those cast without a graph
    would get no gradient."""
    with runner.autocast():
        return errors_at(runner.model, block, references, rows)


def detached(errors: Errors) -> Errors:
    """The errors without their graph."""
    return Errors(errors.policy.detach(), errors.reference.detach(), errors.difference.detach())
