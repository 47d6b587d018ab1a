"""The operators as parts of torch: autograd, compile, checkpointing, and what they refuse."""

import re
from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffpref.kernels import fused_error, noise_and_target
from tests.kernels.test_fused_error import a_case
from tests.kernels.test_noising import coefficients, some

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
# opcheck looks for the gradients of its own intermediate results.
OPCHECK_LOOKS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Ordinary runs have no shape checks, and then the package's own messages are what a user sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@OPCHECK_LOOKS
@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_of_the_error(device: str, dtype: torch.dtype, with_reference: bool) -> None:
    case = a_case(device, chw=(3, 5), dtype=dtype)
    reference = case.reference if with_reference else None
    inputs = case.prediction.requires_grad_(), reference, case.target, case.weight
    torch.library.opcheck(torch.ops.diffpref.fused_error.default, inputs)
    given = torch.ones(4, device=device, dtype=case.weight.dtype)
    inputs = case.prediction.detach(), case.target, case.weight, given, given
    torch.library.opcheck(torch.ops.diffpref.fused_error_backward.default, inputs)


@OPCHECK_LOOKS
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_of_the_noising(device: str, dtype: torch.dtype, shared: bool) -> None:
    x0, eps = (x.requires_grad_() for x in some(device, shared=shared, dtype=dtype))
    torch.library.opcheck(torch.ops.diffpref.noising.default, (x0, eps, *coefficients(device).values()))


def step(x0: Tensor, eps: Tensor, scale: Tensor, four: dict[str, Tensor]) -> Tensor:
    """A small step of training: noise, a network of one number, errors and a loss."""
    x_t, target = noise_and_target(x0, eps, **four)
    prediction = scale * x_t.flatten(0, 1)
    error, difference = fused_error(prediction, 0.9 * prediction.detach(), target.flatten(0, 1), four["alpha"].abs())
    return (error + 3 * difference.tanh()).sum()


def gradient_of(run: Callable[..., Tensor], device: str) -> tuple[Tensor, Tensor]:
    scale = torch.tensor(0.7, device=device, requires_grad=True)
    loss = run(*some(device, shared=True), scale, coefficients(device))
    loss.backward()
    assert scale.grad is not None
    return loss.detach(), scale.grad


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_under_compile_in_one_graph(device: str, backend: str) -> None:
    torch._dynamo.reset()
    compiled = gradient_of(torch.compile(step, fullgraph=True, backend=backend), device)
    assert all(torch.equal(x, y) for x, y in zip(compiled, gradient_of(step, device), strict=True))


def test_under_checkpointing(device: str) -> None:
    def checkpointed(*inputs: object) -> Tensor:
        return checkpoint(step, *inputs, use_reentrant=False)

    again = gradient_of(checkpointed, device)
    assert all(torch.equal(x, y) for x, y in zip(again, gradient_of(step, device), strict=True))


def test_backward_keeps_only_what_is_alive_anyway(device: str) -> None:
    case = a_case(device)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused_error(case.prediction.requires_grad_(), case.reference, case.target, case.weight)
    assert sorted(kept) == sorted(x.data_ptr() for x in (case.prediction, case.target, case.weight))


def test_a_second_derivative_is_refused(device: str) -> None:
    case = a_case(device)
    error, difference = fused_error(case.prediction.requires_grad_(), case.reference, case.target, case.weight)
    (first,) = torch.autograd.grad((error + difference).sum(), case.prediction, create_graph=True)
    with pytest.raises(NotImplementedError, match="fused_error has no second derivative"):
        first.square().sum().backward()


@pytest.mark.parametrize("name", ["reference", "target", "weight"])
def test_the_error_has_no_gradient_of_constants(device: str, name: str) -> None:
    case = a_case(device)
    getattr(case, name).requires_grad_()
    with pytest.raises(ValueError, match=f"fused_error has no gradient with respect to {name}: detach()"):
        fused_error(case.prediction, case.reference, case.target, case.weight)
    with torch.no_grad():
        fused_error(case.prediction, case.reference, case.target, case.weight)


@pytest.mark.parametrize("name", ["alpha", "sigma", "a", "b"])
def test_the_noising_has_no_gradient_of_coefficients(device: str, name: str) -> None:
    four = coefficients(device)
    four[name].requires_grad_()
    with pytest.raises(ValueError, match=f"noise_and_target has no gradient with respect to {name}: detach()"):
        noise_and_target(*some(device, shared=True), **four)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_named(device: str) -> None:
    x, one = torch.ones(4, 2, device=device), torch.ones(4, device=device)
    fits = re.escape("must have the prediction's shape (4, 2), got (4, 1).")
    with pytest.raises(ValueError, match="target " + fits):
        fused_error(x, None, x[:, :1], one)
    with pytest.raises(ValueError, match="reference " + fits):
        fused_error(x, x[:, :1], x, one)
    for weight in (one[:3], x, one[0]):
        with pytest.raises(ValueError, match="weight must hold one number for each group of equally many of the 4"):
            fused_error(x, None, x, weight)
    with pytest.raises(ValueError, match="target must be on the prediction's device"):
        fused_error(x, None, x.to("meta"), one)

    x0, four = torch.ones(3, 2, 5, device=device), coefficients(device)
    with pytest.raises(ValueError, match=re.escape("the shape of x0 (3, 2, 5), or 1 in place of its 2 candidates")):
        noise_and_target(x0, x0[:1], **four)
    with pytest.raises(ValueError, match="eps must be on the device of x0"):
        noise_and_target(x0, x0.to("meta"), **four)
    with pytest.raises(ValueError, match="sigma must hold one number for each of the 3 groups"):
        noise_and_target(x0, x0, **four | {"sigma": torch.ones(2, device=device)})
