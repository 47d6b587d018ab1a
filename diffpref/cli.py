"""The `diffpref` command: finds the subcommand, and imports nothing heavy before it is known."""

import importlib
import sys
from collections.abc import Callable, Sequence

COMMANDS = {
    "quickstart": ("diffpref.demo.quickstart", "the whole road on a small real model: samples, DPO, samples, report"),
    "train": (
        "diffpref.training.command",
        "fine-tune a model on preferences (the same as accelerate launch -m diffpref.train)",
    ),
    "label-pairs": (
        "diffpref.people.command",
        "a local page on which a person compares pictures",
    ),
    "label": ("diffpref.label.command", "preference data from prompts, generators and rewards"),
    "reward": ("diffpref.rewards.training.command", "train a reward on preferences, and evaluate one"),
    "data": ("diffpref.data.command", "look at, check, score and convert preference data"),
    "export": (
        "diffpref.export.command",
        "a finished run as a file for diffusers, ComfyUI, kohya, peft, or a checkpoint",
    ),
    "push": ("diffpref.training.push", "a finished run on the Hugging Face hub, with its card"),
    "doctor": ("diffpref.doctor.command", "what a run will need before it starts, and what this machine has"),
}


def _help() -> str:
    lines = [f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: diffpref COMMAND [--help]",
            "",
            "Preference fine-tuning of diffusion models.",
            "",
            "commands:",
            *lines,
            "",
            "  --version   print the version",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 1 the user's input cannot work, 2 a wrong command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if given else 2
    if given[0] == "--version":
        from diffpref import __version__

        print(__version__)
        return 0
    if given[0] not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(given[0], COMMANDS, n=1)
        hint = f" Perhaps you meant {close[0]!r}." if close else ""
        print(f"diffpref: no command {given[0]!r}.{hint}\n\n{_help()}", file=sys.stderr)
        return 2
    return report_errors(lambda rest: importlib.import_module(COMMANDS[given[0]][0]).main(rest), given[1:])


def report_errors(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """The command's status; what a user can mend (ValueError, OSError) becomes one message without a traceback."""
    try:
        return command(arguments)
    except (ValueError, OSError) as problem:
        print(f"diffpref: error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        # A run's own end by a signal says more: see run/signals.py, which this file need not import.
        print(f"diffpref: {stop}" if str(stop) else "diffpref: stopped.", file=sys.stderr)
        return getattr(stop, "status", 130)
