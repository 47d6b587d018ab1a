"""The order of chains' steps: what shares chains is read together, every epoch in an order of its own."""

import itertools
from pathlib import Path

import pytest
import torch

from diffpref.backbones import Checkpoint
from diffpref.backbones.sdxl import SDXL
from diffpref.files.store import TensorStore
from diffpref.probes import StepBatch
from diffpref.sources.chains import ChainGroups, ChainPair
from diffpref.training.stream import Drawing, Share, batches

STEPS = 3
PAIRS = {"cat": ("ab", "ac", "bc"), "dog": ("de",)}
"""The chains of each prompt that were told apart: all three pairs of a, b, c; one of d and e."""
GROUPS = STEPS * 4


@pytest.fixture
def data(tmp_path: Path) -> ChainGroups:
    """Latents that say which chain and step they are: 10 * chain + step."""
    store = TensorStore(tmp_path / "chains")
    for number, chain in enumerate("abcde"):
        latents = torch.stack([torch.full((4, 2, 2), 10.0 * number + step) for step in range(STEPS + 1)])
        store.add(chain, {"latents": latents})
    for prompt in PAIRS:
        store.add(prompt, {"embeds": torch.zeros(3, 5)})
    store.flush()
    pairs = [ChainPair((pair[0], pair[1]), prompt, (1.0, -1.0)) for prompt, many in PAIRS.items() for pair in many]
    return ChainGroups(pairs, torch.tensor([900, 600, 300, 100]), store, "print")


def stream(data: ChainGroups, *, size: int, steps: int, share: tuple[int, int] = (0, 1)) -> list[StepBatch]:
    empty = {"embeds": torch.zeros(1, 3, 5)}
    draw_t = SDXL(Checkpoint("")).draw_t
    drawing = Drawing(draw_t=draw_t, empty_prompt=empty, complete=lambda prompts: prompts, seed=5)
    cut = Share(size=size, rank=share[0], processes=share[1])
    found = batches(data, drawing, cut, first_step=0, steps=steps)
    return list(found)  # type: ignore[arg-type]


def seen(batch: StepBatch) -> list[tuple[str, ...]]:
    return [batch.names[place : place + 2] for place in range(0, len(batch.names), 2)]


def test_an_epoch_has_every_pair_at_every_step_and_those_that_share_chains_together(data: ChainGroups) -> None:
    (batch,) = stream(data, size=GROUPS, steps=1)
    groups = seen(batch)
    every = {(f"{p[0]} {s}", f"{p[1]} {s}") for many in PAIRS.values() for p in many for s in range(STEPS)}
    assert len(groups) == GROUPS and set(groups) == every
    runs = [name for name, _ in itertools.groupby((step(group), group[0][0] in "abc") for group in groups)]
    assert len(runs) == len(set(runs)) == 2 * STEPS, "each prompt's step stands in one place"


def step(group: tuple[str, ...]) -> str:
    return group[0].split()[1]


def test_names_are_the_latents(data: ChainGroups) -> None:
    """Equal names, and only they, are equal latents at equal times."""
    (batch,) = stream(data, size=GROUPS, steps=1)
    values = batch.candidates.x0[:, :, 0, 0, 0].flatten().tolist()
    assert [10 * "abcde".index(name[0]) + int(name[2:]) for name in batch.names] == values
    assert batch.x_s[:, :, 0, 0, 0].flatten().tolist() == [value + 1 for value in values]
    assert batch.to(torch.device("cpu")).names == batch.names


def test_every_epoch_has_an_order_of_its_own(data: ChainGroups) -> None:
    epochs = [seen(batch) for batch in stream(data, size=GROUPS, steps=6)]
    assert len({tuple(epoch) for epoch in epochs}) > 4 and len({frozenset(epoch) for epoch in epochs}) == 1
    assert [seen(batch) for batch in stream(data, size=GROUPS, steps=6)] == epochs


def test_a_process_reads_neighbours(data: ChainGroups) -> None:
    whole = seen(stream(data, size=GROUPS, steps=1)[0])
    halves = [seen(stream(data, size=GROUPS // 2, steps=1, share=(rank, 2))[0]) for rank in range(2)]
    assert halves[0] + halves[1] == whole
