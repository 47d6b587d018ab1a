"""Guidance: empty + scale (prompted - empty) from one call, and what it leaves alone."""

from dataclasses import dataclass, field

import torch

from diffpref.backbones.guidance import guided
from diffpref.path import GaussianPath, variance_preserving
from diffpref.types import Cond

PATH = variance_preserving(torch.linspace(0.999, 0.01, 1000).double())
EMPTY = {"prompt": torch.tensor([[2.0, -1.0]]).double()}


@dataclass(frozen=True)
class Linear:
    """weight * prompt * x; remembers what it was asked."""

    weight: torch.Tensor
    path: GaussianPath = PATH
    asked: list[Cond] = field(default_factory=list)

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        self.asked.append({**cond, "t": t})
        return self.weight * cond["prompt"] * x_t


def test_the_formula_and_its_gradient() -> None:
    weight = torch.tensor(3.0).double().requires_grad_()
    model = Linear(weight)
    x, prompt = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(), torch.tensor([[5.0, 7.0], [1.0, 1.0]]).double()
    cond = {"prompt": prompt, "time_ids": torch.arange(4.0).reshape(2, 2)}
    t = torch.tensor([3, 900])
    found = guided(model, 4.0, EMPTY)(x, t, cond)
    # By hand: 3 x (e + 4 (p - e)); e = (2, -1).
    expected = 3 * x * torch.tensor([[14.0, 31.0], [-2.0, 7.0]]).double()
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    torch.testing.assert_close(weight.grad, expected.sum() / 3)
    (asked,) = model.asked
    assert asked["t"].tolist() == [3, 900, 3, 900]
    assert torch.equal(asked["time_ids"], cond["time_ids"].repeat(2, 1)), "no empty form: the same for both"


def test_scale_1_is_the_model_itself() -> None:
    model = Linear(torch.ones(()).double())
    assert guided(model, 1.0, EMPTY) is model
    assert guided(model, 2.0, EMPTY).path is model.path


def test_empty_prompts_are_not_changed_by_any_scale() -> None:
    model, x = Linear(torch.ones(()).double()), torch.ones(3, 2).double()
    cond = {"prompt": EMPTY["prompt"].expand(3, 2)}
    torch.testing.assert_close(guided(model, 7.5, EMPTY)(x, torch.zeros(3), cond), model(x, torch.zeros(3), cond))


def test_half_precision_is_mixed_in_float32() -> None:
    """Of two half precision predictions the mixture is exact; rounded again it would be wrong by up to 2^-9 of 5."""
    model = Linear(torch.ones((), dtype=torch.bfloat16))
    x = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    prompt = torch.tensor([[2.015625, -1.0078125]], dtype=torch.bfloat16)
    empty = {"prompt": torch.tensor([[1.9921875, -1.0]], dtype=torch.bfloat16)}
    found = guided(model, 5.0, empty)(x, torch.zeros(1), {"prompt": prompt})
    exact = empty["prompt"].double() + 5 * (prompt.double() - empty["prompt"].double())
    assert found.dtype == torch.float32 and torch.equal(found.double(), exact)
