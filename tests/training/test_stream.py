"""Order, noise, mirroring and caption dropout are functions of (seed, position), and of nothing else."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpref.backbones import Checkpoint
from diffpref.backbones.sdxl import SDXL
from diffpref.data.encode import EncodedPreferences, Group
from diffpref.files.store import TensorStore
from diffpref.path import GaussianPath, variance_preserving
from diffpref.probes import Batch
from diffpref.run.randomness import generator, index_at
from diffpref.sources.images import ImageGroups
from diffpref.training.stream import Drawing, Share, batches

COUNT = 7
MIRRORED = 100.0
EMPTY = {"embeds": torch.zeros(1, 3, 5), "pooled": torch.zeros(1, 6)}
PATH: GaussianPath = variance_preserving(torch.linspace(0.999, 0.01, 1000))


@pytest.fixture
def data(tmp_path: Path) -> ImageGroups:
    """Latents and prompts that say which group they are: 10 * group + place, mirrored + 100; an empty prompt of 0."""
    store, groups = TensorStore(tmp_path / "cache"), []
    for index in range(COUNT):
        keys: dict[bool, list[str]] = {False: [], True: []}
        for place in range(2):
            for mirror in (False, True):
                key = f"{index}-{place}-{mirror}"
                store.add(key, {"latent": torch.full((4, 2, 3), 10.0 * index + place + MIRRORED * mirror).half()})
                keys[mirror].append(key)
        store.add(f"prompt-{index}", {"embeds": torch.full((3, 5), index + 1.0).half(), "pooled": torch.ones(6)})
        groups.append(Group(tuple(keys[False]), tuple(keys[True]), f"prompt-{index}", (1.0, 0.0)))
    store.flush()
    return ImageGroups(EncodedPreferences(groups, store, "print"))


def stream(data: ImageGroups, **changes: Any) -> Iterator[Batch]:
    draws: dict[str, Any] = {"flip": True, "empty": 0.3, "seed": 5}
    cuts: dict[str, Any] = {"size": 1, "first_step": 0, "steps": 24, "accumulation": 1, "share": (0, 1)}
    for name, value in changes.items():
        (cuts if name in cuts else draws)[name] = value
    rank, processes = cuts["share"]
    share = Share(size=cuts["size"], accumulation=cuts["accumulation"], rank=rank, processes=processes)
    drawing = Drawing(draw_t=SDXL(Checkpoint("")).draw_t, empty_prompt=EMPTY, complete=lambda prompts: prompts, **draws)
    return batches(data, drawing, share, first_step=cuts["first_step"], steps=cuts["steps"])


def flat(found: Iterator[Batch] | list[Batch]) -> dict[str, torch.Tensor]:
    """Everything that a stream gives, group after group."""
    parts = list(found)
    tensors = {"x0": [b.candidates.x0 for b in parts], "scores": [b.candidates.scores for b in parts]}
    tensors |= {"t": [b.t for b in parts], "eps": [b.eps for b in parts]}
    tensors |= {name: [b.candidates.cond[name] for b in parts] for name in parts[0].candidates.cond}
    return {name: torch.cat(values) for name, values in tensors.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def groups_of(found: dict[str, torch.Tensor]) -> list[int]:
    return (found["x0"][:, 0, 0, 0, 0] % MIRRORED / 10).long().tolist()


def test_each_epoch_is_a_permutation_of_its_own(data: ImageGroups) -> None:
    order = groups_of(flat(stream(data, steps=20 * COUNT)))
    epochs = [tuple(order[start : start + COUNT]) for start in range(0, len(order), COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    # 20 draws of 5040 orders: some two are equal in 4 % of seeds, three in none that matters.
    assert len(set(epochs)) >= 19
    assert order == [index_at(5, position, COUNT) for position in range(20 * COUNT)]


@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (1, 4), (2, 2), (8, 3), (24, 1)])
def test_batches_and_accumulation_only_cut_the_stream(data: ImageGroups, size: int, accumulation: int) -> None:
    steps = 24 // (size * accumulation)
    found = list(stream(data, size=size, accumulation=accumulation, steps=steps))
    assert len(found) == steps * accumulation and all(len(batch.t) == size for batch in found)
    assert_equal(flat(found), flat(stream(data)))


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_of_processes_interleave_to_the_stream_of_one(data: ImageGroups, processes: int) -> None:
    shares = [
        list(stream(data, size=2, accumulation=2, steps=24 // (4 * processes), share=(rank, processes)))
        for rank in range(processes)
    ]
    steps = range(0, len(shares[0]), 2)
    together = [batch for step in steps for share in shares for batch in share[step : step + 2]]
    assert_equal(flat(together), flat(stream(data)))


@pytest.mark.parametrize("first", [1, 3, 5])
def test_starting_at_a_step_equals_skipping_to_it(data: ImageGroups, first: int) -> None:
    options = {"size": 2, "accumulation": 2, "steps": 6}
    straight = list(stream(data, **options))
    assert_equal(flat(stream(data, first_step=first, **options)), flat(straight[2 * first :]))


def test_a_finished_run_has_nothing_left(data: ImageGroups) -> None:
    assert list(stream(data, first_step=6, steps=6)) == []


def test_global_generators_play_no_part(data: ImageGroups) -> None:
    torch.manual_seed(1)
    one = flat(stream(data))
    torch.manual_seed(2)
    assert_equal(one, flat(stream(data)))


def test_noise_is_shared_within_a_group_and_different_between_groups(data: ImageGroups) -> None:
    found = flat(stream(data, size=4, steps=12))
    eps = found["eps"]
    assert eps.shape == found["x0"].shape == (48, 2, 4, 2, 3)
    assert torch.equal(eps[:, 0], eps[:, 1])
    assert len({tuple(row.tolist()) for row in eps[:, 0].flatten(1)}) == 48, "also where an epoch repeats the group"
    assert len(set(found["t"].tolist())) > 40


def test_seeds_differ_in_everything(data: ImageGroups) -> None:
    one, other = flat(stream(data, seed=5)), flat(stream(data, seed=6))
    assert groups_of(one) != groups_of(other)
    for name in ("t", "eps", "embeds"):
        assert not torch.equal(one[name], other[name])


def test_a_group_is_mirrored_together_and_keeps_its_caption(data: ImageGroups) -> None:
    found = flat(stream(data, steps=60))
    x0, groups = found["x0"], groups_of(found)
    mirrored = x0[:, 0, 0, 0, 0] >= MIRRORED
    for place in range(2):
        expected = torch.tensor([10.0 * group + place for group in groups]) + MIRRORED * mirrored
        assert torch.equal(x0[:, place], expected[:, None, None, None].expand(60, 4, 2, 3))
    caption = found["embeds"][:, 0, 0]
    assert all(value in (0, group + 1) for value, group in zip(caption.tolist(), groups, strict=True))
    assert torch.equal(found["pooled"].sum(1) == 0, caption == 0), "the whole prompt is dropped, not a part"
    assert x0.dtype == found["embeds"].dtype == torch.float32


@pytest.mark.parametrize(("flip", "empty", "dropped"), [(False, 0.0, 0), (False, 1.0, 60)])
def test_off_is_off(data: ImageGroups, flip: bool, empty: float, dropped: int) -> None:
    found = flat(stream(data, flip=flip, empty=empty, steps=60))
    assert (found["x0"] < MIRRORED).all() and int((found["embeds"][:, 0, 0] == 0).sum()) == dropped


def within(count: int, probability: float, draws: int) -> bool:
    """Within 4 standard deviations of its mean: a right stream fails this at 1 seed in 16,000."""
    return abs(count - draws * probability) <= 4 * math.sqrt(draws * probability * (1 - probability))


def test_proportions_of_a_long_stream(data: ImageGroups) -> None:
    draws, empty = 1500, 0.2
    found = flat(stream(data, empty=empty, size=50, steps=draws // 50))
    mirrored, dropped = found["x0"][:, 0, 0, 0, 0] >= MIRRORED, found["embeds"][:, 0, 0] == 0
    assert within(int(mirrored.sum()), 0.5, draws) and within(int(dropped.sum()), empty, draws)
    assert within(int((mirrored & dropped).sum()), 0.5 * empty, draws), "the two coins are independent"
    t = found["t"]
    assert t.dtype == torch.int64 and 0 <= int(t.min()) and int(t.max()) < 1000
    for quarter in range(4):
        assert within(int((t // 250 == quarter).sum()), 0.25, draws)
    assert within(int((dropped & (t < 500)).sum()), 0.5 * empty, draws), "t does not depend on the coins"
    eps = found["eps"][:, 0].double()
    assert abs(float(eps.mean())) <= 4 / math.sqrt(eps.numel())
    # The variance of N standard normal squares' mean is 2 / N.
    assert abs(float(eps.square().mean()) - 1) <= 4 * math.sqrt(2 / eps.numel())


def test_noise_of_each_picture_where_it_is_not_shared(data: ImageGroups) -> None:
    eps = flat(stream(data, shared_noise=False))["eps"]
    assert len({tuple(row.tolist()) for row in eps.flatten(0, 1).flatten(1)}) == 48


def test_repeats_give_each_group_so_many_draws_in_turn(data: ImageGroups) -> None:
    epochs = [list(stream(data, repeats=2, first_step=e * COUNT, steps=(e + 1) * COUNT)) for e in range(4)]
    drawn = [
        {b.names[0]: (float(b.t), b.eps.sum().item(), b.candidates.x0.sum().item(), b.candidates.cond["embeds"].sum())
         for b in epoch}
        for epoch in epochs
    ]  # fmt: skip
    assert drawn[0] == drawn[2] and drawn[1] == drawn[3] and not set(drawn[0]) & set(drawn[1])
    assert all(len(epoch) == COUNT for epoch in drawn)


@pytest.mark.parametrize("shared", [True, False])
def test_shared_noise_is_in_memory_once(data: ImageGroups, shared: bool) -> None:
    eps = next(stream(data, size=3, shared_noise=shared)).to(torch.device("cpu")).eps
    assert eps.shape == (3, 2, 4, 2, 3)
    assert eps.untyped_storage().nbytes() == eps.numel() * 4 // (2 if shared else 1)


def test_generators_of_different_places_differ() -> None:
    places: list[tuple[Any, ...]] = [
        (0, "group", 1),
        (0, "group", 11),
        (1, "group", 1),
        (0, "epoch", 1),
        (0, "group", 12),
    ]
    draws = [float(torch.rand((), generator=generator(*place), dtype=torch.float64)) for place in places]
    assert len(set(draws)) == len(draws)
    again = [float(torch.rand((), generator=generator(*place), dtype=torch.float64)) for place in places]
    assert draws == again


def test_a_batch_moves_whole(data: ImageGroups) -> None:
    batch = next(stream(data, size=3))
    moved = batch.to(torch.device("cpu"))
    assert_equal(flat([moved]), flat([batch]))
    ghost = batch.to(torch.device("meta"))
    tensors = [ghost.t, ghost.eps, ghost.candidates.x0, ghost.candidates.scores, *ghost.candidates.cond.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
