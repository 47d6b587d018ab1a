"""`python -m benchmarks`: counted, timed, micro, cpu or peer; a Markdown table, and JSON with --output."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

HELP = """usage: python -m benchmarks [counted|timed|micro|cpu|peer] [options]

  counted   FLOPs, peak and saved bytes and launches of a step in each mode, beside the published scripts' order; on
            meta tensors of the full-size networks, minutes on any machine (the default)
  timed     the same steps on a GPU: milliseconds a pair, memory, share of the measured matmul rate
  micro     attention kernels and the error kernel on a GPU
  cpu       peak memory of a process, a 50 M parameter model and 4 pairs: stock peft against each mode
  peer      our training step against the diffusers research script's, one small SDXL, taking turns

options:
  --models NAME ...   of sdxl, sd3, edm (counted, timed); by default all
  --sizes N ...       pictures' sides in pixels (counted, timed); by default 512 1024
  --pairs N ...       pairs of a batch (counted, timed); by default 1 4
  --lists N ...       lengths of a list that is a batch (counted); by default 8
  --checkpointing W   off, on or both (counted); by default both
  --repeats N         runs of which the median is taken (timed, cpu, peer)
  --output FILE       write the figures as JSON as well"""
KINDS = ("counted", "timed", "micro", "cpu", "peer")
OPTIONS = ("models", "sizes", "pairs", "lists", "checkpointing", "repeats", "output")
CHECKPOINTING = {"off": (False,), "on": (True,), "both": (False, True)}
MODELS = ("sdxl", "sd3", "edm")


def main(arguments: list[str]) -> int:
    """Run a benchmark and print its table; ValueErrors are the user's to mend."""
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(HELP)
        return 0
    kind = "counted"
    if arguments and not arguments[0].startswith("--"):
        kind, arguments = arguments[0], arguments[1:]
    if kind not in KINDS:
        raise ValueError(f"benchmarks has no {kind!r}: choose one of {', '.join(KINDS)}.")
    options = _options(arguments)
    models = options.get("models", MODELS)
    if unknown := [name for name in models if name not in MODELS]:
        raise ValueError(f"--models must be of {', '.join(MODELS)}, got {' '.join(unknown)}.")
    sizes, pairs = _numbers(options, "sizes", (512, 1024)), _numbers(options, "pairs", (1, 4))
    lists, repeats = _numbers(options, "lists", (8,)), _numbers(options, "repeats", (5,))[0]
    checkpointing = options.get("checkpointing", ["both"])[0]
    if checkpointing not in CHECKPOINTING:
        raise ValueError(f"--checkpointing must be {', '.join(CHECKPOINTING)}, got {checkpointing}.")
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    if kind == "counted":
        from benchmarks.counted import counted, markdown

        rows = counted(models, sizes, pairs, lists, CHECKPOINTING[checkpointing])
        text = markdown(rows)
    else:
        rows, text = run(kind, models, sizes, pairs, repeats)
    print(text)
    if "output" in options:
        from diffpref.files import atomic
        from diffpref.run.environment import describe

        atomic.write_json(Path(options["output"][0]), {"bench": kind, "environment": describe(), "rows": rows})
    return 0


def run(
    kind: str, models: Sequence[str], sizes: Sequence[int], pairs: Sequence[int], repeats: int
) -> tuple[list[dict[str, Any]], str]:
    """The figures and the Markdown of a benchmark that measures."""
    if kind in ("timed", "micro"):
        import torch

        if not torch.cuda.is_available():
            return [], f"benchmarks {kind} needs a CUDA GPU, and there is none here; counted and cpu need none."
        from benchmarks import micro, timed

        return timed.timed(models, sizes, pairs, repeats) if kind == "timed" else micro.micro()
    if kind == "cpu":
        from benchmarks.cpu import memory

        return memory(repeats)
    from benchmarks.peer import race

    return race(repeats)


def _options(arguments: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for part in (part for each in arguments for part in (each.split("=", 1) if each[:2] == "--" else [each])):
        if part.startswith("--"):
            name = part[2:]
            if name not in OPTIONS:
                raise ValueError(f"unknown option {part!r}: see python -m benchmarks --help.")
            found[name] = []
        elif not name:
            raise ValueError(f"unexpected {part!r}: see python -m benchmarks --help.")
        else:
            found[name].append(part)
    if empty := [name for name, values in found.items() if not values]:
        raise ValueError(f"--{empty[0]} needs a value.")
    return found


def _numbers(options: dict[str, list[str]], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    given = options.get(name)
    if given is None:
        return default
    if not all(text.isdigit() and int(text) > 0 for text in given):
        raise ValueError(f"--{name} must be whole numbers above 0, got {' '.join(given)}.")
    return tuple(int(text) for text in given)
