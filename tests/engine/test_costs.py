"""What a micro-batch costs and draws: its memory, the scaling of float16, dropout masks, networks that mix samples."""

import pytest
import torch

from diffpref.engine.independence import check_independent
from diffpref.engine.memory import saved_bytes
from diffpref.engine.modes import Deferred, Joint, TwoPass
from diffpref.engine.rows import Block
from diffpref.objectives import DPO, RankDPO
from tests.engine.test_modes import autograd, relative
from tests.engine.world import World, joint, outcome, part, references, world


def test_deferred_holds_one_micro_batch() -> None:
    """Bytes that live graphs hold, over a list of four: never more than one candidate's, in both modes."""
    w = world("sdxl", torch.float32)
    parts = [part(w, 1, 4, 0)]
    block, runner = Block(parts), w.runner(RankDPO(beta=30.0))
    known = references(w, block)
    with saved_bytes(w.network) as held:
        errors = w.policy(parts[0].probe.x_t[0, :1], parts[0].probe.t, parts[0].probe.cond)
        one = held()
    del errors
    peak = peak_held(w, lambda: outcome(Deferred(), runner, block, known))
    # The error itself holds its prediction and target beside what the network does.
    assert one <= peak < 1.1 * one
    assert peak_held(w, lambda: outcome(TwoPass(), runner, block, known, reference_batch=4)) < 1.1 * one
    assert peak_held(w, lambda: joint(w, RankDPO(beta=30.0), block, known)) > 3.9 * one


def peak_held(w: World, work) -> int:
    """The most bytes that saved tensors hold at once: a storage counts until the last graph that holds it is gone."""
    own = {p.untyped_storage().data_ptr() for p in (*w.network.parameters(), *w.network.buffers())}
    alive: dict[int, list[int]] = {}
    peak = 0

    class Held:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal peak
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            if self.key not in own:
                alive.setdefault(self.key, [tensor.untyped_storage().nbytes(), 0])[1] += 1
                peak = max(peak, sum(size for size, count in alive.values() if count))

        def __del__(self) -> None:
            if self.key not in own:
                alive[self.key][1] -= 1
                if not alive[self.key][1]:
                    del alive[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        work()
    return peak


def test_a_gradient_scaler_finds_what_overflows() -> None:
    """Scaled by 2^10 the gradient is 2^10 times itself, also where a backward runs before its coefficient is known."""
    w, objective = world("sdxl"), DPO(beta=30.0)
    parts = [part(w, 1, 2, 0)]
    block = Block(parts)
    known = references(w, block)
    expected = w.gradient(lambda: autograd(w, objective, parts))
    scaled = w.runner(objective, backward=lambda loss: (loss * 1024).backward(), unit=8.0)
    for mode in (Joint(), Deferred(), TwoPass()):
        found = w.gradient(lambda mode=mode: outcome(mode, scaled, block, known))
        assert relative(found / 1024, expected) < 1e-12
    overflowing = w.runner(objective, backward=lambda loss: (loss * float("inf")).backward())
    found = w.gradient(lambda: outcome(Deferred(), overflowing, block, known))
    assert not found.isfinite().all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_passes_draw_the_same_masks(checkpointing: bool) -> None:
    """One micro-batch holds the batch, so that a joint pass from the same state draws the masks of the first pass."""
    w, objective = world("sdxl", checkpointing=checkpointing), DPO(beta=30.0)
    for module in w.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    parts = [part(w, 2, 2, 0)]
    block, runner = Block(parts), w.runner(objective)
    known = references(w, block)

    def from_one_state(work) -> torch.Tensor:
        torch.manual_seed(5)
        return w.gradient(work)

    expected = from_one_state(lambda: joint(w, objective, block, known))
    options = {"micro_batch": 4, "reference_batch": 4}
    after: list[torch.Tensor] = []

    def replaying() -> None:
        outcome(TwoPass(), runner, block, known, masks=True, **options)
        after.append(torch.rand(1))

    assert relative(from_one_state(replaying), expected) < 1e-12
    torch.manual_seed(5)
    joint(w, objective, block, known)
    assert torch.equal(after[0], torch.rand(1)), "the generator goes on as after one pass"
    other = from_one_state(lambda: outcome(TwoPass(), runner, block, known, masks=False, **options))
    assert relative(other, expected) > 1e-3


def test_a_network_that_mixes_samples_is_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4))
    for mode in ("deferred", "two-pass"):
        with pytest.raises(ValueError, match=rf"loss_mode {mode} .* 1 \(BatchNorm2d\)"):
            check_independent(network, mode)
    check_independent(network.eval(), "deferred")
    check_independent(world("sdxl").network, "deferred")
