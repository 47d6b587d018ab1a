"""`diffpref train --config FILE [--key value ...]`: one training run."""

import os
import shlex
import sys
from pathlib import Path

from diffpref.run.signals import Stopped, terminated


def main(arguments: list[str]) -> int:
    """Parse the settings and train; ValueErrors are the user's to mend."""
    if os.environ.get("RANK", "0") == "0" and not {"-h", "--help"} & set(arguments):
        print("diffpref: loading torch and diffusers", flush=True)
    before = "stopped where no step was being taken"
    try:
        with terminated(before):
            return _train(arguments)
    except KeyboardInterrupt as stop:
        number, text = (stop.number, str(stop)) if isinstance(stop, Stopped) else (2, before)
        raise Stopped(number, f"{text}\nGo on with: {again(sys.argv[0], arguments)}") from None


def _train(arguments: list[str]) -> int:
    from diffpref.training.settings import parse

    config = parse(arguments)
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    from diffpref.training.loop import train

    folder = train(config)
    from accelerate import PartialState

    PartialState().destroy_process_group()
    report = folder / "report.html"
    print(f"done: {config.run.output_dir}" + (f", {report}" if report.is_file() else ""))
    return 0


def again(program: str, arguments: list[str]) -> str:
    """The command line that goes on where a run was stopped.

    >>> again("/usr/bin/diffpref", ["--config", "my run.yaml", "--overwrite_output_dir"])
    "diffpref train --config 'my run.yaml' --resume_from_checkpoint latest"

    Args:
        program: what was started, Python's sys.argv[0].
        arguments: what followed the command's name."""
    words = [word for a in arguments for word in (a.split("=", 1) if a[:2] == "--" else [a])]
    kept: list[str] = []
    while words:
        word = words.pop(0)
        name = word.replace("-", "_")
        if name not in ("__resume_from_checkpoint", "__overwrite_output_dir"):
            kept.append(word)
        elif words and words[0][:2] != "--":
            words.pop(0)
    if Path(program).name == "train.py":
        start = "accelerate launch -m diffpref.train" if "ACCELERATE_MIXED_PRECISION" in os.environ else None
        start = start or "python -m diffpref.train"
    else:
        start = "python -m diffpref train" if Path(program).name == "__main__.py" else "diffpref train"
    return f"{start} {shlex.join([*kept, '--resume_from_checkpoint', 'latest'])}"
