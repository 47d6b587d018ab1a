"""Runs units of the golden record that no other process has taken: `python golden_drive.py WORK`, as a script.

It imports nothing of the tests, since PYTHONPATH may name another checkout, and calls each command by `python -m`'s own
means, so that the libraries are imported once for many runs.
"""

import contextlib
import gc
import importlib.util
import json
import os
import random
import runpy
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState


def run(module: str, arguments: list[str]) -> int:
    """The exit code of `python -m module arguments`; whatever another run left in this process is put back first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    gc.collect()
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main(work: Path) -> None:
    """Take the next unit until none is left; outputs and exit codes go into the work folder."""
    torch.set_num_threads(1)
    os.chdir(work)
    found = importlib.util.find_spec("diffpref")
    if found is None or not Path(str(found.origin)).is_relative_to(os.environ["PYTHONPATH"]):
        raise SystemExit(f"diffpref is {found and found.origin}, not that of {os.environ['PYTHONPATH']}.")
    for number, unit in enumerate(json.loads((work / "units.json").read_text())):
        try:
            os.close(os.open(work / "units" / str(number), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        ends, start = [], time.process_time()
        for place, (module, arguments) in enumerate(unit["runs"]):
            logs = [(work / "units" / f"{number}.{place}.{name}").open("w") for name in ("out", "err")]
            with logs[0], logs[1], contextlib.redirect_stdout(logs[0]), contextlib.redirect_stderr(logs[1]):
                ends.append(run(module, arguments))
                # The libraries stay: what collects garbage need not walk through them again and again.
                if not gc.get_freeze_count():
                    gc.collect()
                    gc.freeze()
        (work / "units" / f"{number}.json").write_text(json.dumps(ends))
        failed = "".join(f" FAILED ({end})" for end in ends if end)
        print(f"{time.process_time() - start:5.1f} s of CPU  {unit['name']}{failed}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
