"""What the host of a GPU waits for or walks over in a step, counted call by call: no GPU is needed for that.

Meta tensors stand for the GPU: what comes from the CPU comes from another device. They hold no values, so the reads
of values are counted once more on the CPU, in a whole run.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffpref.engine.modes import Cut, Deferred, Joint, Mode, TwoPass
from diffpref.engine.reference import ReferencePass
from diffpref.engine.step import Compared, Engine
from diffpref.objectives import DPO
from diffpref.probes import Batch, Forward, Stage
from diffpref.training.meter import Meter
from diffpref.transition import Ancestral
from diffpref.types import Candidates
from tests.engine.world import TOKENS, world

GPU = torch.device("meta")
READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu", "nonzero", "equal"}
READS |= {"allclose", "masked_select", "unique", "is_nonzero"}
MODES: Mapping[str, Mode] = {"joint": Joint(), "deferred": Deferred(), "two-pass": TwoPass()}
NEEDED = {"joint": {}, "deferred": {}, "two-pass": {"tolist": 1}}
"""What stays: two-pass must know which candidates it may leave out before it runs the others."""


class Waits(TorchFunctionMode):
    """Counts the calls whose result or operand has to travel while the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in READS or self.indexed(name, args) or self.travels(name, args, kwargs):
            self.found[name] += 1
        return func(*args, **kwargs)

    @staticmethod
    def indexed(name: str, args: Any) -> bool:
        """A list or a mask as an index, or one from another device."""
        if name not in ("__getitem__", "__setitem__"):
            return False
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        other = [each for each in tensors if each.dtype == torch.bool or each.device != args[0].device]
        return bool(other) or any(isinstance(part, list) for part in parts)

    @staticmethod
    def travels(name: str, args: Any, kwargs: Any) -> bool:
        """A tensor that is made on the GPU from what the host has."""
        if name in ("tensor", "as_tensor"):
            return torch.device(kwargs.get("device") or "cpu") == GPU
        if name == "copy_":
            return args[0].device != args[1].device and not kwargs.get("non_blocking")
        given = [getattr(each, "device", each) for each in (*args[1:], *kwargs.values())]
        return name == "to" and args[0].device != GPU and GPU in given and not kwargs.get("non_blocking")


def batch_of(pairs: int) -> Batch:
    """Pairs of small latents with their prompts on the host, as a stream gives them."""
    cond = {"prompt_embeds": torch.randn(pairs, TOKENS, 32), "pooled": torch.randn(pairs, 16)}
    sizes = torch.tensor([32.0, 32, 0, 0, 32, 32]).expand(pairs, 6)
    x0, scores = torch.randn(pairs, 2, 4, 8, 8), torch.tensor([[1.0, 0.0]]).expand(pairs, 2)
    candidates = Candidates(x0, scores, {**cond, "time_ids": sizes})
    return Batch(candidates, torch.full((pairs,), 500), torch.randn(pairs, 1, 4, 8, 8).expand_as(x0))


def engine(mode: Mode, folder: Path, micro_batch: int = 1) -> Engine:
    """An engine whose network is on the device that stands for the GPU."""
    w = world("sdxl", torch.float32)
    w.network.to(GPU)
    stage = Stage(
        policy=w.policy,
        reference=w.reference,
        weight=lambda t: torch.ones(t.shape, device=t.device),
        rule=Ancestral(),
        seed=0,
        identity="",
        folder=folder,
    )
    return Engine(
        mode=mode,
        cut=Cut(micro_batch=micro_batch),
        runner=w.runner(DPO(beta=30.0)),
        reference=ReferencePass(w.reference),
        prober=Forward().build(stage),
        block=1,
        inverts=False,
        device=GPU,
        processes=1,
    )


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_travels_while_the_host_waits(mode: str, micro_batch: int, tmp_path: Path) -> None:
    built = engine(MODES[mode], tmp_path, micro_batch)
    built.step(iter([batch_of(4)]), 1)  # a path's table travels once
    with Waits() as waits:
        built.step(iter([batch_of(4), batch_of(4)]), 2)
    assert not waits.found


@pytest.mark.parametrize("mode", MODES)
def test_a_whole_step_reads_what_it_needs(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """From the batches to the rows of the metrics, which are read at a summary."""
    seen: list[Counter[str]] = []
    step, add = Engine.step, Meter.add

    def counted_step(self: Engine, stream: Any, accumulation: int) -> list[Compared]:
        ready = iter([next(stream) for _ in range(accumulation)])
        with Waits() as waits:
            compared = step(self, ready, accumulation)
        seen.append(waits.found)
        return compared

    def counted_add(self: Meter, batches: Any) -> None:
        with Waits() as waits:
            add(self, batches)
        seen[-1] += waits.found

    monkeypatch.setattr(Engine, "step", counted_step)
    monkeypatch.setattr(Meter, "add", counted_add)
    micro = {} if mode == "joint" else {"micro_batch": 1}
    run(loss_mode=mode, train_batch_size=4, max_train_steps=2, **micro)
    assert [dict(found) for found in seen] == [NEEDED[mode]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_references_switch_walks_over_no_modules(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft's own walks over all modules and sets requires_grad of every matrix, off and on in each of its forwards."""
    built = engine(MODES[mode], tmp_path)
    built.step(iter([batch_of(2)]), 1)  # the layers are listed once
    calls: Counter[str] = Counter()

    def counting(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for name in ("modules", "named_modules", "apply"):
        counting(torch.nn.Module, name)
    for name in ("enable_adapters", "set_adapter"):
        counting(BaseTunerLayer, name)
    counting(Tensor, "requires_grad_")
    layers = [module for module in built.runner.model.network.modules() if isinstance(module, BaseTunerLayer)]
    everything = len(list(built.runner.model.network.modules()))
    calls.clear()
    built.step(iter([batch_of(2)]), 1)
    assert len(layers) > 10 and calls.pop("requires_grad_", 0) <= 4  # the head's two leaves, for each pair
    # A network's first parameter says its precision: the way there is two modules long.
    assert calls.pop("named_modules") < 100 < everything
    assert not calls
