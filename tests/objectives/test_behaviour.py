"""What every objective promises, whatever its formula; a new one is tested here by being in `OBJECTIVES`."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from diffpref import objectives
from diffpref.data.forms import FORMS
from diffpref.data.scoring import SCALINGS
from diffpref.types import Errors, Objective

LOG_2 = math.log(2)
# Loss in nats at policy == reference for scores (1, 0); log 2 where nothing else is said.
AT_STEP_0 = {
    # log 2 * the sum of Delta_ij: gains 2^1 and 2^0, discounts ln 2 and ln 3 (methods.md 5.1).
    "RankDPO": lambda objective: LOG_2 * (2 - 1) * (1 / LOG_2 - 1 / math.log(3)),
    # Real at log 2, fake at alpha log 2 (methods.md 6.7).
    "DDO": lambda objective: (1 + objective.alpha) * LOG_2,
}
every_objective = pytest.mark.parametrize("name", [kind.__name__ for kind in objectives.OBJECTIVES.values()])
# Scores that mean something to all: preferred and not, rewards in [0, 1], real and fake.
SCORES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)


def make(name: str) -> Objective:
    """The objective with its published defaults, which every one has."""
    return getattr(objectives, name)()


def errors_near(log_ratio: Tensor) -> Errors:
    reference = torch.full_like(log_ratio, 0.1)
    return Errors(policy=(reference - 2 * log_ratio).requires_grad_(), reference=reference)


def small(dtype: torch.dtype = torch.float64) -> Errors:
    """Log-ratios as in training: of the order of 1 / beta, both signs."""
    return errors_near(torch.tensor([[2e-4, -1e-4], [1e-4, 3e-4], [0.0, 0.0]], dtype=dtype))


@every_objective
def test_is_a_frozen_dataclass(name: str) -> None:
    objective = make(name)
    assert dataclasses.is_dataclass(objective)
    assert type(objective).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert objective == make(name)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_finite_loss_for_each_prompt(name: str, dtype: torch.dtype) -> None:
    errors = small(dtype)
    loss = make(name)(errors, SCORES.to(dtype))
    assert loss.shape == (3,) and loss.dtype == dtype
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), errors.policy)[0].isfinite().all()


@every_objective
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extremes_are_finite(name: str, size: float) -> None:
    errors = errors_near(torch.tensor([[size, -size], [size, -size], [-size, -size]]))
    loss = make(name)(errors, SCORES.float())
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), errors.policy)[0].isfinite().all()


@every_objective
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_cost_nothing(name: str, dtype: torch.dtype) -> None:
    # In the scores' own type 5000 would be 4992 (bfloat16), or a margin of 1e5 infinite (float16).
    objective, errors = make(name), small(torch.float32)
    loss = objective(errors, SCORES.to(dtype))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, objective(errors, SCORES.float()), rtol=1e-6, atol=0)


@every_objective
def test_half_precision_errors_are_finite(name: str) -> None:
    policy = torch.tensor([[0.1, 0.2], [3e4, 0.0], [0.0, 3e4]], dtype=torch.bfloat16, requires_grad=True)
    loss = make(name)(Errors(policy, torch.zeros(3, 2, dtype=torch.bfloat16)), SCORES.bfloat16())
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), policy)[0].isfinite().all()


@every_objective
def test_changes_nothing_that_it_is_given(name: str) -> None:
    errors, scores = small(), SCORES.clone()
    before = errors.policy.detach().clone(), errors.reference.clone()
    make(name)(errors, scores)
    assert torch.equal(errors.policy, before[0]) and torch.equal(errors.reference, before[1])
    assert torch.equal(scores, SCORES)


@every_objective
def test_says_what_its_groups_and_scores_are(name: str) -> None:
    objective = make(name)
    assert isinstance(objective, Objective) and dataclasses.is_dataclass(objective)
    assert objective.candidates in FORMS and objective.scaling in SCALINGS
    fields = {field.name for field in dataclasses.fields(objective)}
    assert not fields & {"candidates", "scaling", "alarm"}, "they belong to the method; they are no settings"


@every_objective
def test_pulls_towards_the_better_and_away_from_the_worse(name: str) -> None:
    errors = small()
    gradient = torch.autograd.grad(make(name)(errors, SCORES).sum(), errors.policy)[0]
    # Lowering the error of the better candidate lowers the loss.
    assert (gradient[SCORES == 1] > 0).all()
    assert (gradient[SCORES == 0] < 0).all()


@every_objective
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    # In units of 1e-4, where training happens, so that a step of 1e-6 is small whatever beta is.
    objective, at = make(name), torch.tensor([[2.0, -1.0], [1.0, 3.0], [0.5, 0.2]], dtype=torch.float64)
    reference = torch.full_like(at, 0.1)
    # D3PO's beta is 0.1 and its slopes 5e-6 in these units, so the tolerance has to be below that.
    assert torch.autograd.gradcheck(
        lambda x: objective(Errors(reference - 1e-4 * x, reference), SCORES), (at.requires_grad_(),), atol=1e-8
    )


@every_objective
def test_the_order_of_the_candidates_is_nothing(name: str) -> None:
    errors, objective = small(), make(name)
    swapped = Errors(errors.policy.flip(1), errors.reference.flip(1))
    torch.testing.assert_close(objective(errors, SCORES), objective(swapped, SCORES.flip(1)), rtol=1e-12, atol=0)


@every_objective
def test_prompts_do_not_mix(name: str) -> None:
    errors, objective = small(), make(name)
    alone = [
        objective(Errors(errors.policy[i : i + 1], errors.reference[i : i + 1]), SCORES[i : i + 1]) for i in range(3)
    ]
    torch.testing.assert_close(objective(errors, SCORES), torch.cat(alone), rtol=1e-12, atol=0)


@every_objective
def test_loss_at_step_0(name: str) -> None:
    objective = make(name)
    loss = objective(errors_near(torch.zeros(3, 2, dtype=torch.float64)), SCORES)
    expected = AT_STEP_0.get(name, lambda objective: LOG_2)(objective)
    torch.testing.assert_close(loss, torch.full_like(loss, expected), rtol=1e-12, atol=0)
