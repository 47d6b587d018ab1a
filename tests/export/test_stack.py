"""Several LoRAs as one, and a smaller rank: against the weights themselves and numpy's SVD of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffpref.backbones.adapters.lora_file import Layer
from diffpref.backbones.adapters.lora_stack import stack, truncate
from tests.lora_files import matrices, write
from tests.small_sdxl import small_unet

Export = Callable[..., Path]
PEFT_DOWN, PEFT_UP = ".lora_A.weight", ".lora_B.weight"


def product(layer: Layer) -> np.ndarray:
    return layer.scale * (layer.up.flatten(1).double() @ layer.down.flatten(1).double()).numpy()


def layers(seed: int, rank: int, *, scale: float = 1.0) -> dict[str, Layer]:
    found = matrices(small_unet(), ("to_q", "conv1"), rank=rank, seed=seed)
    return {name: Layer(down, up, scale) for name, (down, up) in found.items()}


def test_the_stack_is_the_weighted_sum_of_the_changes() -> None:
    one, two = layers(1, 4, scale=0.5), layers(2, 3, scale=2.0)
    del two[next(iter(two))]
    found = stack([(1.0, one), (-0.7, two)])
    for name, layer in found.items():
        wanted = product(one[name]) - 0.7 * (product(two[name]) if name in two else 0)
        assert layer.rank == 7 and layer.scale == 1
        np.testing.assert_allclose(product(layer), wanted, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_truncation_is_the_best_of_its_rank_and_says_what_is_lost(rank: int) -> None:
    """Eckart and Young: no matrix of the rank is nearer than the first singular values of the whole change."""
    whole = stack([(1.0, layers(1, 4, scale=2.0)), (0.5, layers(2, 3))])
    found, lost = truncate(whole, rank)
    left: dict[str, float] = {}
    total: dict[str, float] = {}
    for name, layer in found.items():
        change = product(whole[name])
        values = np.linalg.svd(change, compute_uv=False) ** 2
        left[name], total[name] = values[rank:].sum(), values.sum()
        assert layer.rank == rank and layer.down.shape[1:] == whole[name].down.shape[1:]
        assert ((change - product(layer)) ** 2).sum() == pytest.approx(left[name], abs=1e-5 * values.sum())
    assert lost.all == pytest.approx(sum(left.values()) / sum(total.values()), abs=1e-9)
    worst = max(left, key=lambda name: left[name] / total[name])
    assert lost.worst == pytest.approx(left[worst] / total[worst], abs=1e-9)
    assert rank == 7 or lost.layer == worst


def test_a_rank_above_the_layers_width_is_filled_with_zeros() -> None:
    draws = torch.Generator().manual_seed(0)
    wide = {"one": Layer(torch.randn(6, 3, generator=draws), torch.randn(2, 6, generator=draws), 2.0)}
    found, lost = truncate(wide, 5)
    assert found["one"].rank == 5 and lost.all == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(product(found["one"]), product(wide["one"]), atol=1e-6)


def test_two_files_with_weights_become_one(
    bases: Any, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = small_unet()
    one, two = matrices(network, ("to_q", "to_v"), rank=4, seed=1), matrices(network, ("to_q",), rank=3, seed=2)
    files = write(tmp_path / "a.safetensors", one, "kohya", "unet", 2.0), tmp_path / "b.safetensors"
    write(files[1], two, "diffusers", "unet", None)
    given = {"base": bases("sdxl"), "to": "diffusers"}
    for rank, said in ((None, "stacked to rank 7, which is exact"), (2, "rank 7 -> 2: ")):
        flags = {} if rank is None else {"rank": rank}
        place = export(*files, "--weights", "1", "-0.5", **given, name=f"rank-{rank}", **flags)
        assert said in (text := capsys.readouterr().out) and ("of the energy is lost" in text) == (rank is not None)
        found = load_file(place / "pytorch_lora_weights.safetensors")
        assert {len(found[name]) for name in found if name.endswith(PEFT_DOWN)} == {rank or 7}
        for name, (down, up) in one.items():
            wanted = 0.5 * up @ down - (0.5 * two[name][1] @ two[name][0] if name in two else 0)
            change: Tensor = found[f"unet.{name}{PEFT_UP}"] @ found[f"unet.{name}{PEFT_DOWN}"]
            exact = torch.linalg.norm(change - wanted) <= 1e-5 * torch.linalg.norm(wanted)
            assert bool(exact) == (rank is None)
