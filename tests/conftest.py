"""What all tests share: nothing of the user's home, launcher or other checkouts, and one thread in each worker.

Set before any library is imported, and for the processes that the tests start."""

import gc
import importlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
LAUNCHERS = ("ACCELERATE_", "FSDP_", "SLURM_", "RAY_", "HF_")
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CACHES = ("HF_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HYPOTHESIS_STORAGE_DIRECTORY")
HOME = "DIFFPREF_TEST_HOME"
FIRST = HOME not in os.environ
"""Whether this process makes the folder of the caches; its workers, and pytest in a test's process, share it."""

if FIRST:
    for name in [name for name in os.environ if name.startswith(LAUNCHERS) or name in RANKS]:
        del os.environ[name]
    os.environ[HOME] = tempfile.mkdtemp(prefix="diffpref-tests-")
    os.environ |= {name: os.path.join(os.environ[HOME], name.lower()) for name in CACHES}
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    # A process that a test starts finds this checkout, wherever it runs and whatever is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:
    # Two threads a worker would wait for each other's cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
if WORKER or "-n" not in sys.argv or sys.argv[sys.argv.index("-n") + 1 :][:1] == ["0"]:
    # Where tests run: what the package imports, from its compiled files. Within a module of the package the checks of
    # annotations look for compiled files under names of their own, and thousands of modules would be compiled anew.
    for name in (
        "accelerate",
        "datasets",
        "diffusers.models.unets",
        "diffusers.training_utils",
        "peft",
        "transformers",
    ):
        importlib.import_module(name)

# The same examples in every run, and none kept from the run before.
hypothesis.settings.register_profile("suite", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """What is imported stays: collections of garbage, of which every training makes some, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The random state of a new process, before any fixture draws from it; and a note of the order, if asked for."""
    import torch

    if folder := os.environ.get("DIFFPREF_TEST_ORDER"):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        with Path(folder, f"{worker}.txt").open("a", encoding="utf-8") as order:
            order.write(f"{item.nodeid}\n")
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the text of a config and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """What libraries keep for the life of a process ends with the test."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


def pytest_unconfigure() -> None:
    """The first process clears the caches."""
    if FIRST:
        shutil.rmtree(os.environ.pop(HOME), ignore_errors=True)
