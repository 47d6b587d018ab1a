"""Three orders of one sum: the exact gradient of a block of batches, jointly, deferred or in two passes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.engine.gradients import Scratch, add_scaled, collected
from diffpref.engine.independence import random_state, replayed
from diffpref.engine.rows import Block, Component, chunks
from diffpref.engine.scalars import Outcome, Scalars, no_losses, outcome_of, slopes_of
from diffpref.errors import errors_of, predict, prediction_error
from diffpref.types import Backbone, Errors, Objective


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Runner:
    """How the policy is run: the network that is not wrapped for several processes, so that no hook reduces gradients
    that are not scaled yet."""

    model: Backbone
    parameters: Sequence[torch.nn.Parameter]
    objective: Objective
    autocast: Callable[[], AbstractContextManager] = nullcontext
    scale: Callable[[Tensor], Tensor] = _same
    """The factor of a gradient scaler; every gradient is scaled by it once."""
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
    place = torch.tensor(rows, device=probe.x_t.device)
    prediction = predict(model, probe)
    if references.prediction is not None:
        return errors_of(prediction, references.prediction[place][:, None], probe)
    assert references.error is not None
    policy = prediction_error(prediction, probe.target, probe.weight)
    return Errors(policy, references.error[place][:, None])


def row_errors(runner: Runner, block: Block, references: References, rows: Sequence[int]) -> Errors:
    """As `errors_at`, in a context of its own: autocast keeps the weights that it cast, and those cast without a graph
    would get no gradient."""
    with runner.autocast():
        return errors_at(runner.model, block, references, rows)


def detached(errors: Errors) -> Errors:
    """The errors without their graph."""
    return Errors(errors.policy.detach(), errors.reference.detach(), errors.difference.detach())


def joint_loss(
    model: Backbone, objective: Objective, block: Block, number: int, references: References
) -> tuple[Errors, Tensor]:
    """The errors and losses of a part of the block in one graph; a candidate of several of its groups runs once."""
    scores = block.parts[number].scores
    rows = [row for group in block.places[number] for row in group]
    once = sorted(set(rows))
    errors = errors_at(model, block, references, once)
    found = [errors.policy[:, 0], errors.reference[:, 0], errors.difference[:, 0]]
    if once != rows:
        at = {row: place for place, row in enumerate(once)}
        places = torch.tensor([at[row] for row in rows], device=scores.device)
        found = [each[places] for each in found]
    errors = Errors(*(each.view(scores.shape) for each in found))
    return errors, objective(errors, scores)


def deferred(
    runner: Runner, block: Block, references: References, *, micro_batch: int, share: float, separable: bool
) -> Outcome:
    """Every row forward and backward once; what was run before its coefficient is known goes through a scratch.

    Groups that fit a micro-batch together are one graph and need no scratch. Of a larger group the last `micro_batch`
    candidates are one graph, whose forward makes all coefficients known; each candidate before them has a scratch, so
    that a pair in micro-batches of one needs one scratch, whatever the objective.

    Args:
        micro_batch: the most candidates in one graph.
        share: of one batch of the window in the step's loss: 1 / accumulation.
    """
    scalars, losses = Scalars(block), no_losses(block)
    for bundle, early, last in _order(block, micro_batch, separable):
        scratches: list[Scratch] = []
        for row in early:
            errors = row_errors(runner, block, references, [row])
            scalars.put([row], errors)
            with collected(runner.parameters) as scratch:
                runner.scale(errors.policy.sum() * runner.unit).backward()
            scratches.append(scratch)
            del errors
        errors = row_errors(runner, block, references, last)
        scalars.put(last, errors)
        slopes = slopes_of(runner.objective, block, bundle, scalars, losses, share)
        for row, scratch in zip(early, scratches, strict=True):
            add_scaled(runner.parameters, scratch, slopes[row] / runner.unit)
        _backward(runner, errors, [slopes[row] for row in last])
        del errors
    return outcome_of(block, scalars, losses, frozenset(range(len(block.rows))))


def two_pass(
    runner: Runner,
    block: Block,
    references: References,
    *,
    micro_batch: int,
    first_batch: int,
    share: float,
    replay: bool = False,
) -> Outcome:
    """All scalars first, without a graph; then forward and backward at their weights, where these are not 0.

    Args:
        first_batch: candidates of one forward without a graph; with `replay` the micro-batch.
        replay: the network draws masks, which the second pass must draw again.
    """
    scalars, losses = Scalars(block), no_losses(block)
    everything = list(range(len(block.rows)))
    device = block.parts[0].scores.device
    states = []
    for rows in chunks(everything, micro_batch if replay else first_batch):
        states.append(random_state(device) if replay else None)
        with torch.no_grad():
            scalars.put(rows, row_errors(runner, block, references, rows))
    parts = [Component(tuple((number, g) for g in range(len(p.scores))), ()) for number, p in enumerate(block.parts)]
    slopes = slopes_of(runner.objective, block, parts, scalars, losses, share)
    zero = torch.stack([slopes[row] for row in everything]) == 0
    # Where nothing is known of the values, as on meta tensors, every candidate counts.
    skip = [False] * len(everything) if zero.is_meta else zero.tolist()
    if all(skip):
        # Gradients of zero, not none: the optimizer must move as it does after a joint backward.
        skip = [row >= micro_batch for row in everything]
    if replay:
        runs = [(rows, state) for rows, state in zip(chunks(everything, micro_batch), states, strict=True)]
        runs = [(rows, state) for rows, state in runs if not all(skip[row] for row in rows)]
    else:
        runs = [(rows, None) for rows in chunks([row for row in everything if not skip[row]], micro_batch)]
    for rows, state in runs:
        with nullcontext() if state is None else replayed(state, device):
            errors = row_errors(runner, block, references, rows)
            _backward(runner, errors, [slopes[row] for row in rows])
        del errors
    return outcome_of(block, scalars, losses, frozenset(row for rows, _ in runs for row in rows))


def deferred_forwards(block: Block, micro_batch: int, *, separable: bool) -> list[list[int]]:
    """The rows of each forward of `deferred`, in order."""
    order = _order(block, micro_batch, separable)
    return [rows for _, early, last in order for rows in (*([row] for row in early), last)]


def _order(block: Block, micro_batch: int, separable: bool) -> list[tuple[list[Component], list[int], list[int]]]:
    """Components that are run together: the rows that run alone, each with a scratch, and those of the last graph."""
    found = []
    for bundle in _bundles(block.components(separable=separable), micro_batch):
        rows = sorted({row for component in bundle for row in component.rows})
        found.append((bundle, rows[:-micro_batch], rows[-micro_batch:]))
    return found


def _bundles(components: Sequence[Component], size: int) -> list[list[Component]]:
    """Components that fit one micro-batch together; a larger one is alone."""
    bundles: list[list[Component]] = []
    room = 0
    for component in components:
        count = len(component.rows)
        if count > room:
            bundles.append([])
            room = size
        bundles[-1].append(component)
        room -= count
    return bundles


def _backward(runner: Runner, errors: Errors, slopes: Sequence[Tensor]) -> None:
    runner.scale((errors.policy[:, 0] * torch.stack(list(slopes))).sum()).backward()
