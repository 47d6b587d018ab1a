"""The errors of models at a probe, and their log-ratio."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from diffpref.errors import compare, errors_of, model_error, predict, prediction_error
from diffpref.objectives import DPO
from diffpref.path import GaussianPath, edm, rectified_flow
from diffpref.probe import forward_probe
from diffpref.types import Backbone, Cond, Errors
from tests.core.small_networks import CHW, B, K, T, a_probe, normal
from tests.gaussian import GaussianData


@dataclass
class Recorder:
    """A network whose output depends on all of its inputs, and that remembers them."""

    path: GaussianPath = field(default_factory=rectified_flow)
    calls: list[tuple[Tensor, Tensor, Cond, bool]] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.calls.append((x_t, t, cond, torch.is_grad_enabled()))
        factor = t * cond["text"].flatten(1).sum(1)
        return x_t * factor.reshape(-1, *(1,) * (x_t.ndim - 1))


class Scale(nn.Module):
    """A network of one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.path = rectified_flow()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.value * x_t


def test_a_module_and_a_dataclass_are_backbones() -> None:
    assert isinstance(Scale(1.0), Backbone)
    assert isinstance(GaussianData(0.0, 1.0).denoiser(edm()), Backbone)
    assert not isinstance(torch.sin, Backbone)


def test_prediction_error_by_hand() -> None:
    prediction = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[1.0, 1.0], [3.0, 5.0]]])
    target = torch.tensor([[[1.0, 4.0], [1.0, 3.0]], [[1.0, 1.0], [0.0, 1.0]]])
    error = prediction_error(prediction, target, torch.tensor([1.0, 10.0]))
    assert torch.equal(error, torch.tensor([[2.0, 5.0], [0.0, 125.0]]))


def test_prediction_error_is_a_mean_whatever_the_picture() -> None:
    for chw in [(1,), (4, 64, 64), (3, 2, 5, 7)]:
        error = prediction_error(torch.full((1, 2, *chw), 3.0), torch.ones(1, 2, *chw), torch.tensor([0.5]))
        torch.testing.assert_close(error, torch.full((1, 2), 2.0))


