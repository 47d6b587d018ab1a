"""`python -m benchmarks KIND`: a Markdown table, and the figures as JSON with --output."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import tyro
from annotated_types import Ge

from diffpref.settings import bounds

Positive = Annotated[int, Ge(1)]
Model = Literal["sdxl", "sd3", "edm"]
CHECKPOINTING = {"off": (False,), "on": (True,), "both": (False, True)}
Found = tuple[list[dict[str, Any]], str]
"""Rows of figures, and a Markdown table of them."""


class Benchmark(Protocol):
    """A kind of benchmark; its fields are its options."""

    cuda: ClassVar[bool]
    """Whether it needs a CUDA GPU."""

    @property
    def output(self) -> Path | None:
        """A file for the figures as JSON."""
        ...

    def run(self) -> Found:
        """Measure or count."""
        ...


@dataclass(frozen=True)
class Counted:
    """FLOPs, peak and saved bytes and launches of a step in each mode, beside the published scripts' order; on meta
    tensors of the full-size networks, minutes on any machine."""

    models: tuple[Model, ...] = ("sdxl", "sd3", "edm")
    sizes: tuple[Positive, ...] = (512, 1024)
    """Sides of the images, in pixels."""
    pairs: tuple[Positive, ...] = (1, 4)
    """Pairs of a batch."""
    lists: tuple[Positive, ...] = (8,)
    """Lengths of a list that is a batch."""
    checkpointing: Literal["off", "on", "both"] = "both"
    output: Path | None = None
    """Write the figures as JSON as well."""
    cuda: ClassVar[bool] = False

    def run(self) -> Found:
        from benchmarks.counted import counted, markdown

        rows = counted(self.models, self.sizes, self.pairs, self.lists, CHECKPOINTING[self.checkpointing])
        return rows, markdown(rows)


@dataclass(frozen=True)
class Timed:
    """The counted steps on a GPU: milliseconds per pair, memory, share of the measured matmul rate."""

    models: tuple[Model, ...] = ("sdxl", "sd3", "edm")
    sizes: tuple[Positive, ...] = (512, 1024)
    """Sides of the images, in pixels."""
    pairs: tuple[Positive, ...] = (1, 4)
    """Pairs of a batch."""
    repeats: Positive = 5
    """Runs of which the median is taken."""
    output: Path | None = None
    """Write the figures as JSON as well."""
    cuda: ClassVar[bool] = True

    def run(self) -> Found:
        from benchmarks.timed import timed

        return timed(self.models, self.sizes, self.pairs, self.repeats)


@dataclass(frozen=True)
class Micro:
    """The attention kernels, and the error and noising operators, on a GPU."""

    output: Path | None = None
    """Write the figures as JSON as well."""
    cuda: ClassVar[bool] = True

    def run(self) -> Found:
        from benchmarks import attention, operators

        (kernels, above), (calls, below) = attention.timed(), operators.timed()
        return [*kernels, *calls], f"{above}\n\n{below}"


@dataclass(frozen=True)
class Cpu:
    """Peak memory of a process, a model of 50 M parameters and 4 pairs: stock peft against each mode."""

    repeats: Positive = 5
    """Processes of which the median is taken."""
    output: Path | None = None
    """Write the figures as JSON as well."""
    cuda: ClassVar[bool] = False

    def run(self) -> Found:
        from benchmarks.cpu import memory

        return memory(self.repeats)


@dataclass(frozen=True)
class Peer:
    """Our training step against the diffusers research script's, one small SDXL, taking turns."""

    repeats: Positive = 5
    """Turns of which the median is taken."""
    output: Path | None = None
    """Write the figures as JSON as well."""
    cuda: ClassVar[bool] = False

    def run(self) -> Found:
        from benchmarks.peer import race

        return race(self.repeats)


KINDS: dict[str, type[Benchmark]] = {"counted": Counted, "timed": Timed, "micro": Micro, "cpu": Cpu, "peer": Peer}


def main(arguments: list[str]) -> int:
    """Run a benchmark and print its table.

    Raises:
        ValueError: an option outside its bounds.
        SystemExit: tyro's own, for --help (status 0) and for arguments that it cannot parse (status 2).
    """
    chosen: Benchmark = tyro.extras.subcommand_cli_from_dict(
        KINDS,
        args=arguments or ["--help"],
        prog="python -m benchmarks",
        description="Memory, FLOPs and launches counted; speed and memory measured where it can be.",
    )
    bounds.check(chosen)
    name = next(name for name, kind in KINDS.items() if type(chosen) is kind)
    import torch

    if chosen.cuda and not torch.cuda.is_available():
        print(f"benchmarks {name} needs a CUDA GPU, and there is none here; counted and cpu need none.")
        return 0
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    rows, text = chosen.run()
    print(text)
    if chosen.output is not None:
        from diffpref.files import atomic
        from diffpref.run.environment import describe

        atomic.write_json(chosen.output, {"bench": name, "environment": describe(), "rows": rows})
    return 0
