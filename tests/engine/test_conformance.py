"""What every mode of the package must keep: the gradient, the memory that it asks for, the rows that it names."""

from dataclasses import replace

import pytest
import torch

from diffpref.engine.memory import candidate_bytes
from diffpref.engine.modes import MODES, Cut, Mode, Work, name_of
from diffpref.engine.rows import Block
from tests.engine.test_costs import peak_held
from tests.engine.test_modes import autograd, relative
from tests.engine.world import CASES, World, outcome, part, references, world

GROUPS, K = 2, 3


@pytest.fixture(scope="module")
def exact() -> World:
    return world("sdxl")


@pytest.fixture(scope="module")
def single() -> World:
    return world("sdxl", torch.float32)


def work_of(w: World, groups: int = GROUPS, k: int = K) -> Work:
    """As a run measures it."""
    one = candidate_bytes(w.policy, w.network, part(w, 1, 1, 0).probe)
    gradient = sum(p.numel() * p.element_size() for p in w.parameters)
    return Work(candidate=one, checkpointed=None, gradient=gradient, groups=groups, k=k, cheap_scratch=True)


def made(name: str) -> Mode:
    return MODES[name]()


@pytest.mark.parametrize("name", MODES)
def test_it_is_a_mode_with_its_name(name: str) -> None:
    assert isinstance(made(name), Mode) and name_of(made(name)) == name


@pytest.mark.parametrize("name", MODES)
def test_its_gradient_is_autograds_in_every_size(name: str, exact: World) -> None:
    """Through nothing of the engine, in float64, for each micro-batch that the mode would try."""
    objective, mode = CASES["rankdpo"].objective, made(name)
    parts = [part(exact, GROUPS, K, 0)]
    block = Block(parts)
    expected = exact.gradient(lambda: autograd(exact, objective, parts))
    known, runner = references(exact, block), exact.runner(objective)
    for size in mode.sizes(work_of(exact)):
        found = exact.gradient(lambda size=size: outcome(mode, runner, block, known, micro_batch=size))
        assert relative(found, expected) < 1e-12, size


@pytest.mark.parametrize("name", MODES)
def test_its_need_is_an_upper_bound(name: str, single: World) -> None:
    """Of the graphs' bytes, kept by this test, and of the scratches that the mode declares."""
    objective, mode, work = CASES["rankdpo"].objective, made(name), work_of(single)
    block = Block([part(single, GROUPS, K, 0)])
    known, runner = references(single, block), single.runner(objective)
    for size in mode.sizes(work):
        graphs = peak_held(single, lambda size=size: outcome(mode, runner, block, known, micro_batch=size))
        need = mode.need(work, size, checkpointing=False)
        scratches = mode.scratches(work.k, size) * work.gradient
        assert graphs + scratches <= need <= 1.3 * graphs + scratches, size


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize(
    "cut", [Cut(micro_batch=1), Cut(micro_batch=2), Cut(micro_batch=4, separable=False, masks=True)]
)
def test_its_forwards_cover_each_row_once(name: str, cut: Cut, single: World) -> None:
    """Also where batches share candidates."""
    apart = [part(single, 2, 2, seed) for seed in range(2)]
    shared = [replace(apart[0], keys=tuple("abbc")), replace(apart[1], keys=tuple("cdef"))]
    for parts in (apart, shared):
        block = Block(parts)
        rows = [row for forward in made(name).forwards(block, cut) for row in forward]
        assert sorted(rows) == list(range(len(block.rows)))


@pytest.mark.parametrize("name", MODES)
def test_a_mode_that_cuts_has_room_for_one_candidate(name: str, single: World) -> None:
    mode, work = made(name), work_of(single)
    sizes = list(mode.sizes(work))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert sizes[-1] == (1 if mode.cuts else GROUPS * K) and mode.describe(sizes[0])