def test_prediction_error_gradient() -> None:
    prediction, target = normal(2, 2, 3, 2, 2).double()
    weight = torch.tensor([0.7, 1.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(prediction_error, (prediction.requires_grad_(), target, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_prediction_error_in_half_is_computed_in_float32(dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    prediction, target = normal(B, K, *CHW).to(dtype), normal(B, K, *CHW, seed=1).to(target_dtype)
    weight = torch.tensor([1.0, 0.3, 4.0])
    error = prediction_error(prediction, target, weight)
    exact = (prediction.double() - target.double()).square().flatten(2).mean(2) * weight.double()[:, None]
    assert error.dtype == torch.float32
    torch.testing.assert_close(error.double(), exact, rtol=1e-6, atol=0)  # float32 rounding of 120 terms


def test_prediction_error_in_float64() -> None:
    prediction, target = normal(B, K, *CHW).double(), normal(B, K, *CHW, seed=1)
    assert prediction_error(prediction, target, torch.ones(B)).dtype == torch.float64
    assert prediction_error(target, prediction, torch.ones(B)).dtype == torch.float64


def test_large_halves_do_not_overflow() -> None:
    prediction = torch.full((1, 2, 8), 6e4, dtype=torch.float16)
    error = prediction_error(prediction, -prediction, torch.ones(1))
    torch.testing.assert_close(error, torch.full((1, 2), 1.2e5**2))


def test_model_error_equals_that_of_each_candidate_alone() -> None:
    cond = {"text": normal(B, 7), "pooled": normal(B, 2, 2)}
    probe = replace(a_probe(cond=cond), weight=torch.tensor([1.0, 2.0, 0.5]))
    error = model_error(Recorder(), probe)
    assert error.shape == (B, K)
    for i in range(B):
        for j in range(K):
            one = {name: value[i : i + 1] for name, value in cond.items()}
            prediction = Recorder()(probe.x_t[i, j][None], probe.t[i][None], one)[0]
            alone = probe.weight[i] * (prediction - probe.target[i, j]).square().mean()
            torch.testing.assert_close(error[i, j], alone)


def test_the_network_sees_prompts_first_then_candidates() -> None:
    cond, model = {"text": torch.arange(B * 2.0).reshape(B, 2)}, Recorder()
    probe = a_probe(cond=cond)
    model_error(model, probe)
    assert len(model.calls) == 1
    x_t, t, seen, _ = model.calls[0]
    assert torch.equal(x_t, torch.stack([probe.x_t[i, j] for i in range(B) for j in range(K)]))
    assert t.tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.9, 0.9])
    assert seen["text"].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]
    assert cond["text"].shape == probe.cond["text"].shape == (B, 2)


def test_compare_asks_the_reference_first_and_without_a_graph() -> None:
    order: list[tuple[str, bool]] = []

    class Named(Scale):
        def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            order.append(("policy" if self is policy else "reference", torch.is_grad_enabled()))
            return super().forward(x_t, t, cond)

    policy, reference = Named(0.3), Named(0.1)
    errors = compare(policy, reference, a_probe())
    assert order == [("reference", False), ("policy", True)]
    assert errors.policy.requires_grad and not errors.reference.requires_grad
    errors.log_ratio.sum().backward()
    assert reference.value.grad is None
    assert policy.value.grad is not None and policy.value.grad != 0


def test_policy_gradient_is_that_of_the_closed_form() -> None:
    probe, policy = a_probe(), Scale(0.3)
    compare(policy, Scale(0.1), probe).log_ratio.sum().backward()
    # d/dc of -1/2 mean (c x - y)^2 = -mean x (c x - y)
    x, y = probe.x_t.double(), probe.target.double()
    expected = -(x * (0.3 * x - y)).flatten(2).mean(2).sum()
    torch.testing.assert_close(policy.value.grad, expected.float(), rtol=1e-5, atol=0)


def test_compare_is_the_errors_of_both_predictions() -> None:
    probe, policy, reference = replace(a_probe(), weight=torch.tensor([1.0, 2.0, 0.5])), Scale(0.3), Scale(0.1)
    with torch.no_grad():
        of_reference = predict(reference, probe)
    assert of_reference.shape == (B, K, *CHW)
    for errors in (errors_of(predict(policy, probe), of_reference, probe), compare(policy, reference, probe)):
        assert torch.equal(errors.policy, model_error(policy, probe))
        assert torch.equal(errors.reference, model_error(reference, probe))
        torch.testing.assert_close(errors.difference, errors.policy - errors.reference)


def test_the_reference_of_errors_is_a_constant() -> None:
    probe, reference = a_probe(), Scale(0.1)
    with pytest.raises(ValueError, match="no gradient with respect to reference: detach"):
        errors_of(predict(Scale(0.3), probe), predict(reference, probe), probe)


def test_a_loss_may_use_each_of_the_errors() -> None:
    """The difference carries the policy error's gradient, whichever an objective uses."""
    probe, gradients = a_probe(), []
    for use in (lambda e: e.policy, lambda e: e.policy - e.reference, lambda e: -2 * e.log_ratio):
        policy = Scale(0.3)
        use(compare(policy, Scale(0.1), probe)).sum().backward()
        gradients.append(policy.value.grad)
    assert gradients[0] == gradients[1] == gradients[2] != 0


def test_log_ratio_by_hand() -> None:
    errors = Errors(policy=torch.tensor([[0.25, 3.0]]), reference=torch.tensor([[0.75, 1.0]]))
    assert errors.log_ratio.tolist() == [[0.25, -1.0]]
    # Where the difference was computed by itself, it counts: here the errors could not tell it from 0.
    errors = Errors(torch.ones(1, 1), torch.ones(1, 1), difference=torch.tensor([[-1e-10]]))
    assert errors.log_ratio.item() == pytest.approx(5e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_step_0(dtype: torch.dtype) -> None:
    """Policy equal to reference: log-ratios of exactly 0, and a loss of log 2."""
    x0, eps = normal(2, B, K, *CHW).to(dtype)
    path = edm()
    probe = forward_probe(path, x0, T.to(dtype), eps)
    model = GaussianData(0.1, 1.2).denoiser(path)
    errors = compare(model, model, probe)
    assert (errors.policy > 0).all()
    assert torch.equal(errors.log_ratio, torch.zeros_like(errors.log_ratio)) and not errors.log_ratio.signbit().any()
    loss = DPO()(errors, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    torch.testing.assert_close(loss.double(), torch.full((B,), math.log(2)).double(), rtol=0, atol=1e-7)
