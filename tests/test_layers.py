"""The import direction of the core, and what starting the package costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffpref"
CORE = [
    "transfer",
    "path",
    "types",
    "noise",
    "kernels",
    "inversion",
    "transition",
    "probe",
    "errors",
    "objectives",
]  # each may import those before it
# What an objective checks its settings with; it imports nothing of ours, and no torch.
BELOW = {"objectives": {"diffpref.settings"}}
HEAVY = ["torch", "triton", "diffusers", "transformers", "accelerate", "datasets", "open_clip", "peft", "xformers"]


def imports(file: Path) -> set[str]:
    """Every module that the file imports, at its top or inside a function, as an absolute name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute, so that their direction can be read"
            names = {f"{node.module}.{alias.name}" for alias in node.names}  # from diffpref import path
            found |= names if node.module == "diffpref" else {str(node.module)}
    return found


def files_of(layer: str) -> list[Path]:
    files = sorted((PACKAGE / layer).rglob("*.py")) if (PACKAGE / layer).is_dir() else [PACKAGE / f"{layer}.py"]
    assert files and all(file.is_file() for file in files)
    return files


@pytest.mark.parametrize("layer", CORE)
def test_core_imports_only_torch_and_lower_layers(layer: str) -> None:
    lower = {f"diffpref.{name}" for name in CORE[: CORE.index(layer)]}
    lower |= BELOW.get(layer, set())
    own = {f"diffpref.{layer}"} if (PACKAGE / layer).is_dir() else set()
    for file in files_of(layer):
        for module in imports(file):
            top, *below = module.split(".")
            if top == "diffpref":
                assert f"diffpref.{below[0]}" in lower | own, f"{file.name} may import {sorted(lower)}, not {module}"
            else:
                triton = layer == "kernels" and file.name.startswith("triton_")  # imported on a GPU alone
                allowed = (
                    top in {"torch", "jaxtyping", "annotated_types", "triton" if triton else ""}
                    or top in sys.stdlib_module_names
                )
                assert allowed, f"{file.name} may import torch and jaxtyping, not {module}"


def modules_after(code: str) -> set[str]:
    """Those of HEAVY that a fresh interpreter has loaded after the code."""
    report = f"import json, sys\n{code}\nprint('\\n' + json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_core_loads_torch_alone() -> None:
    assert modules_after("import diffpref." + ", diffpref.".join(CORE)) == {"torch"}


def test_the_package_loads_nothing() -> None:
    assert modules_after("import diffpref") == set()


@pytest.mark.skipif(not (PACKAGE / "cli.py").exists(), reason="diffpref/cli.py is not written yet")
def test_help_loads_nothing() -> None:
    run = (
        "import runpy\nsys.argv = ['diffpref', '--help']\ntry:\n    runpy.run_module('diffpref', run_name='__main__')\n"
    )
    stopped = "except SystemExit as stop:\n    assert not stop.code, stop.code"
    assert modules_after(run + stopped) == set()


LOW = {
    "files": set(),
    "settings": {"files"},
    "report": {"files"},
    "run": {"files", "report"},
    "probes": {"files", "run", "settings"},
    "backbones": {"files", "pipelines"},
    "engine": {"files", "backbones", "probes"},
}
"""Rooms below training, with the rooms that each may import beside the core."""


def imported_at_the_top(file: Path) -> set[str]:
    """The package's modules that a file imports when it is imported, types for checkers aside."""
    found: set[str] = set()
    bodies = [ast.parse(file.read_text(encoding="utf-8")).body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                bodies.append(node.body)
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("diffpref."):
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    found.add(module if (ROOT / module.replace(".", "/")).with_suffix(".py").is_file() else node.module)
    return found


def test_no_import_goes_in_a_circle() -> None:
    files = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in PACKAGE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    left = {name: imported_at_the_top(file) & set(files) for name, file in files.items()}
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"in a circle, or above one: {sorted(left)}"


@pytest.mark.parametrize("room", LOW)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    allowed = LOW[room] | {room, *CORE, "noise"}
    for file in (PACKAGE / room).rglob("*.py"):
        for module in imported_at_the_top(file):
            assert module.split(".")[1] in allowed, f"{file.relative_to(ROOT)} imports {module}"
