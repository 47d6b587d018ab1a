"""Forward probes by hand, and what they refuse."""

import re

import pytest
import torch
from torch import Tensor

from diffpref.kernels import noise_and_target
from diffpref.path import rectified_flow, variance_preserving
from diffpref.probe import forward_probe
from tests.core.small_networks import CHW, B, K, T, a_probe, normal


def test_forward_probe_by_hand() -> None:
    x0 = torch.tensor([[[2.0], [4.0]], [[1.0], [0.0]]])
    eps = torch.tensor([[[-1.0], [-1.0]], [[3.0], [5.0]]])
    probe = forward_probe(rectified_flow(), x0, torch.tensor([0.25, 0.5]), eps)
    assert torch.equal(probe.x_t, torch.tensor([[[1.25], [2.75]], [[2.0], [2.5]]]))
    assert torch.equal(probe.target, torch.tensor([[[-3.0], [-5.0]], [[2.0], [5.0]]]))
    assert torch.equal(probe.t, torch.tensor([0.25, 0.5]))
    assert torch.equal(probe.weight, torch.ones(2))


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("chw", [(3,), (4, 8, 8), (2, 3, 4, 5)])
def test_forward_probe_takes_any_candidates_and_any_picture(k: int, chw: tuple[int, ...]) -> None:
    x0, eps = normal(2, 3, k, *chw)
    probe = forward_probe(rectified_flow(), x0, T, eps)
    assert probe.x_t.shape == probe.target.shape == (3, k, *chw)
    assert probe.t.shape == probe.weight.shape == (3,)


def test_shared_noise_is_shared() -> None:
    x0, eps = normal(2, B, K, *CHW)
    probe = forward_probe(rectified_flow(), x0, T, eps[:, :1].expand_as(x0))
    # x_t - (1 - t) x0 = t eps, whichever the candidate: up to float32 rounding.
    noise = probe.x_t - (1 - T).reshape(B, 1, 1, 1, 1) * x0
    torch.testing.assert_close(noise[:, 0], noise[:, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_shared_noise_is_read_once(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    seen: list[Tensor] = []

    def spy(x0: Tensor, eps: Tensor, **coefficients: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(eps)
        return noise_and_target(x0, eps, **coefficients)

    monkeypatch.setattr("diffpref.probe.noise_and_target", spy)
    x0, eps = normal(2, B, K, *CHW)
    eps = eps[:, :1].expand_as(x0) if shared else eps
    probe = forward_probe(rectified_flow(), x0, T, eps)
    assert seen[0].shape == (B, 1 if shared else K, *CHW)
    assert torch.equal(probe.x_t, rectified_flow().noise(x0, eps, T))
    assert torch.equal(probe.target, rectified_flow().target(x0, eps, T))


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_forward_probe_keeps_the_dtype_of_pictures_and_weighs_in_float32(dtype: torch.dtype, wide: torch.dtype) -> None:
    x0, eps = normal(2, B, K, *CHW).to(dtype)
    probe = forward_probe(variance_preserving(torch.tensor([0.9, 0.5])), x0, torch.tensor([0, 1, 0]), eps)
    assert probe.x_t.dtype == probe.target.dtype == dtype
    assert probe.weight.dtype == wide
    assert probe.t.dtype == torch.int64


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_forward_probe_is_where_the_pictures_are(where: str) -> None:
    x0 = torch.ones(B, K, *CHW, device="meta")
    probe = forward_probe(rectified_flow(), x0, T.to(where), x0)
    assert probe.x_t.device.type == probe.target.device.type == probe.weight.device.type == "meta"


def test_forward_probe_has_its_own_cond() -> None:
    cond = {"text": normal(B, 7)}
    probe = a_probe(cond=cond)
    text = cond.pop("text")
    assert probe.cond.keys() == {"text"} and probe.cond["text"] is text
    assert a_probe().cond == {}


@pytest.mark.parametrize("shape", [(), (2,), (B, K)])
def test_forward_probe_wants_one_t_for_each_prompt(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"one time for each of the 3 prompts, got shape {shape}")):
        forward_probe(rectified_flow(), normal(B, K, *CHW), torch.full(shape, 0.5), normal(B, K, *CHW))


@pytest.mark.usefixtures("unchecked")
def test_forward_probe_wants_noise_for_each_candidate() -> None:
    with pytest.raises(ValueError, match=r"the shape of x0 \(3, 2, 4, 5, 6\), got \(3, 1, 4, 5, 6\)"):
        forward_probe(rectified_flow(), normal(B, K, *CHW), T, normal(B, 1, *CHW))
