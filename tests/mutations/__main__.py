"""Plants one bug at a time in a copy of the package and reports which ones the tests let through.

    python -m tests.mutations [--check] [SUITE ...] [WORD ...]

Without a suite, all of them; with words, only the bugs whose file or text contains one. `--check` plants nothing: it
only says whether every text is found. Exits 1 if a bug survived, if a text to replace is not there exactly once, or if
the tests fail without any bug. The copy is temporary; the checkout is only read. Each bug gets a forked process (Linux,
macOS), for which the libraries are loaded already.
"""

import importlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.mutations.bugs import ROOT, Bug, Suite, problems, read_suite, suites


def main(arguments: list[str]) -> int:
    """Plant the bugs that the arguments name; returns the exit status."""
    names = [word for word in arguments if word in suites()] or suites()
    words = [word for word in arguments if word not in (*suites(), "--check")]
    status = 0
    for name in names:
        suite = read_suite(name)
        bugs = [bug for bug in suite.bugs if not words or any(word in f"{bug.file} {bug.old}" for word in words)]
        lost = problems(tuple(bugs))
        print("\n".join(lost) or f"{name}: each of {len(bugs)} texts is found once")
        status |= bool(lost)
        if bugs and not lost and "--check" not in arguments:
            status |= plant(suite, bugs)
    return status


def plant(suite: Suite, bugs: list[Bug]) -> int:
    """1 if the suite's tests let one of these bugs through, or fail without any."""
    for library in suite.libraries:
        importlib.import_module(library)
    import torch

    torch.set_num_threads(1)  # a thread pool would not survive the fork
    survived, start = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("diffpref", "examples", "tests", "assets", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if (failure := failing_test(folder, suite.tests)) is not None:
            print(f"no bug planted, and yet: {failure}")
            return 1
        for bug in bugs:
            place = folder / bug.file
            source = place.read_text(encoding="utf-8")
            place.write_text(bug.planted(), encoding="utf-8")
            failure = failing_test(folder, suite.tests)
            place.write_text(source, encoding="utf-8")
            survived += failure is None
            outcome = "SURVIVED" if failure is None else "killed  "
            print(f"{outcome}  {bug.file}: {bug.old!r} -> {bug.new!r}  {failure or ''}", flush=True)
    print(f"{suite.name}: {len(bugs)} bugs, {survived} survived, {time.monotonic() - start:.0f} s")
    return int(survived > 0)


def failing_test(folder: Path, tests: tuple[str, ...]) -> str | None:
    """The first test that fails on the package in this folder, or None."""
    log = folder / "log.txt"
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 70
        try:
            with log.open("w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            code = run_tests(folder, tests)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return None
    lines = log.read_text(encoding="utf-8").splitlines()
    if status != 1 and not any(line.startswith("ERROR tests") for line in lines):
        raise RuntimeError("pytest did not run:\n" + "\n".join(lines[-20:]))
    return next(line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR")))


def run_tests(folder: Path, tests: tuple[str, ...]) -> int:
    """pytest's exit code on the package in this folder; for a process of its own, whose modules it fills."""
    import pytest

    os.chdir(folder)
    # The copy comes before the checkout and the installed package, here and in processes that a test starts.
    sys.path[:] = [str(folder), *(place for place in sys.path if place not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("diffpref", "tests", "examples")]:
        del sys.modules[name]
    os.environ["PYTHONPATH"] = str(folder)
    sys.dont_write_bytecode = True
    code = int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]))
    assert Path(str(sys.modules["diffpref"].__file__)).is_relative_to(folder), "the tests ran on another copy"
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
